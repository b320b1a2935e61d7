"""How much of a trait's variance each LD block explains, drawn from the posterior of the single effects.

Owns the draws and how a pair across blocks is shared. Knows no file and no name.
Shapes: N samples, V variants, K blocks, L effects, P columns that act, D draws, C covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snpdeconv.epistasis import pair_columns
from snpdeconv.finemapping.columns import Scaling
from snpdeconv.finemapping.interactions import InteractionEffects
from snpdeconv.finemapping.susie import LOGISTIC_VARIANCE, SingleEffect, SingleEffectsFit
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.ld import Blocks, draw_rows
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats.common import covariate_basis

Floats = NDArray[np.float64]

# Samples used at most, for nothing but the correlations among columns: known to .014 from so many.
MAX_ROWS = 5_000
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class BlockPVE:
    """Shares of the trait's variance beside covariates; of a binary trait, of its logistic liability."""

    pve: Floats  # (K,) posterior mean of each block's share
    low: Floats  # (K,) lower end of the 95 % interval
    high: Floats  # (K,) upper end
    total: float  # posterior mean of the share of all blocks together, what they have in common counted once
    total_low: float  # lower end of its 95 % interval
    total_high: float  # upper end


def block_pve(
    fits: Sequence[SingleEffectsFit],
    genotypes: PackedGenotypes,
    *,
    kind: TraitKind,
    blocks: Blocks,
    rows: NDArray[np.integer] | None = None,
    covariates: ArrayLike | None = None,
    interactions: InteractionEffects | None = None,
    num_draws: int = 200,
    seed: int = 0,
) -> BlockPVE:
    """Explained variance of each block, over the samples of the fit; 0 where no effect was found.

    Each draw chooses for every effect the column that acts and its size; a block's score is the sum of those
    of its columns, and its share is the variance of the score over that of all scores and the residual (Zhou,
    Carbonetto and Stephens 2013, PLoS Genetics 9:e1003264), whose variance on the logistic scale is pi² / 3.
    A pair across two blocks gives each half of its variance. Shares of blocks in LD with each other need not
    sum to the total. They speak of the effects that were found: what was too weak to be seen is no block's.
    Of classes, each fitted against the rest, a block has the share of the class of which it explains most,
    and so has the total.

    `rows` and covariates (n, C) are as given to the fit, `interactions` those of its last columns.
    """
    num_fitted = genotypes.num_samples if rows is None else len(rows)
    chosen = draw_rows(num_fitted, rows=None, max_rows=MAX_ROWS, seed=seed)
    given = np.empty((num_fitted, 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    basis = covariate_basis(given[chosen], num_samples=len(chosen))
    fitted = chosen if rows is None else np.asarray(rows)[chosen]
    parts = [
        _draw_shares(
            fit,
            genotypes,
            kind=kind,
            blocks=blocks,
            rows=fitted,
            basis=basis,
            modifiers=None if interactions is None else given[np.ix_(chosen, interactions.covariate)],
            num_draws=num_draws,
            rng=np.random.default_rng([seed, number]),
        )
        for number, fit in enumerate(fits)
    ]
    drawn = np.stack(parts)  # (fits, D, K + 1)
    most = drawn.mean(axis=1).argmax(axis=0)
    share = drawn[most, :, np.arange(drawn.shape[2])]  # (K + 1, D)
    mean, (low, high) = share.mean(axis=1), np.quantile(share, INTERVAL, axis=1)
    return BlockPVE(
        pve=mean[:-1],
        low=low[:-1],
        high=high[:-1],
        total=float(mean[-1]),
        total_low=float(low[-1]),
        total_high=float(high[-1]),
    )


def _draw_shares(
    fit: SingleEffectsFit,
    genotypes: PackedGenotypes,
    *,
    kind: str,
    blocks: Blocks,
    rows: NDArray[np.int64],
    basis: Floats,
    modifiers: Floats | None,
    num_draws: int,
    rng: np.random.Generator,
) -> Floats:
    """(D, K + 1) shares of the blocks and, last, of all of them."""
    acting = _Acting.drawn(fit, num_draws=num_draws, rng=rng)
    correlation = _correlation(fit, genotypes, rows=rows, acting=acting, basis=basis, modifiers=modifiers)
    size = acting.draw_sizes(correlation, rng=rng)
    variance = np.zeros((num_draws, len(blocks) + 1))
    variance[:, -1] = _variances(size, correlation)
    first, second = blocks.of_variant[np.maximum(acting.variants, 0)].T
    across = (acting.variants[:, 1] >= 0) & (first != second)
    # A score's variance goes with the square of its sizes: half of it for each of two blocks.
    shared = size * np.where(across, np.sqrt(0.5), 1.0)
    for block in np.unique(np.concatenate([first, second[across]])):
        inside = np.flatnonzero((first == block) | (across & (second == block)))
        variance[:, block] = _variances(shared[:, inside], correlation[np.ix_(inside, inside)])
    noise = np.full(num_draws, LOGISTIC_VARIANCE)
    if kind == "quantitative":
        df = len(fit.fitted) - basis.shape[1]
        noise = fit.noise * df / rng.chisquare(df, num_draws)
    shares: Floats = variance / (variance[:, -1:] + noise[:, None])
    return shares


def _variances(size: Floats, correlation: Floats) -> Floats:
    """(D,) variance of the sum of columns of variance 1 times sizes (D, P)."""
    variance: Floats = ((size @ correlation) * size).sum(axis=1)
    return variance


@dataclass(frozen=True)
class _Acting:
    """Which columns each effect acts by in each draw: one, and maybe the dominance of its SNP beside it."""

    column: NDArray[np.int64]  # (P,) columns that act in any draw
    variants: NDArray[np.int64]  # (P, 2) SNPs that take part in them
    place: NDArray[np.int64]  # (D, 2L) of the first columns of all effects, then of the second ones
    acts: NDArray[np.bool_]  # (D, 2L) whether it acts; a first one always does
    mean: Floats  # (D, 2L) of its size
    precision: Floats  # (D, 2L) inverse variance of its size
    prior_precision: Floats  # (2L,) what of this is the prior's

    @classmethod
    def drawn(cls, fit: SingleEffectsFit, *, num_draws: int, rng: np.random.Generator) -> _Acting:
        num_effects = len(fit.effects)
        shape = (num_draws, 2 * num_effects)
        column, mean, precision = np.empty(shape, dtype=np.int64), np.empty(shape), np.empty(shape)
        variants = np.empty((*shape, 2), dtype=np.int64)
        acts = np.ones(shape, dtype=bool)
        for number, effect in enumerate(fit.effects):
            share = np.maximum(effect.share, 0.0)
            first = rng.choice(len(share), size=num_draws, p=share / share.sum())
            second, acts[:, num_effects + number] = _beside(effect, first, rng=rng)
            for slot, chosen in ((number, first), (num_effects + number, second)):
                column[:, slot], variants[:, slot] = effect.columns[chosen], effect.variants[chosen]
                mean[:, slot], precision[:, slot] = effect.mean[chosen], 1 / effect.variance[chosen]
        unique, where, place = np.unique(column, return_index=True, return_inverse=True)
        return cls(
            column=unique,
            variants=variants.reshape(-1, 2)[where],
            place=place.reshape(shape),
            acts=acts,
            mean=mean,
            precision=precision,
            prior_precision=np.tile(1 / fit.prior_variances, 2),
        )

    def draw_sizes(self, correlation: Floats, *, rng: np.random.Generator) -> Floats:
        """Sizes (D, P) of the columns, given their correlations (P, P).

        The fit takes the effects' sizes as independent, which makes each too certain where columns are
        correlated; here the sizes of a draw have the joint posterior of a regression on its columns.
        """
        from_data = np.sqrt(np.maximum(self.precision - self.prior_precision, 0)) * self.acts
        joint = correlation[self.place[:, :, None], self.place[:, None, :]]
        joint *= from_data[:, :, None] * from_data[:, None, :]
        every = np.arange(self.place.shape[1])
        joint[:, every, every] = self.precision
        root = np.linalg.cholesky(joint)
        deviation = np.linalg.solve(root.transpose(0, 2, 1), rng.normal(size=(*self.place.shape, 1)))[..., 0]
        size = np.zeros((len(self.place), len(self.column)))
        np.add.at(size, (np.arange(len(size))[:, None], self.place), (self.mean + deviation) * self.acts)
        return size


def _beside(
    effect: SingleEffect, first: NDArray[np.int64], *, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draws whether the dominance of the same SNP acts beside the column drawn first; (D,) which, whether.

    Where there is none the first column stands in its place.
    """
    partner = np.arange(len(effect.columns))
    where = {int(column): place for place, column in enumerate(effect.columns)}
    for place in np.flatnonzero(effect.beside):
        dosage = where.get(int(effect.variants[place, 0]))
        if dosage is not None:
            partner[dosage] = place
    second = partner[first]
    acts = (second != first) & (rng.random(len(first)) * effect.alpha[first] < effect.beside[second])
    return second, acts


def _correlation(
    fit: SingleEffectsFit,
    genotypes: PackedGenotypes,
    *,
    rows: NDArray[np.int64],
    acting: _Acting,
    basis: Floats,
    modifiers: Floats | None,
) -> Floats:
    """(P, P) correlation of the columns that act, covariates projected out.

    The last columns of the fit are dosages times `modifiers` (n, E).
    """
    used = np.unique(acting.variants[acting.variants >= 0])
    variants = np.where(acting.variants < 0, -1, np.searchsorted(used, acting.variants))
    cohort = genotypes.take(rows=rows, columns=used)
    single, paired = np.flatnonzero(variants[:, 1] < 0), np.flatnonzero(variants[:, 1] >= 0)
    values = np.empty((len(rows), len(variants)), dtype=np.float32)
    value_of_code = _values_of_codes(
        fit.scaling,
        acting.variants[single, 0],
        is_dominance=(acting.column[single] >= len(fit.pip)) & (acting.column[single] < 2 * len(fit.pip)),
    )
    codes = cohort.codes(columns=variants[single, 0])
    values[:, single] = value_of_code[np.arange(len(single)), codes]
    if modifiers is not None:
        # The product without what its dosage explains.
        place = acting.column[single] - (len(fit.column_pip) - modifiers.shape[1])
        for column, one in zip(single[place >= 0], place[place >= 0], strict=True):
            dosage = values[:, column]
            product = dosage * (modifiers[:, one] - modifiers[:, one].mean())
            values[:, column] = product - dosage * ((product @ dosage) / max(dosage @ dosage, 1e-30))
    if len(paired):
        values[:, paired] = pair_columns(cohort, variants[paired])
    values -= basis @ (basis.T @ values)
    product = (values.T @ values).astype(np.float64)
    length = np.sqrt(np.diag(product))
    varies = np.outer(length, length) > 0
    correlation: Floats = np.divide(
        product, np.outer(length, length), out=np.zeros_like(product), where=varies
    )
    np.fill_diagonal(correlation, 1.0)
    return correlation


def _values_of_codes(
    scaling: Scaling, variant: NDArray[np.int64], *, is_dominance: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """(P, 4) value that each genotype code has in the column of a single variant, in no particular unit."""
    dosage = np.arange(4.0) - scaling.dosage_mean[variant, None]
    het = (np.arange(4) == 1) - scaling.het_mean[variant, None] - scaling.het_slope[variant, None] * dosage
    values = np.where(is_dominance[:, None], het, dosage)
    values[:, MISSING] = 0.0
    return values.astype(np.float32)
