"""The exact test of chosen pairs: the product beside both dosages, both dominance columns and covariates.

Owns the statistic and p-value that are reported. Knows neither which pairs were chosen nor why.
Shapes: N samples, P pairs of a batch, Q covariates, B = 4 columns beside the product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from snpdeconv.epistasis.dosages import COLLINEAR, Dosages, batches
from snpdeconv.stats import common
from snpdeconv.stats.common import binary_score_tail, covariate_basis

RIDGE = 1e-6
# A fitted probability of 0 or 1 would let a single sample decide.
SMALLEST_MEAN = 1e-5


@dataclass(frozen=True)
class Null:
    """The trait without pairs."""

    residual: Tensor  # (N,) float32
    mean: Tensor | None  # (N,) probabilities of a binary trait under the null; None for a quantitative one
    # (N, Q) orthonormal covariates with the intercept; for a binary trait in the metric of `weight`
    basis: Tensor
    weight: Tensor  # (N,) μ(1 - μ), or 1

    @classmethod
    def of(
        cls,
        residual: ArrayLike,
        *,
        covariates: ArrayLike | None = None,
        mean: ArrayLike | None = None,
        device: torch.device,
    ) -> Null:
        """Makes it from (N,) residuals, (N, any number) covariates and (N,) probabilities."""
        r = np.asarray(residual, dtype=np.float64)
        if mean is None:
            weight, probability = np.ones_like(r), None
        else:
            probability = np.clip(np.asarray(mean, dtype=np.float64), SMALLEST_MEAN, 1 - SMALLEST_MEAN)
            weight = probability * (1 - probability)
        root = np.sqrt(weight)[:, None]
        left, size, _ = np.linalg.svd(
            root * covariate_basis(covariates, num_samples=len(r)), full_matrices=False
        )
        basis = left[:, size > 1e-8 * size[0]] / root
        if mean is None:  # A binary residual has to stay case - mean, and the score needs no more than that.
            r = r - basis @ (basis.T @ r)
        return cls(
            residual=_float32(r, device),
            mean=None if probability is None else _float32(probability, device),
            basis=_float32(basis, device),
            weight=_float32(weight, device),
        )

    def project(self, columns: Tensor) -> Tensor:
        """Takes the covariates out of (N, v) columns."""
        return columns - self.basis @ (self.basis.T @ (self.weight[:, None] * columns))


@dataclass(frozen=True)
class Tested:
    """Exact tests of pairs."""

    # (P,) coefficient of the standardised product (trait's unit, or log odds by one step)
    effect: NDArray[np.float64]
    # (P,) t, or for a binary trait the normal quantile of the saddlepoint p-value, with sign
    statistic: NDArray[np.float64]
    neg_log10_p: NDArray[np.float64]  # (P,)
    r: NDArray[np.float64]  # (P,) correlation of the two dosages
    carriers: NDArray[np.float64]  # (P,) samples that carry both minor alleles


def retest_pairs(
    dosages: Dosages, null: Null, pairs: NDArray[np.int64], *, factor: float | NDArray[np.float64]
) -> Tested:
    """Tests (P, 2) pairs, each by itself; one or (P,) factors scale the statistic.

    Quantitative: least squares of the residual on the product, both dosages, both heterozygote indicators and
    the covariates. The standard error is the larger of the homoscedastic and the HC3 one (MacKinnon and White
    1985): the latter is needed where a SNP of a strong pair meets others, the former where few double
    carriers make the latter noisy. Binary: score test with saddlepoint tail.
    """
    parts = [
        _test_batch(dosages, null, pairs[b]) for b in batches(len(pairs), num_samples=4 * dosages.num_samples)
    ]
    if not parts:
        nothing = np.empty(0)
        return Tested(nothing, nothing, nothing, nothing, nothing)
    effect, statistic, r, carriers = (
        torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True)
    )
    statistic = statistic * factor
    df = dosages.num_samples - null.basis.shape[1] - 5
    neg_log10_p = (
        common.normal_tail(statistic) if null.mean is not None else common.t_tail(statistic, df=max(1, df))
    )
    return Tested(effect, statistic, neg_log10_p, r, carriers)


def _test_batch(
    dosages: Dosages, null: Null, pairs: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    unique, place = np.unique(pairs, return_inverse=True)
    i, j = torch.from_numpy(place.reshape(pairs.shape).T.copy()).to(dosages.device)
    codes = dosages.codes(unique)
    # Samples last: gathering a pair's members copies whole rows, and the sums below run along them.
    carries = dosages.carriers(codes, unique).T.contiguous()
    z = dosages.standardise(codes, unique)
    het = null.project(dosages.heterozygotes(codes))
    het = (het / het.square().mean(0).sqrt().clamp(min=COLLINEAR)).T.contiguous()
    raw, z = z.T.contiguous(), null.project(z).T.contiguous()
    product = raw[i] * raw[j]  # (P, N)
    r = product.mean(1)
    product = null.project(product.T).T
    beside = torch.stack([z[i], z[j], het[i], het[j]], dim=1)  # (P, B, N)
    gram = torch.bmm(beside * null.weight, beside.transpose(1, 2))
    # A dominance column that does not vary, or members in perfect LD, leave the matrix singular.
    gram += RIDGE * gram.diagonal(dim1=1, dim2=2).amax(1)[:, None, None] * torch.eye(4, device=gram.device)
    explained = torch.bmm(beside, (product * null.weight)[:, :, None])
    if null.mean is None:
        explained = torch.cat([explained, (beside @ null.residual)[:, :, None]], dim=2)
    fitted = torch.linalg.solve(gram.double(), explained.double()).float()  # (P, B, 1 or 2)
    size = product.square() @ null.weight
    product = product - torch.bmm(fitted[:, None, :, 0], beside)[:, 0]
    spread = product.square() @ null.weight
    tested = spread > COLLINEAR * size
    spread = torch.where(tested, spread, 1.0)
    score = product @ null.residual
    if null.mean is not None:
        neg_log10_p = binary_score_tail(product.T, score, null.mean)
        deviate = torch.from_numpy(common.deviate(neg_log10_p.cpu().numpy()))
        statistic = deviate.to(score) * torch.sign(score)
    else:
        left = null.residual - torch.bmm(fitted[:, None, :, 1], beside)[:, 0]
        left = left - product * (score / spread)[:, None]
        df = left.shape[1] - null.basis.shape[1] - beside.shape[1] - 1
        leverage = (product.square() / spread[:, None]).clamp(max=1 - 1e-3)
        homoscedastic = left.square().sum(1) / max(1, df) * spread
        robust = (product * left / (1 - leverage)).square().sum(1)
        statistic = score / torch.maximum(homoscedastic, robust).clamp(min=1e-12).sqrt()
    effect = torch.where(tested, score / (spread * null.weight.sum()).sqrt(), 0.0)
    carriers = (carries[i] & carries[j]).sum(1)
    return effect, torch.where(tested, statistic, 0.0), r, carriers


def _float32(values: NDArray[np.float64], device: torch.device) -> Tensor:
    return torch.as_tensor(values.astype(np.float32), device=device)
