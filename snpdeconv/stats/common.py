"""What all tests share: tails, the covariates' basis, inverse normal transform, saddlepoint approximation.

Tails of t, F and normal statistics are -log10 p, where p itself may be far below the smallest float. Knows no
genotype. Shapes: N samples, V variants, C columns, Q covariates and intercept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from torch import Tensor

Floats = NDArray[np.float64]
# Below this the incomplete beta function is close to underflow, and its continued fraction converges fast.
SMALLEST_DIRECT = 1e-250
# Of the variation, the share that a fit always leaves: rounding, and what keeps -log10 p finite.
SMALLEST_RESIDUAL = 1e-15


def t_tail(statistic: Floats, *, df: float) -> Floats:
    """-log10 of the two-sided p-value of t statistics (V,)."""
    return f_tail(statistic**2, df_model=1, df_residual=df)


def f_tail(statistic: Floats, *, df_model: float, df_residual: float) -> Floats:
    """-log10 of the upper tail of F statistics (V,)."""
    unexplained = df_residual / (df_residual + df_model * statistic)
    # Never -0.0 for a statistic of 0.
    neg_log10_p: Floats = np.abs(_log_betainc(df_residual / 2, df_model / 2, unexplained)) / np.log(10)
    return neg_log10_p


def normal_tail(statistic: Floats) -> Floats:
    """-log10 of the two-sided p-value of standard normal statistics (V,)."""
    upper: Floats = special.log_ndtr(-np.abs(statistic))
    # Twice the upper tail is 1 at 0, which rounding must not carry past 1.
    neg_log10_p: Floats = np.maximum(-(upper + np.log(2)) / np.log(10), 0.0)
    return neg_log10_p


def deviate(neg_log10_p: Floats) -> Floats:
    """Normal deviate, from 0 up, of two-sided p-values (V,)."""
    deviates: Floats = -special.ndtri_exp(-neg_log10_p * np.log(10) - np.log(2))
    return deviates


def inflation(neg_log10_p: Floats) -> float:
    """Genomic control lambda (Devlin and Roeder 1999) of at least one p-value (V,).

    That is the median chi-square over the one expected.
    """
    return float(deviate(np.asarray(np.median(neg_log10_p))) ** 2 / special.ndtri(0.25) ** 2)


def _log_betainc(a: float, b: float, x: Floats) -> Floats:
    """Log of the regularised incomplete beta function I_x(a, b)."""
    direct = special.betainc(a, b, x)
    tail = direct < SMALLEST_DIRECT
    out: Floats = np.log(np.where(tail, 1.0, direct))
    far = np.maximum(x[tail], SMALLEST_RESIDUAL)
    front = a * np.log(far) + b * np.log1p(-far) - np.log(a) - special.betaln(a, b)
    out[tail] = front + np.log(_beta_fraction(a, b, far))
    return out


def _beta_fraction(a: float, b: float, x: Floats) -> Floats:
    """Continued fraction of I_x(a, b) (DLMF 8.17.22) by Lentz's method, for x < a / (a + b)."""
    c = np.ones_like(x)
    d = 1 / (1 - (a + b) * x / (a + 1))
    value = d.copy()
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = np.ones_like(x)
        for coefficient in (even, odd):
            d = 1 / (1 + coefficient * d)
            c = 1 + coefficient / c
            change *= c * d
        value *= change
        if np.all(np.abs(change - 1) < 1e-14):
            break
    return value


# Of a covariate's largest value: a smaller spread is rounding. Of the largest direction: others imply it.
CONSTANT = 1e-12
IMPLIED = 1e-8


def covariate_basis(covariates: ArrayLike | None, *, num_samples: int) -> NDArray[np.float64]:
    """(N, Q) orthonormal basis of intercept, which comes first, and covariates, whatever the unit of each.

    Covariates (N, any number) come without an intercept; one that is constant or that others imply adds
    nothing.
    """
    intercept = np.full((num_samples, 1), num_samples**-0.5)
    if covariates is None:
        return intercept
    given = np.asarray(covariates, dtype=np.float64)
    centred = given - given.mean(axis=0)
    sd = centred.std(axis=0)
    varies = sd > CONSTANT * np.abs(given).max(axis=0, initial=0.0)
    left, size, _ = np.linalg.svd(centred[:, varies] / sd[varies], full_matrices=False)
    return np.hstack([intercept, left[:, size > IMPLIED * max(size, default=0.0)]])


# A normal quantity stays under both in cohorts of some hundred samples. Above, variants of 3 to 20 carriers
# make an effect of chance in more than one study of ten.
MOST_SKEWNESS = 0.4
MOST_EXCESS_KURTOSIS = 1.0


def without_covariates(values: ArrayLike, covariates: ArrayLike) -> NDArray[np.float64]:
    """(N,) what covariates leave of a quantity, which has mean 0.

    A covariate that explains most of it hides the tails of the rest.
    """
    given = np.asarray(values, dtype=np.float64)
    basis = covariate_basis(covariates, num_samples=len(given))
    return np.asarray(given - basis @ (basis.T @ given))


# Of the mean square: log residuals nearer to 0 would rule a regression.
LEAST_SQUARE = 1e-4


def with_equal_spread(values: ArrayLike, covariates: ArrayLike) -> NDArray[np.float64]:
    """(N,) a residual over the standard deviation that the covariates (N, C) and their squares say of it.

    The logarithm of its square is regressed on them (Harvey 1976, Econometrica 44:461).
    """
    given, by = np.asarray(values, dtype=np.float64), np.asarray(covariates, dtype=np.float64)
    basis = covariate_basis(np.hstack([by, by**2]), num_samples=len(given))
    log_square = np.log(np.maximum(given**2, LEAST_SQUARE * np.mean(given**2)))
    return np.asarray(given / np.exp(basis @ (basis.T @ log_square) / 2))


def has_heavy_tails(values: ArrayLike, *, spread_by: ArrayLike | None = None) -> bool:
    """Whether a few samples weigh so much that a regression would rest on them.

    Tails that are no more than a spread which goes with the covariates `spread_by` (N, C) do not count.
    """
    given = np.asarray(values, dtype=np.float64)
    if spread_by is not None:
        given = with_equal_spread(given, spread_by)
    return bool(abs(stats.skew(given)) > MOST_SKEWNESS or stats.kurtosis(given) > MOST_EXCESS_KURTOSIS)


def inverse_normal_transform(values: ArrayLike) -> NDArray[np.float64]:
    """Rank-based inverse normal transform (Blom 1958; see Beasley et al. 2009, Behav. Genet. 39:580).

    Equal values share their mean rank; the variance is about 1.
    """
    rank = stats.rankdata(values)
    scores: NDArray[np.float64] = special.ndtri((rank - 0.375) / (len(rank) + 0.25))
    return scores


ITERATIONS = 30
TOLERANCE = 1e-6
# Nearer to the mean the saddlepoint formula loses digits, and the normal tail holds by itself.
NORMAL_UP_TO = 2.0
# Log odds that a tilted sample may reach: beyond, exp overflows, and the score is at the end of its range.
LARGEST_TILT = 60.0
# Tilts at which a distribution's cumulants are known: nodes, and where they begin to spread, over the largest
# value; between them, a Taylor series.
NUM_NODES = 4096
DENSE_UP_TO = 0.05
GRID_ELEMENTS = 2**22


@dataclass(frozen=True)
class BinaryCumulants:
    """K(t) = log E exp(t value) of values y - μ, for zeros and ones y of mean μ (N, 1)."""

    mean: Tensor

    def derivatives(self, tilt: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative of K at tilts (N, C), each (N, C)."""
        tilted = torch.sigmoid(torch.logit(self.mean) + tilt)
        return tilted - self.mean, tilted * (1 - tilted)

    def value(self, tilt: Tensor) -> Tensor:
        """K (N, C)."""
        return torch.log1p(self.mean * torch.expm1(tilt)) - tilt * self.mean


@dataclass(frozen=True)
class EmpiricalCumulants:
    """K of values that all come from one distribution, the one that was seen."""

    # (G, 4) tilt, K and its first two derivatives at nodes that lie evenly by asinh(tilt / dense)
    table: Tensor
    dense: float  # the tilt up to which nodes lie evenly

    @classmethod
    def of(cls, values: Tensor) -> EmpiricalCumulants:
        """Of (N,) values of mean 0 and not all equal."""
        seen = values.double()
        dense = DENSE_UP_TO / float(seen.abs().max())
        end = math.asinh(LARGEST_TILT / float(seen.square().mean().sqrt()) / dense)
        nodes = dense * torch.sinh(torch.linspace(-end, end, NUM_NODES, dtype=torch.float64))
        rows = []
        at_once = max(1, GRID_ELEMENTS // len(seen))
        for tilt in (nodes[start : start + at_once] for start in range(0, len(nodes), at_once)):
            exponent = tilt[:, None] * seen
            share = torch.softmax(exponent, dim=1)
            first = share @ seen
            second = share @ seen.square() - first**2
            value = torch.logsumexp(exponent, dim=1) - math.log(len(seen))
            rows.append(torch.stack([tilt, value, first, second.clamp(min=0.0)], dim=1))
        return cls(torch.cat(rows), dense)

    def derivatives(self, tilt: Tensor) -> tuple[Tensor, Tensor]:
        """As of `BinaryCumulants`."""
        node, _, first, second = self._nearest(tilt)
        return first + second * (tilt - node), second

    def value(self, tilt: Tensor) -> Tensor:
        """As of `BinaryCumulants`."""
        node, value, first, second = self._nearest(tilt)
        beyond = tilt - node
        return value + first * beyond + second * beyond**2 / 2

    def _nearest(self, tilt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        last = len(self.table) - 1
        end = torch.asinh(self.table[-1, 0] / self.dense)
        place = (torch.asinh(tilt / self.dense) / end + 1) * (last / 2)
        node, value, first, second = self.table[place.round().long().clamp(0, last)].unbind(-1)
        return node, value, first, second


def binary_score_tail(column: Tensor, score: Tensor, mean: Tensor) -> Tensor:
    """(C,) float64 -log10 p of scores (C,) of a binary trait, two-sided as twice the tail that was seen.

    The score of a column x is Σ x (y - μ) with independent y of mean μ; its cumulants K(s) = Σ log(1 - μ + μ
    exp(s x)) - s Σ μ x are exact, so the tail holds where the normal one does not. Columns (N, C) are
    orthogonal to the null model, whose probabilities are `mean` (N,).
    """
    variance = (mean * (1 - mean)) @ column.square()
    sd = variance.clamp(min=1e-30).sqrt().double()
    z = score.double() / sd
    out = _two_sided(z)
    far = torch.nonzero(z.abs() > NORMAL_UP_TO)[:, 0]
    if not len(far):
        return out
    # In units of the score's deviation, mirrored so that the tail is the upper one.
    scaled = column[:, far].double() * (torch.sign(z[far]) / sd[far])
    out[far] = upper_tail(scaled, z[far].abs(), BinaryCumulants(mean.double()[:, None]))
    return out


def upper_tail(x: Tensor, q: Tensor, cumulants: BinaryCumulants | EmpiricalCumulants) -> Tensor:
    """(C,) -log10 of twice P(Σ x value >= q), q > 0, of columns x (N, C); Σ x value has variance 1."""
    largest = LARGEST_TILT / x.abs().amax(0)
    low, high = torch.zeros_like(q), largest.clone()
    s = torch.minimum(q, largest / 2)
    for _ in range(ITERATIONS):
        first, second = cumulants.derivatives(s * x)
        slope = (first * x).sum(0)
        curvature = (second * x.square()).sum(0).clamp(min=1e-30)
        low, high = torch.where(slope < q, s, low), torch.where(slope < q, high, s)
        newton = s + (q - slope) / curvature
        # A Newton step that leaves the bracket is replaced by its middle: convergence is certain.
        following = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        done = (following - s).abs() <= TOLERANCE * s
        s = following
        if bool(done.all()):
            break
    curvature = (cumulants.derivatives(s * x)[1] * x.square()).sum(0).clamp(min=1e-30)
    w = (2 * (s * q - cumulants.value(s * x).sum(0))).clamp(min=1e-12).sqrt()
    v = s * curvature.sqrt()
    # Barndorff-Nielsen's form of the same tail, which cannot leave (0, 1).
    return _two_sided((w + torch.log(v / w) / w).clamp(min=0.0))


def _two_sided(z: Tensor) -> Tensor:
    log_tail = torch.special.log_ndtr(-z.abs())
    neg_log10_p: Tensor = (-(log_tail + math.log(2)) / math.log(10)).clamp(min=0.0)
    return neg_log10_p
