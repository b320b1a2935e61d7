"""A linear mixed model: a kinship's spectrum, variance components by REML, and products with V⁻¹.

The trait is C b + g + e, g ~ N(0, s h K) and e ~ N(0, s (1 - h) I); V = h K + (1 - h) I has the unit of
the residual's variance s. One eigendecomposition of K serves every trait and every h. Knows no file.
Shapes: N samples, V variants, Q covariates and intercept, K vectors, B bins of eigenvalues.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize, special
from torch import Tensor

from snpdeconv.errors import InputError
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

Floats = NDArray[np.float64]

# Standardised dosages made at once: float32, 64 MiB.
BLOCK_ELEMENTS = 2**24
# Share of a variant's variance, in squared dosages, below which it counts as constant.
LEAST_VARIANCE = 1e-9
# Random vectors of which products among each other tell the spread of a quadratic form; a floor of that.
NUM_PROBES = 32
TINY = 1e-12
# At 1 nothing would be left to the residual, and V could not be inverted.
MOST_HERITABILITY = 0.99
HERITABILITY_TOLERANCE = 1e-4
# Widths of bins grow by this factor from this eigenvalue on: within one, 1 / V is as good as straight.
BIN_RATIO = 1.1
FIRST_BIN = 0.05


def kinship_matrix(genotypes: PackedGenotypes, *, device: str | torch.device = "cpu") -> Tensor:
    """Relationship of all samples (N, N) float64, Z Z' / V of standardised dosages, mean diagonal 1.

    A missing dosage is at the mean of its variant; dosages are scaled by their own standard deviation, so
    that relatives and structure need no frequencies from elsewhere. Variants that do not vary take no part.
    Costs N² V multiplications in single precision and N² float64.

    Raises:
        InputError: No variant varies.
    """
    num_used = 0
    total = torch.zeros((genotypes.num_samples,) * 2, dtype=torch.float64, device=device)
    for unit in _standardised(genotypes, device=device):
        total += (unit @ unit.T).double()
        num_used += unit.shape[1]
    return total.div_(_some(num_used))


@dataclass(frozen=True)
class BackgroundTest:
    """Score tests of a polygenic background."""

    p_values: Floats  # (T,) of each residual
    relatedness: float  # mean squared kinship of a sample with all others together, tr(K²) / N - 1


def background_test(
    genotypes: PackedGenotypes,
    residuals: NDArray[np.floating],
    basis: Floats,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> BackgroundTest:
    """Score tests of a polygenic background in residuals (N, T) off covariates (N, Q).

    One pass over the genotypes, and no N x N matrix: a residual's variance along the kinship, r'Kr, is
    compared with its expectation without any background; the spread of that, tr(K²), is estimated from
    products of random vectors. Normal tail, one-sided.
    """
    num_tests, num_basis, num_used = residuals.shape[1], basis.shape[1], 0
    probes = np.random.default_rng(seed).choice([-1.0, 1.0], (len(residuals), NUM_PROBES))
    probes -= basis @ (basis.T @ probes)
    left = residuals - basis @ (basis.T @ residuals)
    left = left / np.linalg.norm(left, axis=0)
    vectors = torch.from_numpy(np.column_stack([left, basis, probes])).to(device).float()
    total = torch.zeros((vectors.shape[1],) * 2, dtype=torch.float64, device=device)
    for unit in _standardised(genotypes, device=device):
        along = unit.T @ vectors
        total += (along.T @ along).double()
        num_used += unit.shape[1]
    product = (total / _some(num_used)).cpu().numpy()
    explained = np.diag(product)
    df = len(residuals) - num_basis
    trace = len(residuals) - explained[num_tests : num_tests + num_basis].sum()
    among = product[num_tests + num_basis :, num_tests + num_basis :][np.triu_indices(NUM_PROBES, 1)]
    squares = float(np.mean(among**2))
    spread = np.sqrt(max(2 * squares - 2 * trace**2 / df, TINY))
    return BackgroundTest(
        p_values=special.ndtr(-(df * explained[:num_tests] - trace) / spread),
        relatedness=squares / len(residuals) - 1,
    )


def _standardised(genotypes: PackedGenotypes, *, device: str | torch.device) -> Iterator[Tensor]:
    """Standardised dosages (N, v) float32 of the variants that vary, chunk by chunk."""
    num_samples = genotypes.num_samples
    for _, codes in genotypes.column_chunks(max_variants=max(64, BLOCK_ELEMENTS // max(1, num_samples))):
        given = torch.from_numpy(codes).to(device)
        called = given != MISSING
        dosage = given.float() * called
        dosage.sub_(dosage.sum(0) / called.sum(0).clamp(min=1)).mul_(called)
        variance = dosage.square().sum(0, dtype=torch.float64) / num_samples
        varies = variance > LEAST_VARIANCE
        yield dosage[:, varies] / variance[varies].sqrt().float()


def _some(num_used: int) -> int:
    if not num_used:
        raise InputError("no SNP varies", where="genotypes", hint="give SNPs with more than one genotype")
    return num_used


@dataclass(frozen=True)
class Kinship:
    """A relationship matrix by its spectrum."""

    values: Tensor  # (N,) float64 eigenvalues, none below 0
    vectors: Tensor  # (N, N) float64 eigenvectors, in columns

    @classmethod
    def of(cls, matrix: Tensor) -> Kinship:
        """Decomposes a symmetric matrix (N, N), in about 9 N³ operations."""
        values, vectors = torch.linalg.eigh(matrix)
        return cls(values.clamp(min=0), vectors)

    @cached_property
    def _single(self) -> Tensor:
        """(N, N) eigenvectors in single precision, for what is squared and summed."""
        return self.vectors.float()

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.values)

    def rotate(self, vectors: Tensor) -> Tensor:
        """Coordinates (N, K) of vectors (N, K) along the eigenvectors."""
        return self.vectors.T @ vectors

    def energies(self, vectors: Tensor) -> Energies:
        """What binned spectra of vectors (N, K) say of x'V⁻¹x for every heritability."""
        edge = (self.values + FIRST_BIN).log() / np.log(BIN_RATIO)
        _, place = torch.unique(edge.floor(), return_inverse=True)
        member = torch.nn.functional.one_hot(place).double()
        centre = (self.values @ member) / member.sum(0)
        along = (self._single.T @ vectors.float()).double().square_()
        beside = member * (self.values - centre[place])[:, None]
        return Energies(centre, along.T @ member, along.T @ beside)


@dataclass(frozen=True)
class Energies:
    """Squared lengths of K vectors along the eigenvectors of a kinship, by bins of its eigenvalues."""

    centre: Tensor  # (B,) mean eigenvalue
    total: Tensor  # (K, B) sum of squared coordinates
    slope: Tensor  # (K, B) the same, each times its eigenvalue's distance from the centre

    @classmethod
    def joined(cls, parts: Sequence[Energies]) -> Energies:
        """Of several lots of vectors."""
        return cls(
            parts[0].centre,
            torch.cat([part.total for part in parts]),
            torch.cat([part.slope for part in parts]),
        )

    def inverse_squares(self, heritability: float) -> Tensor:
        """(K,) x'V⁻¹x; within a bin 1 / V is taken as straight, which is wrong by less than a part in 400."""
        inverse = 1 / (heritability * self.centre + 1 - heritability)
        return self.total @ inverse - self.slope @ (heritability * inverse.square())


@dataclass(frozen=True)
class VarianceComponents:
    """How a trait's variance beside covariates splits between kinship and residual."""

    heritability: float  # share of the kinship, for a mean diagonal of 1
    standard_error: float  # of it, by the expected information
    variance: float  # of kinship and residual together, in squared units of the trait
    log_likelihood_ratio: float  # twice the restricted log likelihood's gain over no heritability

    @property
    def p_value(self) -> float:
        """Of no heritability at all, which lies on the border: half a chi-square (Self and Liang 1987)."""
        return float(0.5 * special.chdtrc(1, max(self.log_likelihood_ratio, 0.0)))

    def is_there(self, p_value: float, heritability: float) -> bool:
        """Whether p-value and heritability are no larger, and no smaller, than these."""
        return self.p_value <= p_value and self.heritability >= heritability


@dataclass(frozen=True)
class Covariance:
    """V = h K + (1 - h) I."""

    kinship: Kinship
    heritability: float

    @property
    def spectrum(self) -> Tensor:
        """(N,) eigenvalues of V."""
        return self.heritability * self.kinship.values + 1 - self.heritability

    def solve(self, vectors: Tensor) -> Tensor:
        """V⁻¹ times vectors (N, K), float64."""
        return self._times(vectors, self.spectrum.reciprocal())

    def whiten(self, vectors: Tensor) -> Tensor:
        """Vectors (N, K) in coordinates in which V is the unit matrix."""
        return self._times(vectors, self.spectrum.rsqrt())

    def colour(self, vectors: Tensor) -> Tensor:
        """The inverse of :meth:`whiten`."""
        return self._times(vectors, self.spectrum.sqrt())

    def relate(self, vectors: Tensor) -> Tensor:
        """K times vectors (N, K)."""
        return self._times(vectors, self.kinship.values)

    def _times(self, vectors: Tensor, spectrum: Tensor) -> Tensor:
        return self.kinship.vectors @ (spectrum[:, None] * self.kinship.rotate(vectors.double()))


def variance_components(kinship: Kinship, target: Tensor, basis: Tensor) -> VarianceComponents:
    """Restricted maximum likelihood of the heritability of a trait (N,) beside covariates (N, Q).

    The variance is profiled out, which leaves one dimension; the expected information gives the error
    (Patterson and Thompson 1971; Lippert et al. 2011, Nat. Methods 8:833).
    """
    rotated = kinship.rotate(torch.column_stack([target, basis]).double()).cpu().numpy()
    trait, fixed, values = rotated[:, 0], rotated[:, 1:], kinship.values.cpu().numpy()
    df = len(trait) - fixed.shape[1]

    def fitted(heritability: float) -> tuple[float, float]:
        """Twice the negative restricted log likelihood up to a constant, and the variance."""
        spectrum = heritability * values + 1 - heritability
        weighted = fixed / spectrum[:, None]
        information = fixed.T @ weighted
        left = trait - fixed @ np.linalg.solve(information, weighted.T @ trait)
        variance = float(left**2 @ (1 / spectrum)) / df
        determinant = np.linalg.slogdet(information)[1]
        return float(df * np.log(variance) + np.log(spectrum).sum() + determinant), variance

    found = optimize.minimize_scalar(
        lambda heritability: fitted(heritability)[0],
        bounds=(0, MOST_HERITABILITY),
        method="bounded",
        options={"xatol": HERITABILITY_TOLERANCE},
    )
    none = fitted(0.0)[0]
    best = float(found.x) if found.fun < none else 0.0
    slope = (values - 1) / (best * values + 1 - best)
    information = 0.5 * float(np.sum((slope - slope.mean()) ** 2))
    reached, variance = fitted(best)
    return VarianceComponents(
        heritability=best,
        standard_error=float("inf") if information <= 0 else information**-0.5,
        variance=variance,
        log_likelihood_ratio=none - reached,
    )
