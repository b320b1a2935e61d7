"""What the SNPs around a pair explain of it: the guard against interactions that are one ungenotyped SNP.

Owns the local basis and the discount it means for a statistic. Knows no list of pairs and no p-value.
Shapes: N samples, W SNPs of a window, K local components.
Source of the problem: Wood et al. 2014 (Nature 514:E3), de los Campos et al. 2019 (G3 9:1429).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.interpret.pairs.columns import Dosages
from snpdeconv.interpret.pairs.retest import Null

# Pairs of one chromosome nearer than this can both be linked with one SNP that was not genotyped.
LINKED_BP = 500_000
WINDOW_BP = 100_000
WINDOW_SNPS = 600
COMPONENTS = 60
SAMPLES_A_COMPONENT = 20
EXPLAINED = 0.99


@dataclass(frozen=True)
class Surroundings:
    """Finds what the neighbourhood of a pair explains.

    Attributes:
        dosages: Genotypes of the N samples.
        chrom_code: (V,) chromosome as a number.
        position_bp: (V,) places.
    """

    dosages: Dosages
    chrom_code: NDArray[np.int64]
    position_bp: NDArray[np.int64]

    def near(self, pair: NDArray[np.int64]) -> bool:
        """Whether one SNP could be linked with both members."""
        i, j = pair
        distance = abs(int(self.position_bp[i]) - int(self.position_bp[j]))
        return bool(self.chrom_code[i] == self.chrom_code[j]) and distance < LINKED_BP

    def discount(self, null: Null, residual: Tensor, pair: NDArray[np.int64], column: Tensor) -> float:
        """Factor by which a pair's statistic falls once its surroundings are in the model.

        Two SNPs linked with an ungenotyped causal one mark the haplotypes that carry it, so their product
        predicts the trait without any interaction. To the extent that other SNPs nearby mark these haplotypes
        as well, principal components of their dosages take the causal SNP out of the product; an interaction
        keeps the statistic of what is left, the square root of the product's unexplained share.

        Args:
            null: The trait without pairs.
            residual: (N,) what other pairs leave.
            pair: (2,) variants.
            column: (N,) standardised product.

        Returns:
            Statistic given the surroundings over that without them, at most 1; 0 if the sign changes.
        """
        root = null.weight.sqrt()
        scaled = column * root
        score = residual @ column
        size = scaled.norm()
        basis = self._basis(pair, root)
        left = scaled - basis @ (basis.T @ scaled)
        # A binary residual is already a score, that is, weight times what its regression would be of.
        response = residual if null.mean is None else residual / root.clamp(min=1e-6)
        conditional = (left @ response) / left.norm().clamp(min=1e-6)
        return float((conditional / (score / size)).clamp(0.0, 1.0))

    def _basis(self, pair: NDArray[np.int64], root: Tensor) -> Tensor:
        """(N, K) orthonormal components of the dosages around both members."""
        distance = np.abs(self.position_bp[:, None] - self.position_bp[pair]).min(axis=1)
        around = np.flatnonzero((distance < WINDOW_BP) & (self.chrom_code == self.chrom_code[pair[0]]))
        around = around[np.argsort(distance[around], kind="stable")[:WINDOW_SNPS]]
        z = self.dosages.columns(np.sort(around)) * root[:, None]
        size, direction = torch.linalg.eigh((z.T @ z).double())
        size, direction = size.flip(0).clamp(min=0), direction.flip(1)
        most = max(2, min(COMPONENTS, self.dosages.num_samples // SAMPLES_A_COMPONENT))
        enough = int((size.cumsum(0) < EXPLAINED * size.sum()).sum()) + 1
        kept = min(most, enough, int((size > 1e-6 * size[0]).sum()))
        basis: Tensor = z @ (direction[:, :kept] / size[:kept].sqrt()).float()
        return basis
