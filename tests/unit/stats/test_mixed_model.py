"""The mixed model beside dense float64 algebra, and traits whose heritability is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from snpdeconv.errors import InputError
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats.common import covariate_basis
from snpdeconv.stats.mixed_model import (
    Covariance,
    Kinship,
    background_test,
    kinship_matrix,
    variance_components,
)


def _codes(num_samples: int, num_variants: int, *, seed: int = 0) -> np.ndarray:
    """Sibships of four, with missing genotypes and a variant that does not vary."""
    rng = np.random.default_rng(seed)
    frequency = rng.uniform(0.1, 0.5, num_variants)
    parents = rng.random((num_samples // 4, 2, 2, num_variants)) < frequency
    which = rng.integers(0, 2, (num_samples // 4, 4, 2, num_variants))
    families = np.arange(num_samples // 4)[:, None, None]
    side = np.arange(2)[None, None, :]
    drawn = parents[families[..., None], side[..., None], which, np.arange(num_variants)]
    codes = drawn.sum(axis=2).reshape(num_samples, num_variants).astype(np.uint8)
    codes[rng.random(codes.shape) < 0.02] = MISSING
    codes[:, 3] = 1
    return codes


def _dense(codes: np.ndarray) -> np.ndarray:
    called = codes != MISSING
    mean = np.where(called, codes, 0).sum(axis=0) / called.sum(axis=0)
    dosage = np.where(called, codes - mean, 0.0)
    sd = dosage.std(axis=0)
    z = dosage[:, sd > 0] / sd[sd > 0]
    return z @ z.T / z.shape[1]


def test_kinship_is_that_of_standardised_dosages() -> None:
    codes = _codes(120, 333)
    found = kinship_matrix(PackedGenotypes.from_codes(codes))
    np.testing.assert_allclose(found.numpy(), _dense(codes), atol=2e-6)
    assert float(found.diagonal().mean()) == pytest.approx(1.0, abs=1e-6)


def test_kinship_needs_a_snp_that_varies() -> None:
    with pytest.raises(InputError, match="no SNP varies"):
        kinship_matrix(PackedGenotypes.from_codes(np.ones((8, 5), dtype=np.uint8)))


@pytest.mark.parametrize("heritability", [0.0, 0.4, 0.9])
def test_products_with_the_inverse_are_those_of_the_dense_matrix(heritability: float) -> None:
    matrix = _dense(_codes(80, 200))
    covariance = Covariance(Kinship.of(torch.from_numpy(matrix)), heritability)
    dense = heritability * matrix + (1 - heritability) * np.eye(80)
    vectors = np.random.default_rng(1).normal(size=(80, 3))
    given = torch.from_numpy(vectors)
    np.testing.assert_allclose(covariance.solve(given), np.linalg.solve(dense, vectors), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(covariance.colour(covariance.whiten(given)), vectors, atol=1e-9)
    white = covariance.whiten(given).numpy()
    np.testing.assert_allclose(white.T @ white, vectors.T @ np.linalg.solve(dense, vectors), rtol=1e-8)


@pytest.mark.parametrize("heritability", [0.0, 0.2, 0.7, 0.95])
def test_binned_spectra_give_the_diagonal(heritability: float) -> None:
    matrix = _dense(_codes(200, 300))
    vectors = np.random.default_rng(2).normal(size=(200, 40))
    vectors[:, :10] = matrix[:, :10]  # along the largest eigenvectors
    found = Kinship.of(torch.from_numpy(matrix)).energies(torch.from_numpy(vectors))
    dense = heritability * matrix + (1 - heritability) * np.eye(200)
    expected = np.sum(vectors * np.linalg.solve(dense, vectors), axis=0)
    np.testing.assert_allclose(found.inverse_squares(heritability), expected, rtol=0.0025)


def test_reml_is_the_largest_restricted_likelihood() -> None:
    rng = np.random.default_rng(3)
    matrix = _dense(_codes(200, 400))
    covariates = rng.normal(size=(200, 2))
    design = np.column_stack([np.ones(200), covariates])
    trait = np.linalg.cholesky(0.5 * matrix + 0.5 * np.eye(200)) @ rng.normal(size=200) + covariates[:, 0]

    def likelihood(heritability: float, variance: float) -> float:
        """Of the residuals that covariates leave, in an orthonormal basis of their complement."""
        complement = np.linalg.svd(design)[0][:, 3:]
        covariance = variance * (heritability * matrix + (1 - heritability) * np.eye(200))
        density = stats.multivariate_normal(cov=complement.T @ covariance @ complement)
        return float(density.logpdf(complement.T @ trait))

    best = optimize.minimize(lambda x: -likelihood(x[0], np.exp(x[1])), [0.5, 0.0], method="Nelder-Mead")
    found = variance_components(
        Kinship.of(torch.from_numpy(matrix)),
        torch.from_numpy(trait),
        torch.from_numpy(covariate_basis(covariates, num_samples=200)),
    )
    assert found.heritability == pytest.approx(best.x[0], abs=2e-3)
    assert found.variance == pytest.approx(np.exp(best.x[1]), rel=5e-3)
    none = optimize.minimize_scalar(lambda x: -likelihood(0.0, np.exp(x)), bounds=(-3, 3), method="bounded")
    assert found.log_likelihood_ratio == pytest.approx(2 * (none.fun - best.fun), abs=0.01)


def test_heritability_and_its_error_over_traits() -> None:
    rng = np.random.default_rng(4)
    matrix = _dense(_codes(400, 800))
    kinship, basis = Kinship.of(torch.from_numpy(matrix)), torch.full((400, 1), 400**-0.5).double()
    root = np.linalg.cholesky(0.4 * matrix + 0.6 * np.eye(400))
    found = [
        variance_components(kinship, torch.from_numpy(root @ rng.normal(size=400)), basis) for _ in range(60)
    ]
    estimates = np.array([one.heritability for one in found])
    error = np.mean([one.standard_error for one in found])
    assert abs(estimates.mean() - 0.4) < 3 * error / np.sqrt(60)
    assert 0.75 < estimates.std() / error < 1.3


def test_noise_has_no_heritability() -> None:
    rng = np.random.default_rng(5)
    matrix = _dense(_codes(200, 400))
    kinship, basis = Kinship.of(torch.from_numpy(matrix)), torch.full((200, 1), 200**-0.5).double()
    p = [
        variance_components(kinship, torch.from_numpy(rng.normal(size=200)), basis).p_value
        for _ in range(100)
    ]
    # On the border half of all traits have none; the other half is uniform.
    assert np.mean(np.array(p) <= 0.05) <= 0.1
    assert max(p) == 0.5


def test_score_test_of_a_background() -> None:
    codes = _codes(200, 400)
    genotypes, matrix = PackedGenotypes.from_codes(codes), _dense(codes)
    covariates = np.random.default_rng(6).normal(size=(200, 1))
    basis = covariate_basis(covariates, num_samples=200)
    projector = np.eye(200) - basis @ basis.T
    eigenvalues = np.linalg.eigvalsh(projector @ matrix @ projector)[2:]
    rng = np.random.default_rng(7)
    found = background_test(genotypes, rng.normal(size=(200, 300)), basis)
    assert found.relatedness == pytest.approx(np.sum(eigenvalues**2) / 200 - 1, rel=0.2)
    # Against simulation of the same quadratic form from its own spectrum.
    chi2 = rng.chisquare(1, (20_000, len(eigenvalues)))
    ratio = (chi2 @ eigenvalues) / chi2.sum(axis=1) * 198
    spread = ratio.std() / np.sqrt(2 * np.sum((eigenvalues - eigenvalues.mean()) ** 2))
    assert spread == pytest.approx(1.0, abs=0.03)
    assert 0.01 <= np.mean(found.p_values <= 0.05) <= 0.1
    traits = np.linalg.cholesky(0.5 * matrix + 0.5 * np.eye(200)) @ rng.normal(size=(200, 20))
    assert np.mean(background_test(genotypes, traits, basis).p_values < 0.05) > 0.8
