"""The pair scan: screen all pairs, test the strongest exactly, and keep one clump of pairs a signal.

Owns the order of these steps and what counts as tested. Knows no posterior: that is the fit's that takes the
pairs. Shapes: N samples, V variants, P pairs kept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special
from torch import Tensor

from snpdeconv.epistasis.clump import LeadPairs, LocalLdAdjustment, clump_members, lead, refine_leads
from snpdeconv.epistasis.dosages import Dosages
from snpdeconv.epistasis.screen import Screened, screen
from snpdeconv.epistasis.test import Null, retest_pairs
from snpdeconv.errors import InputError
from snpdeconv.genetics.gpu import has_bfloat16_units
from snpdeconv.genetics.packed import PackedGenotypes

logger = logging.getLogger(__name__)


SCREENED = 20_000
# Of them, so many go to the exact test, and no more than a few of each square of so many SNPs.
CANDIDATES = 3_000
CELL_SNPS = 16
MOST_OF_CELL = 3
# A second screen is made where leaders significant at this level explain this share of the residual (those of
# chance together explain as much), or where the first was inflated by this factor.
SIGNIFICANT = 0.05
EXPLAINED = 0.05
WIDE = 1.05
# The screen is rougher than the exact test: it lets pass what falls short by this many standard errors.
SCREEN_MARGIN = 0.5


@dataclass(frozen=True)
class PairScan:
    """Pairs of SNPs that may interact, clump by clump, the strongest clump first and its leader first."""

    i: NDArray[np.int64]  # (P,) first variant, smaller than `j`
    j: NDArray[np.int64]  # (P,) second variant
    # (P,) coefficient of the standardised product, as :func:`~snpdeconv.epistasis.dosages.pair_columns` makes
    # it
    effect: NDArray[np.float64]
    # (P,) exact statistic given the leaders selected before, divided by the inflation and discounted for what
    # the surroundings of a close pair explain; a normal deviate under the null
    t: NDArray[np.float64]
    # (P,) -log10 of its two-sided p-value, not corrected for the number of tests
    neg_log10_p: NDArray[np.float64]
    clump: NDArray[np.int64]  # (P,) number of the clump
    leads: NDArray[np.bool_]  # (P,) whether the pair leads its clump
    num_tested: int  # pairs that the screen tested
    # factor by which all statistics were divided, at least 1: how much wider the bulk of the screen is than a
    # normal one, or a binary residual than its probabilities say
    inflation: float
    num_flop: float  # arithmetic of the screen's matrix products

    def __len__(self) -> int:
        return len(self.i)

    @property
    def pairs(self) -> NDArray[np.int64]:
        """(P, 2) variants."""
        return np.column_stack([self.i, self.j])

    def significant(self, alpha: float = 0.05) -> NDArray[np.bool_]:
        """(P,) leaders whose p-value holds after Bonferroni's correction for all pairs tested."""
        passed: NDArray[np.bool_] = self.neg_log10_p > np.log10(max(1, self.num_tested) / alpha)
        return passed & self.leads

    @property
    def q_value(self) -> NDArray[np.float64]:
        """(P,) false discovery rate of the leaders (Benjamini and Hochberg 1995) among all pairs tested.

        NaN of alternatives. A clump counts as one discovery, which is conservative.
        """
        q = np.full(len(self), np.nan)
        leaders = np.flatnonzero(self.leads)
        order = leaders[np.argsort(-self.neg_log10_p[leaders], kind="stable")]
        expected = 10.0 ** -self.neg_log10_p[order] * self.num_tested
        rates = expected / np.arange(1, len(order) + 1)
        q[order] = np.minimum.accumulate(np.minimum(rates, 1.0)[::-1])[::-1]
        return q


def scan_pairs(
    genotypes: PackedGenotypes,
    residual: ArrayLike,
    *,
    chrom: NDArray[np.object_],
    position_bp: NDArray[np.int64],
    rows: NDArray[np.integer] | None = None,
    mean: ArrayLike | None = None,
    covariates: ArrayLike | None = None,
    min_distance_bp: int = 10_000,
    max_r: float = 0.3,
    min_carriers: float = 10.0,
    expected_false: float = 20.0,
    max_clumps: int = 60,
    max_pairs: int = 400,
    tile: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> PairScan:
    """Scans all pairs of SNPs for interactions in what single SNPs leave of a trait.

    Screens every pair by matrix products (:func:`~snpdeconv.epistasis.screen.screen`, which tells its cost),
    tests the strongest exactly, selects leaders forward, guards close ones against being one ungenotyped SNP,
    and adds to each leader the pairs that may be meant in its stead. After a fit that took these pairs, scan
    once more with what its dosage and dominance columns alone leave, the pairs' part added back: the single
    SNPs that had stood for pairs are gone from it, and the list replaces the first.

    `residual` (N,) is of the samples in `rows`, all by default; of a binary trait y - `mean`, its fitted
    probabilities (N,). The products are made independent of covariates (N, any number; no intercept). Not
    tested are pairs nearer than `min_distance_bp` on one chromosome, pairs of dosages more correlated than
    `max_r`, and those with fewer than `min_carriers`, expected and seen, of both minor alleles. Pairs are
    kept down to the p-value that `expected_false` of independent pairs would reach. `tile` (variants, a
    multiple of four) changes no result; neither does `dtype` of the screen's products (bfloat16 on a GPU), as
    all that is returned is tested anew.
    """
    dosages = Dosages.of(genotypes, rows=rows, device=device)
    given = np.asarray(residual, dtype=np.float64)
    if len(given) != dosages.num_samples:
        raise InputError(
            f"{len(given)} residuals for {dosages.num_samples} samples",
            where="residual",
            hint="give one for each sample in rows",
        )
    for name, values in (("chrom", chrom), ("position_bp", position_bp)):
        if len(values) != genotypes.num_variants:
            raise InputError(
                f"{len(values)} values for {genotypes.num_variants} variants",
                where=name,
                hint="give one a variant",
            )
    null = Null.of(given, covariates=covariates, mean=mean, device=dosages.device)
    num_pairs = genotypes.num_variants * (genotypes.num_variants - 1) / 2
    t_keep = _two_sided_deviate(min(1.0, expected_false / max(1.0, num_pairs)))
    scan = _Scan(
        dosages=dosages,
        chrom_code=np.unique(chrom.astype(str), return_inverse=True)[1],
        position_bp=position_bp,
        min_distance_bp=min_distance_bp,
        min_carriers=min_carriers,
        max_r=max_r,
        t_keep=t_keep,
        max_clumps=max_clumps,
        tile=tile,
        dtype=dtype or (torch.bfloat16 if has_bfloat16_units(dosages.device) else torch.float32),
    )
    leaders, screened = scan.leaders(null)
    groups = clump_members(dosages, null, leaders, max_pairs=max_pairs)
    tested = [
        retest_pairs(
            dosages,
            replace(null, residual=leaders.take(np.arange(own)).leave(null)),
            group,
            factor=leaders.discount[own] / screened.inflation,
        )
        for own, group in zip(np.flatnonzero(leaders.kept), groups, strict=False)
    ]
    clump = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    i, j = np.concatenate([np.empty((0, 2), dtype=np.int64), *groups]).T
    return PairScan(
        i=i,
        j=j,
        effect=np.concatenate([np.empty(0), *(part.effect for part in tested)]),
        t=np.concatenate([np.empty(0), *(part.statistic for part in tested)]),
        neg_log10_p=np.concatenate([np.empty(0), *(part.neg_log10_p for part in tested)]),
        clump=clump,
        leads=np.diff(clump, prepend=-1) > 0,
        num_tested=screened.num_tested,
        inflation=screened.inflation,
        num_flop=screened.num_flop,
    )


@dataclass(frozen=True)
class _Scan:
    """A scan: what all its screens share, and how leaders come of them."""

    dosages: Dosages
    chrom_code: NDArray[np.int64]
    position_bp: NDArray[np.int64]
    min_distance_bp: int
    min_carriers: float
    max_r: float
    t_keep: float
    max_clumps: int
    tile: int | None
    dtype: torch.dtype

    def leaders(self, null: Null) -> tuple[LeadPairs, Screened]:
        """Leaders, and the screen that tells the inflation.

        Strong pairs widen the residual, and among dense SNPs their shadows widen the bulk of the statistic,
        so that weaker pairs hide behind them: a second screen is made of what the leaders leave.
        """
        screened = self._screen(null, null.residual)
        leaders = self._lead(null, screened)
        strong = np.flatnonzero(leaders.t > _two_sided_deviate(SIGNIFICANT / max(1, screened.num_tested)))
        sure = leaders.take(strong).leave(null)
        shrunk = float(sure.square().sum()) < (1 - EXPLAINED) * float(null.residual.square().sum())
        if not len(leaders) or not (shrunk or screened.inflation > WIDE):
            return leaders, screened
        left = leaders.leave(null)
        again = self._screen(null, left)
        leaders = leaders.joined(self._lead(replace(null, residual=left), again))
        leaders = refine_leads(
            self.dosages,
            null,
            leaders,
            local_ld=self.local_ld,
            factor=1 / again.inflation,
            t_min=self.t_keep,
        )
        return leaders, replace(again, num_flop=screened.num_flop + again.num_flop)

    @property
    def local_ld(self) -> LocalLdAdjustment:
        """What leaders are guarded against."""
        return LocalLdAdjustment(self.dosages, self.chrom_code, self.position_bp)

    def _screen(self, null: Null, residual: Tensor) -> Screened:
        screened = screen(
            self.dosages,
            residual,
            variance=None if null.mean is None else null.weight,
            chrom_code=self.chrom_code,
            position_bp=self.position_bp,
            min_distance_bp=self.min_distance_bp,
            min_carriers=self.min_carriers,
            t_min=max(self.t_keep - SCREEN_MARGIN, 1.0),
            keep=SCREENED,
            tile=self.tile,
            dtype=self.dtype,
        )
        if null.mean is None:
            return screened
        # What the null model does not fit widens a binary residual beyond the variance of its probabilities.
        dispersion = float(residual.square().sum() / null.weight.sum())
        return replace(screened, inflation=max(screened.inflation, dispersion**0.5))

    def _lead(self, null: Null, screened: Screened) -> LeadPairs:
        candidates = _thin(screened)
        tested = retest_pairs(self.dosages, null, candidates, factor=1 / screened.inflation)
        allowed = (np.abs(tested.r) <= self.max_r) & (tested.carriers >= self.min_carriers)
        # Weak by itself, a pair can still be strong once another is accounted for.
        passed = np.flatnonzero(allowed & (np.abs(tested.statistic) >= self.t_keep - SCREEN_MARGIN))
        order = passed[np.argsort(-np.abs(tested.statistic[passed]), kind="stable")]
        return lead(
            self.dosages,
            null,
            candidates[order],
            tested.statistic[order],
            local_ld=self.local_ld,
            t_min=self.t_keep,
            max_clumps=self.max_clumps,
        )


def _thin(screened: Screened) -> NDArray[np.int64]:
    """Leaves of each small square of neighbouring SNPs the strongest pairs: the others show the same."""
    cells = np.column_stack([screened.first // CELL_SNPS, screened.second // CELL_SNPS])
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    order = np.argsort(cell.reshape(-1), kind="stable")  # strongest first within each cell
    starts = np.flatnonzero(np.r_[True, np.diff(cell.reshape(-1)[order]) > 0]) if len(order) else order
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    kept = np.flatnonzero(rank < MOST_OF_CELL)[:CANDIDATES]
    return np.column_stack([screened.first[kept], screened.second[kept]])


def _two_sided_deviate(p: float) -> float:
    return float(-special.ndtri(p / 2))
