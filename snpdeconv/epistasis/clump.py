"""Clumps: of many pairs that show one interaction the strongest leads, likely alternatives stay with it.

Owns which pairs stand for a signal of their own, and which are the mark of one ungenotyped SNP instead.
Shapes: N samples, V variants, C candidates, L clumps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.epistasis.dosages import COLLINEAR, Dosages, batch_of_products, batches
from snpdeconv.epistasis.test import Null, retest_pairs

# Pairs of one chromosome nearer than this can both be linked with one SNP that was not genotyped.
LINKED_BP = 500_000
WINDOW_BP = 100_000
LOCAL_WINDOW_SNPS = 600
COMPONENTS = 60
SAMPLES_A_COMPONENT = 20
EXPLAINED = 0.99


@dataclass(frozen=True)
class LocalLdAdjustment:
    """Finds what the neighbourhood of a pair explains."""

    dosages: Dosages
    chrom_code: NDArray[np.int64]
    position_bp: NDArray[np.int64]

    def near(self, pair: NDArray[np.int64]) -> bool:
        """Whether one SNP could be linked with both members."""
        i, j = pair
        distance = abs(int(self.position_bp[i]) - int(self.position_bp[j]))
        return bool(self.chrom_code[i] == self.chrom_code[j]) and distance < LINKED_BP

    def discount(self, null: Null, residual: Tensor, pair: NDArray[np.int64], column: Tensor) -> float:
        """Factor in [0, 1] by which a pair's statistic falls once its surroundings are in the model.

        Two SNPs linked with an ungenotyped causal one mark the haplotypes that carry it, so their product
        predicts the trait without any interaction. To the extent that other SNPs nearby mark these haplotypes
        as well, principal components of their dosages take the causal SNP out of the product; an interaction
        keeps the statistic of what is left, the square root of the product's unexplained share.

        `residual` (N,) is what other pairs leave, `column` (N,) the standardised product. 0 if the sign
        changes.
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
        around = around[np.argsort(distance[around], kind="stable")[:LOCAL_WINDOW_SNPS]]
        z = self.dosages.columns(np.sort(around)) * root[:, None]
        size, direction = torch.linalg.eigh((z.T @ z).double())
        size, direction = size.flip(0).clamp(min=0), direction.flip(1)
        most = max(2, min(COMPONENTS, self.dosages.num_samples // SAMPLES_A_COMPONENT))
        enough = int((size.cumsum(0) < EXPLAINED * size.sum()).sum()) + 1
        kept = min(most, enough, int((size > 1e-6 * size[0]).sum()))
        basis: Tensor = z @ (direction[:, :kept] / size[:kept].sqrt()).float()
        return basis


# One float32 array of (N, C) candidate columns: 256 MiB.
CANDIDATE_ELEMENTS = 2**26
# Squared correlation of two products above which they show the same interaction.
SAME_SIGNAL_R2 = 0.3
# Squared correlation of two SNPs above which one may stand for the other in a pair.
WINDOW_R2 = 0.3
WINDOW_SNPS = 40
LD_TILE = 2048
# An alternative whose squared t is smaller by this has a posterior odds of exp(-10) to the leader.
SUPPORT = 20.0


@dataclass(frozen=True)
class LeadPairs:
    """The pairs that lead a clump."""

    pairs: NDArray[np.int64]  # (L, 2) variants, in the order selected
    t: NDArray[np.float64]  # (L,) statistic given those selected before
    discount: NDArray[np.float64]  # (L,) factor of t that the surroundings leave
    kept: NDArray[np.bool_]  # (L,) whether that is still strong. The others only take their shadows out.
    columns: Tensor  # (N, L) their standardised products

    def __len__(self) -> int:
        return len(self.pairs)

    def joined(self, other: LeadPairs) -> LeadPairs:
        """Both, these first."""
        return LeadPairs(
            pairs=np.concatenate([self.pairs, other.pairs]),
            t=np.concatenate([self.t, other.t]),
            discount=np.concatenate([self.discount, other.discount]),
            kept=np.concatenate([self.kept, other.kept]),
            columns=torch.cat([self.columns, other.columns], dim=1),
        )

    def take(self, index: NDArray[np.int64]) -> LeadPairs:
        """Some of them."""
        return LeadPairs(
            pairs=self.pairs[index],
            t=self.t[index],
            discount=self.discount[index],
            kept=self.kept[index],
            columns=self.columns[:, torch.from_numpy(index).to(self.columns.device)],
        )

    def leave(self, null: Null, *, but: int | None = None) -> Tensor:
        """(N,) what the leaders, all or all but one, leave of the residual, fitted together."""
        if not len(self):
            return null.residual
        gram = self.columns.T @ (null.weight[:, None] * self.columns)
        effect = _solve(gram, self.columns.T @ null.residual)
        if but is not None:
            effect[but] = 0.0
        return null.residual - null.weight * (self.columns @ effect)


def lead(
    dosages: Dosages,
    null: Null,
    pairs: NDArray[np.int64],
    statistic: NDArray[np.float64],
    *,
    local_ld: LocalLdAdjustment,
    t_min: float,
    max_clumps: int,
) -> LeadPairs:
    """Selects forward: the strongest candidate given those selected leads, what shows the same joins it.

    A pair in weak LD with a strong one is significant by itself and would lead a clump of its own; given the
    strong one it is not, and it is dropped. Candidates (C, 2) come strongest first, with their exact t (C,).
    """
    most = max(1, CANDIDATE_ELEMENTS // max(1, dosages.num_samples))
    pairs, statistic = pairs[:most], statistic[:most]
    columns = torch.empty(dosages.num_samples, len(pairs), device=dosages.device)
    for batch in batches(len(pairs), num_samples=dosages.num_samples):
        columns[:, batch] = batch_of_products(dosages, pairs[batch]).values
    norm = (null.weight @ columns.square()).clamp(min=1e-12)
    score = columns.T @ null.residual
    # Conditioning changes the numerator; the exact test's variance stays.
    t_per_score = torch.from_numpy(statistic).to(score) / torch.where(score == 0, 1.0, score)
    conditional = score.clone()
    free = torch.ones(len(pairs), dtype=torch.bool, device=dosages.device)
    index: list[int] = []
    selected: list[float] = []
    products: list[Tensor] = []
    discount: list[float] = []
    kept: list[bool] = []
    residual = null.residual
    while len(index) < max_clumps and bool(free.any()):
        t = (conditional * t_per_score).abs().masked_fill(~free, 0.0)
        best = int(t.argmax())
        if float(t[best]) < t_min:
            break
        share = 1.0
        if local_ld.near(pairs[best]):
            share = local_ld.discount(null, residual, pairs[best], columns[:, best])
        index.append(best)
        selected.append(float(t[best]))
        discount.append(share)
        kept.append(float(t[best]) * share >= t_min)
        products.append(columns.T @ (null.weight * columns[:, best]))
        free &= products[-1].square() <= SAME_SIGNAL_R2 * norm * norm[best]
        free[best] = False
        effect = _solve(torch.stack([product[index] for product in products], dim=1), score[index])
        conditional = score - torch.stack(products, dim=1) @ effect
        residual = null.residual - null.weight * (columns[:, index] @ effect)
    return LeadPairs(
        pairs=pairs[index],
        t=np.array(selected),
        discount=np.array(discount),
        kept=np.array(kept, dtype=bool),
        columns=columns[:, index],
    )


def refine_leads(
    dosages: Dosages,
    null: Null,
    leaders: LeadPairs,
    *,
    local_ld: LocalLdAdjustment,
    factor: float,
    t_min: float,
) -> LeadPairs:
    """Judges the leaders whose members are close once more, now that all the others are known.

    When they were selected, stronger pairs still were in the residual and made the verdict on them noisy.
    `factor` is that of every statistic.
    """
    discount, kept = leaders.discount.copy(), leaders.kept.copy()
    for own, pair in enumerate(leaders.pairs):
        if not local_ld.near(pair):
            continue
        residual = leaders.leave(null, but=own)
        discount[own] = local_ld.discount(null, residual, pair, leaders.columns[:, own])
        alone = replace(null, residual=residual)
        tested = retest_pairs(dosages, alone, pair[None], factor=factor * discount[own])
        kept[own] = abs(tested.statistic[0]) >= t_min
    return replace(leaders, discount=discount, kept=kept)


def clump_members(
    dosages: Dosages, null: Null, leaders: LeadPairs, *, max_pairs: int
) -> list[NDArray[np.int64]]:
    """Finds for each leader that was kept the (any number, 2) pairs that may be meant in its stead.

    All products of the SNPs linked with its one member and those linked with its other are tested on the
    residual of the other leaders. Those within ``SUPPORT`` of the best squared t stay, or within less where
    `max_pairs` in all would be exceeded: the same loss of likelihood is the limit in every clump. The leader
    comes first, then the others from the strongest on; a pair is in the first clump that finds it.
    """
    chosen = np.flatnonzero(leaders.kept)[:max_pairs]
    if not len(chosen):
        return []
    windows = _windows(dosages, np.unique(leaders.pairs[chosen]))
    found, loss = [], []
    for own in chosen:
        first, second = leaders.pairs[own]
        left, right = windows[int(first)], windows[int(second)]
        squared = _products(dosages, leaders.leave(null, but=int(own)), null, left, right) ** 2
        rows, columns = np.nonzero((squared >= squared.max() - SUPPORT) & (left[:, None] != right))
        pairs = np.sort(np.column_stack([left[rows], right[columns]]), axis=1)
        lost = squared.max() - squared[rows, columns]
        pairs = np.concatenate([leaders.pairs[[own]], pairs])
        lost = np.concatenate([[-1.0], lost])  # the leader is always there, and first
        order = np.argsort(lost, kind="stable")
        found.append(pairs[order])
        loss.append(lost[order])
    clump = np.repeat(np.arange(len(found)), [len(pairs) for pairs in found])
    pairs, lost = np.concatenate(found), np.concatenate(loss)
    once = np.sort(np.unique(pairs, axis=0, return_index=True)[1])
    once = once[np.argsort(lost[once], kind="stable")[:max_pairs]]
    return [pairs[np.sort(once[clump[once] == own])] for own in range(len(found))]


def _products(
    dosages: Dosages, residual: Tensor, null: Null, left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Homoscedastic t of all products of two windows, orthogonal to their members: (a,), (b,) -> (a, b).

    With x and y the two members, centred, the product less its mean, a x and b y has to be orthogonal to x
    and y; sums over samples of x y, x² y, x y² and x² y² then give its sum with the residual and its square.
    """
    weight, total = null.weight[:, None], null.weight.sum()
    x, y = (z - (weight * z).sum(0) / total for z in (dosages.columns(window) for window in (left, right)))
    xx, yy = (weight * x.square()).sum(0)[:, None], (weight * y.square()).sum(0)[None]
    wx, wxx = (weight * x).T, (weight * x.square()).T
    xy, xxy, xyy, xxyy = wx @ y, wxx @ y, wx @ y.square(), wxx @ y.square()
    determinant = xx * yy - xy.square()
    solvable = determinant > COLLINEAR * xx * yy
    determinant = torch.where(solvable, determinant, 1.0)
    a, b = (xxy * yy - xyy * xy) / determinant, (xyy * xx - xxy * xy) / determinant
    score = (x * residual[:, None]).T @ y - xy / total * residual.sum()
    score -= a * (residual @ x)[:, None] + b * (residual @ y)[None]
    norm = xxyy - xy.square() / total - a * xxy - b * xyy
    spread = 1.0 if null.mean is not None else residual.square().sum() / total
    tested = solvable & (norm > COLLINEAR * xxyy)
    t = torch.where(tested, score / (norm * spread).clamp(min=1e-12).sqrt(), 0.0)
    return t.double().cpu().numpy()


def _windows(dosages: Dosages, snps: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
    """SNPs linked with each of (s,) SNPs, the most linked first, itself among them."""
    own = dosages.columns(snps)
    num_variants = dosages.genotypes.num_variants
    r2 = torch.empty(len(snps), num_variants, device=dosages.device)
    for start in range(0, num_variants, LD_TILE):
        stop = min(start + LD_TILE, num_variants)
        r2[:, start:stop] = (own.T @ dosages.tile(start, stop) / dosages.num_samples).square()
    out = {}
    for s, snp in enumerate(snps):
        linked = torch.nonzero(r2[s] > WINDOW_R2)[:, 0]
        order = torch.argsort(r2[s, linked], descending=True, stable=True)[:WINDOW_SNPS]
        out[int(snp)] = linked[order].cpu().numpy()
    return out


def _solve(gram: Tensor, score: Tensor) -> Tensor:
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    solution: Tensor = torch.linalg.solve((gram + ridge).double(), score.double())
    return solution.to(score)
