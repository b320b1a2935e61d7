"""Association of each variant with a quantity beside a polygenic background, one chromosome left out of it.

Shapes: N samples, V variants, v variants of a chunk, Q covariates and intercept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats import common
from snpdeconv.stats.association import COLLINEAR, Floats, Marginal
from snpdeconv.stats.common import covariate_basis
from snpdeconv.stats.mixed_model import relationship_sum

# Dosages tested at once: float64, 64 MiB.
CHUNK_ELEMENTS = 2**23


def mixed_association(
    genotypes: PackedGenotypes,
    target: ArrayLike,
    *,
    chrom: NDArray[np.object_],
    heritability: float,
    covariates: ArrayLike | None = None,
    device: str | torch.device = "cpu",
) -> Marginal:
    """Tests each variant by generalised least squares under V = h K + (1 - h) I.

    K is the kinship of all chromosomes but the variant's own, as one that holds the variant would take part
    of its effect for background (Listgarten et al. 2012, Nat. Methods 9:525; Yang et al. 2014, Nat. Genet.
    46:100). The variance is estimated for each chromosome; variants of linked chromosomes do not exist.
    Missing dosages are at the mean of their variant. `target` (N,) and covariates (N, Q - 1; no intercept)
    are of all samples, `chrom` (V,) names at least two chromosomes. Costs N³ / 3 a chromosome and 2 N² V.
    """
    trait = torch.from_numpy(np.asarray(target, dtype=np.float64)).to(device)
    basis = torch.from_numpy(covariate_basis(covariates, num_samples=len(trait))).to(device)
    total, num_used = relationship_sum(genotypes, device=device)
    found = np.full((4, genotypes.num_variants), np.nan)
    for name in dict.fromkeys(chrom):
        columns = np.flatnonzero(chrom == name)
        own = genotypes.take(columns=columns)
        part, num_own = relationship_sum(own, device=device)
        matrix = (total - part).mul_(heritability / max(1, num_used - num_own))
        matrix.diagonal().add_(1 - heritability)
        found[:, columns] = _Chromosome.of(matrix, trait, basis).test(own)
    beta, se, statistic, neg_log10_p = found
    varies = np.isfinite(beta)
    return Marginal(
        beta=beta,
        se=se,
        neg_log10_p=np.where(varies, neg_log10_p, 0.0),
        statistic=np.where(varies, statistic, 0.0),
        lambda_gc=common.inflation(neg_log10_p[varies]) if varies.any() else float("nan"),
    )


@dataclass(frozen=True)
class _Chromosome:
    """What the tests of a chromosome's variants share."""

    root: Tensor  # (N, N) lower Cholesky factor of V
    residual: Tensor  # (N,) V⁻¹ times what covariates leave of the trait
    white_basis: Tensor  # (N, Q) orthonormal, of the covariates after whitening
    total: float  # sum of squares that covariates leave of the whitened trait
    df: int  # of a test, the variant counted

    @classmethod
    def of(cls, matrix: Tensor, trait: Tensor, basis: Tensor) -> _Chromosome:
        root = torch.linalg.cholesky(matrix)
        white = torch.linalg.solve_triangular(root, torch.column_stack([trait, basis]), upper=False)
        white_basis = torch.linalg.qr(white[:, 1:]).Q
        left = white[:, 0] - white_basis @ (white_basis.T @ white[:, 0])
        residual = torch.linalg.solve_triangular(root.T, left[:, None], upper=True)[:, 0]
        return cls(root, residual, white_basis, float(left @ left), len(trait) - basis.shape[1] - 1)

    def test(self, genotypes: PackedGenotypes) -> Floats:
        """(4, V) coefficient, standard error, t and -log10 p; NaN where a variant does not vary."""
        parts = [
            self._test(torch.from_numpy(codes).to(self.root.device))
            for _, codes in genotypes.column_chunks(max_variants=max(4, CHUNK_ELEMENTS // len(self.root)))
        ]
        return np.concatenate(parts, axis=1)

    def _test(self, codes: Tensor) -> Floats:
        called = codes != MISSING
        dosage = codes.double() * called
        mean = dosage.sum(0) / called.sum(0).clamp(min=1)
        dosage = torch.where(called, dosage, mean)
        white = torch.linalg.solve_triangular(self.root, dosage, upper=False)
        squares = white.square().sum(0)
        variation = (squares - (self.white_basis.T @ white).square().sum(0)).cpu().numpy()
        varies = variation > COLLINEAR * squares.cpu().numpy()
        score = (self.residual @ dosage).cpu().numpy()
        beta = np.divide(score, variation, out=np.full_like(score, np.nan), where=varies)
        left = np.maximum(self.total - beta * score, common.SMALLEST_RESIDUAL * self.total)
        se = np.sqrt(left / self.df / np.where(varies, variation, np.nan))
        return np.stack([beta, se, beta / se, common.t_tail(beta / se, df=self.df)])
