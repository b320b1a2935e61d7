"""Single effects beside a polygenic background, against dense float64 algebra and traits of known make-up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from snpdeconv.finemapping import ColumnSpectra, Settings, credible_sets, fit_single_effects
from snpdeconv.finemapping.columns import Columns, ExtraColumns
from snpdeconv.finemapping.fdr import permutation_scores
from snpdeconv.finemapping.gram import LazyGram
from snpdeconv.finemapping.joint import deconvolve
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats.common import covariate_basis
from snpdeconv.stats.mixed_model import Covariance, Kinship, kinship_matrix

NUM_SAMPLES, NUM_VARIANTS = 400, 300


def _codes(seed: int, *, num_samples: int = NUM_SAMPLES, num_variants: int = NUM_VARIANTS) -> np.ndarray:
    """Neighbouring SNPs in LD."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(2, num_samples, num_variants))
    for one in range(1, num_variants):
        latent[:, :, one] = 0.8 * latent[:, :, one - 1] + 0.6 * latent[:, :, one]
    codes = (latent < rng.uniform(-1.2, 0, num_variants)).sum(axis=0).astype(np.uint8)
    codes[rng.random(codes.shape) < 0.01] = MISSING
    return codes


def _standardised(codes: np.ndarray) -> np.ndarray:
    called = codes != MISSING
    mean = np.where(called, codes, 0).sum(axis=0) / called.sum(axis=0)
    dosage = np.where(called, codes - mean, 0.0)
    return dosage / dosage.std(axis=0)


def _trait(z: np.ndarray, *, sparse: float, background: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three SNPs of the same PVE before an infinitesimal background, and which they are."""
    rng = np.random.default_rng(seed)
    causal = np.array([40, 150, 260])
    parts = (
        z[:, causal] @ rng.choice([-1.0, 1.0], 3),
        z @ rng.normal(size=z.shape[1]),
        rng.normal(size=len(z)),
    )
    shares = sparse, background, 1 - sparse - background
    return sum(np.sqrt(share) * part / part.std() for share, part in zip(shares, parts, strict=True)), causal


def _spectra(genotypes: PackedGenotypes) -> ColumnSpectra:
    return ColumnSpectra(Kinship.of(kinship_matrix(genotypes)))


def test_products_are_those_of_the_dense_projection() -> None:
    codes = _codes(1)
    rng = np.random.default_rng(2)
    covariates = rng.normal(size=(NUM_SAMPLES, 2))
    extra = ExtraColumns(
        values=rng.normal(size=(NUM_SAMPLES, 3)).astype(np.float32),
        variants=np.full((3, 2), -1),
        weight=np.full(3, 0.1),
    )
    genotypes = PackedGenotypes.from_codes(codes)
    basis = covariate_basis(covariates, num_samples=NUM_SAMPLES)
    columns = Columns(genotypes, basis=basis, extra=extra)
    matrix = kinship_matrix(genotypes)
    spectra = ColumnSpectra(Kinship.of(matrix))
    gram = LazyGram(columns, covariance=Covariance(spectra.kinship, 0.6), energies=spectra.energies(columns))
    x = columns.take(np.arange(columns.num_columns)).double().numpy()
    inverse = np.linalg.inv(0.6 * matrix.numpy() + 0.4 * np.eye(NUM_SAMPLES))
    along = inverse @ basis
    projection = inverse - along @ np.linalg.solve(basis.T @ along, along.T)
    dense = x.T @ projection @ x
    usable = np.flatnonzero(columns.usable)
    np.testing.assert_allclose(gram.diagonal.numpy()[usable], np.diag(dense)[usable], rtol=0.003)
    index, weight = np.array([3, 310, 602]), torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    scale = np.sqrt(np.outer(np.diag(dense), np.diag(dense)))[usable][:, index].max()
    np.testing.assert_allclose(
        gram.times(index, weight).numpy()[usable],
        (dense[:, index] @ weight.numpy())[usable],
        atol=1e-4 * scale,
    )
    target = torch.from_numpy(rng.normal(size=(NUM_SAMPLES, 1)))
    np.testing.assert_allclose(
        gram.correlate(gram.weighted(target))[:, 0].numpy()[usable],
        (x.T @ projection @ target[:, 0].numpy())[usable],
        atol=1e-3,
    )


@pytest.fixture(scope="module")
def polygenic() -> list[tuple[PackedGenotypes, np.ndarray, np.ndarray]]:
    studies = []
    for seed in range(5):
        codes = _codes(100 + seed)
        studies.append(
            (
                PackedGenotypes.from_codes(codes),
                *_trait(_standardised(codes), sparse=0.3, background=0.5, seed=seed),
            )
        )
    return studies


def test_sets_hold_the_sparse_snps_and_not_the_background(polygenic) -> None:
    held, false, false_without, heritability = 0, 0, 0, []
    for genotypes, trait, causal in polygenic:
        fit = fit_single_effects(genotypes, trait, kind="quantitative", kinship=_spectra(genotypes))
        plain = fit_single_effects(genotypes, trait, kind="quantitative")
        found = [np.isin(causal, one.variants).any() for one in credible_sets(fit, genotypes)]
        held, false = held + sum(found), false + len(found) - sum(found)
        false_without += sum(
            not np.isin(causal, one.variants).any() for one in credible_sets(plain, genotypes)
        )
        assert fit.background is not None
        heritability.append(fit.background.components.heritability)
        assert fit.background.components.standard_error < 0.2
    assert held >= 8
    assert false == 0
    assert false_without > 0
    # Of what the effects leave: .5 of .7, and what of the effects was not found.
    assert 0.55 < np.mean(heritability) < 0.9


def test_a_polygenic_trait_without_sparse_snps_has_no_sets() -> None:
    for seed in range(6):
        codes = _codes(200 + seed)
        trait, _ = _trait(_standardised(codes), sparse=0.0, background=0.6, seed=seed)
        genotypes = PackedGenotypes.from_codes(codes)
        fit = fit_single_effects(genotypes, trait, kind="quantitative", kinship=_spectra(genotypes))
        assert credible_sets(fit, genotypes) == ()
        assert fit.pip.max() < 0.9


def test_the_background_is_taken_where_there_is_one(polygenic) -> None:
    genotypes, trait, _ = polygenic[0]
    how = {
        "kind": "quantitative",
        "chrom": np.full(NUM_VARIANTS, "1", dtype=object),
        "position_bp": np.arange(NUM_VARIANTS) * 20_000,
        "pairs": False,
    }
    assert deconvolve(genotypes, trait, kinship="auto", **how).background is not None
    assert deconvolve(genotypes, trait, **how).background is None
    codes = genotypes.codes()
    sparse, causal = _trait(_standardised(codes), sparse=0.5, background=0.0, seed=9)
    without = deconvolve(genotypes, sparse, kinship="auto", **how)
    assert without.background is None
    assert (without.pip[causal] > 0.5).all()
    # Asked for, it is there even where it explains nothing.
    asked = deconvolve(genotypes, sparse, kinship="genotypes", **how).background
    assert asked is not None
    assert asked.components.heritability < 0.2


def test_pairs_beside_a_background_only_where_asked_for(polygenic) -> None:
    genotypes, trait, _ = polygenic[0]
    how = {
        "kind": "quantitative",
        "chrom": np.full(NUM_VARIANTS, "1", dtype=object),
        "position_bp": np.arange(NUM_VARIANTS) * 20_000,
        "kinship": "genotypes",
    }
    # The scan lets some pairs join the fit, likely or not.
    assert len(deconvolve(genotypes, trait, **how).pairs)
    settings = Settings(pairs_beside_background=False)
    assert not len(deconvolve(genotypes, trait, settings=settings, **how).pairs)


def test_the_null_keeps_the_background(polygenic) -> None:
    genotypes, trait, _ = polygenic[1]
    how = {
        "chrom": np.full(NUM_VARIANTS, "1", dtype=object),
        "position_bp": np.arange(NUM_VARIANTS) * 20_000,
        "pairs": False,
    }
    found = deconvolve(genotypes, trait, kind="quantitative", kinship="genotypes", **how)
    assert found.background is not None
    residual = trait - found.fitted[:, 0]
    drawn = found.background.shuffled(residual, np.random.default_rng(0))
    white = found.background.covariance.whiten(torch.from_numpy(np.column_stack([residual, drawn]))).numpy()
    np.testing.assert_allclose(np.sort(white[:, 0]), np.sort(white[:, 1]), atol=1e-8)
    assert abs(np.corrcoef(white.T)[0, 1]) < 0.2
    scores = permutation_scores(genotypes, trait, found, draws=range(4), **how)
    assert scores.shape == (4, NUM_VARIANTS)
    assert np.median(scores.max(axis=1)) < found.score.max()
