"""Traits with known causal variants over given genotypes: additive, dominance, pairs, binary, ancestry.

Knows no files and not where the genotypes come from. Shapes: N samples, V variants, C causal variants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snpdeconv.errors import ConfigError, nearest
from snpdeconv.genetics.packed import MISSING, allele_frequency

TRAITS = ("additive", "dominance", "epistasis", "epistasis_main", "binary", "ancestry")
"""The traits that :func:`simulate_trait` knows."""

CAUSAL_MAF_MIN = 0.05
CAUSAL_R2_MAX = 0.1

_PAIRED = ("epistasis", "epistasis_main")
_COUNT_BYTES = 64 * 2**20

Columns = NDArray[np.float64]


@dataclass(frozen=True)
class SimulatedTrait:
    """A trait and what drives it.

    Attributes:
        values: (N,) trait: mean 0 and variance 1 over the people it was fitted on; binary: 0 or 1.
        causal: (C,) columns of the causal variants, in the order drawn; the two of a pair are neighbours.
        roles: C words: ``additive``, ``overdominant``, ``recessive``, ``pair_1a``, ``pair_1b``, …
        effects: (C,) own effect of each variant, in standard deviations of the trait (of the liability, if
            binary) for one standard deviation of its column; 0 in a pure pair.
        pair_effects: (C,) effect of the pair that the variant belongs to, in the same unit; 0 without pairs.
    """

    values: NDArray[np.float64]
    causal: NDArray[np.int64]
    roles: tuple[str, ...]
    effects: NDArray[np.float64]
    pair_effects: NDArray[np.float64]


def check_trait(trait: str, *, num_causal: int, pve: float, prevalence: float, num_samples: int) -> None:
    """Refuses a trait that cannot be made, before anything is simulated."""
    if trait not in TRAITS:
        raise ConfigError(f"unknown trait '{trait}'", where="trait", hint=nearest(trait, TRAITS))
    if not 0 < pve < 1:
        raise ConfigError(
            f"{pve:g} is not between 0 and 1", where="pve", hint="give the share of the trait's variance"
        )
    if trait == "binary":
        if not 0 < prevalence < 1:
            raise ConfigError(
                f"{prevalence:g} is not between 0 and 1", where="prevalence", hint="give the share of cases"
            )
        num_cases = round(prevalence * num_samples)
        if not 0 < num_cases < num_samples:
            raise ConfigError(
                f"{prevalence:g} of {num_samples} people are {num_cases} cases",
                where="prevalence",
                hint="choose a value that leaves both cases and controls, or simulate more people",
            )
    if trait == "ancestry":
        return
    if num_causal < 1:
        raise ConfigError(
            f"{num_causal} causal variants", where="causal", hint="give 1 or more, or the trait ancestry"
        )
    if trait in _PAIRED and num_causal % 2:
        raise ConfigError(
            f"{num_causal} causal variants cannot be put in pairs, which {trait} needs",
            where="causal",
            hint="give an even number",
        )


def simulate_trait(
    codes: NDArray[np.uint8],
    *,
    trait: str,
    num_causal: int,
    pve: float,
    prevalence: float,
    rng: np.random.Generator,
    populations: ArrayLike | None = None,
    num_holdout: int = 0,
) -> SimulatedTrait:
    """Draws causal variants with effects and makes a trait of which they explain exactly ``pve``.

    Causal variants have MAF >= .05 and pairwise r² < .1. Effects are standard normal on standardised columns:

    - ``additive``: the dosage. ``binary``: the same as a liability, cut so that the prevalence is exact.
    - ``dominance``: in turn the indicator of heterozygotes and that of two copies of the counted allele.
    - ``epistasis``: the product of two dosages, without the part that either explains by itself, so that
      neither of a pair shows a marginal signal.
    - ``epistasis_main``: pairs and dosages of the same variants, scaled to equal variance and added.
    - ``ancestry``: a mean for every population and no causal variant.

    The residual is made uncorrelated with the signal, so that the observed PVE is the one asked for; of a
    binary trait, the PVE of its liability.

    `codes`: (N, V); missing ones count as the mean; `populations`: (N,) labels, for ``ancestry`` alone. The
    last `num_holdout` people do not shape the trait: variants are chosen, columns standardised and the
    liability cut without them, and the same model then gives their values.
    """
    num_fit = len(codes) - num_holdout
    check_trait(trait, num_causal=num_causal, pve=pve, prevalence=prevalence, num_samples=num_fit)
    if trait == "ancestry":
        return _ancestry(populations, pve=pve, rng=rng, num_fit=num_fit)
    causal, single = _choose(codes, num_causal=num_causal, trait=trait, rng=rng, num_fit=num_fit)
    paired = trait in _PAIRED
    weights = rng.normal(size=num_causal // 2 if paired else num_causal)
    columns = _pair_columns(single, num_fit=num_fit) if paired else single
    signal = columns @ weights
    main_weights = np.zeros(num_causal) if paired else weights
    if trait == "epistasis_main":
        main_weights = rng.normal(size=num_causal)
        main = single @ main_weights
        pair_sd, main_sd = signal[:num_fit].std(), main[:num_fit].std()
        weights, main_weights = weights / pair_sd, main_weights / main_sd
        signal = signal / pair_sd + main / main_sd
    values, scale = _with_residual(signal, pve=pve, rng=rng, num_fit=num_fit)
    if trait == "binary":
        values = _cut(values, prevalence=prevalence, num_fit=num_fit)
    return SimulatedTrait(
        values=values,
        causal=causal,
        roles=_roles(trait, num_causal),
        effects=main_weights * scale,
        pair_effects=np.repeat(weights, 2) * scale if paired else np.zeros(num_causal),
    )


def _choose(
    codes: NDArray[np.uint8], *, num_causal: int, trait: str, rng: np.random.Generator, num_fit: int
) -> tuple[NDArray[np.int64], Columns]:
    """Walks through the common variants in random order and keeps those in low LD with all kept before.

    Returns (C,) indices and (N, C) standardised columns as the trait uses them; dosages where it has pairs.
    """
    frequency = allele_frequency(_code_counts(codes[:num_fit]))
    eligible = np.flatnonzero(np.minimum(frequency, 1 - frequency) >= CAUSAL_MAF_MIN)
    dosages = np.empty((num_causal, num_fit))
    columns = np.empty((len(codes), num_causal))
    index = np.empty(num_causal, dtype=np.int64)
    num_kept = 0
    for v in rng.permutation(eligible):
        called = np.where(codes[:, v] == MISSING, np.nan, codes[:, v])
        dosage = _standardise(called, num_fit=num_fit)
        r = dosages[:num_kept] @ dosage[:num_fit] / num_fit
        if (r**2 >= CAUSAL_R2_MAX).any():
            continue
        column = dosage
        if trait == "dominance":
            carried = np.where(np.isnan(called), np.nan, called == (1 if num_kept % 2 == 0 else 2))
            column = _standardise(carried, num_fit=num_fit)
        if not column.any():  # No homozygote, or no heterozygote: the variant could have no effect here.
            continue
        dosages[num_kept], columns[:, num_kept], index[num_kept] = dosage[:num_fit], column, v
        num_kept += 1
        if num_kept == num_causal:
            return index, columns
    raise ConfigError(
        f"{num_causal} causal variants asked for, and only {num_kept} with MAF >= {CAUSAL_MAF_MIN:g} and "
        f"pairwise r2 < {CAUSAL_R2_MAX:g} found among {codes.shape[1]} variants",
        where="causal",
        hint="ask for fewer, or simulate more variants over a longer stretch",
    )


def _code_counts(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Counts each code of every variant, in pieces of rows so that the comparisons stay small."""
    num_samples, num_variants = codes.shape
    counts = np.zeros((4, num_variants), dtype=np.int64)
    step = max(1, _COUNT_BYTES // max(1, num_variants))
    for start in range(0, num_samples, step):
        piece = codes[start : start + step]
        for code in range(4):
            counts[code] += (piece == code).sum(axis=0)
    return counts


def _standardise(values: NDArray[np.float64], *, num_fit: int) -> NDArray[np.float64]:
    """Centres and scales (N,) values by the first ``num_fit`` of them; NaN and constants give 0."""
    mean, deviation = np.nanmean(values[:num_fit]), np.nanstd(values[:num_fit])
    if deviation == 0:
        return np.zeros_like(values)
    scaled: NDArray[np.float64] = np.nan_to_num((values - mean) / deviation)
    return scaled


def _pair_columns(dosages: Columns, *, num_fit: int) -> Columns:
    """Multiplies neighbouring columns: (N, C) -> (N, C / 2).

    The product of two skewed or weakly linked dosages correlates with each of them; that part would be a main
    effect, and the least-squares fit on both takes it out.
    """
    pairs = np.empty((len(dosages), dosages.shape[1] // 2))
    for p in range(pairs.shape[1]):
        first, second = dosages[:, 2 * p], dosages[:, 2 * p + 1]
        mains = np.column_stack([np.ones(len(dosages)), first, second])
        product = first * second
        fit = np.linalg.lstsq(mains[:num_fit], product[:num_fit], rcond=None)[0]
        pairs[:, p] = _standardise(product - mains @ fit, num_fit=num_fit)
    return pairs


def _with_residual(
    signal: NDArray[np.float64], *, pve: float, rng: np.random.Generator, num_fit: int
) -> tuple[NDArray[np.float64], float]:
    """Adds noise to (N,) signal so that the first ``num_fit`` have mean 0, variance 1 and exactly this PVE.

    Returns (N,) values, and the factor by which the signal was scaled.
    """
    mean, deviation = signal[:num_fit].mean(), signal[:num_fit].std()
    explained = (signal - mean) / deviation
    noise = rng.normal(size=len(signal))
    fitted = noise[:num_fit] - noise[:num_fit].mean()
    fitted -= explained[:num_fit] * (fitted @ explained[:num_fit]) / num_fit
    noise[:num_fit] = fitted / fitted.std()
    scale = np.sqrt(pve) / deviation
    return np.sqrt(pve) * explained + np.sqrt(1 - pve) * noise, float(scale)


def _cut(liability: NDArray[np.float64], *, prevalence: float, num_fit: int) -> NDArray[np.float64]:
    num_cases = round(prevalence * num_fit)
    threshold = np.sort(liability[:num_fit])[num_fit - num_cases]
    cases: NDArray[np.float64] = (liability >= threshold).astype(np.float64)
    return cases


def _ancestry(
    populations: ArrayLike | None, *, pve: float, rng: np.random.Generator, num_fit: int
) -> SimulatedTrait:
    names, membership = np.unique(np.asarray([] if populations is None else populations), return_inverse=True)
    if len(np.unique(membership[:num_fit])) < 2:
        raise ConfigError(
            "the trait ancestry needs people of two populations or more",
            where="populations",
            hint="give a population for every person",
        )
    # Evenly spaced means in random order: normal draws could put two populations at almost the same mean.
    shift = rng.permutation(len(names)).astype(np.float64)
    values, _ = _with_residual(shift[membership], pve=pve, rng=rng, num_fit=num_fit)
    nothing = np.empty(0)
    return SimulatedTrait(
        values=values, causal=np.empty(0, dtype=np.int64), roles=(), effects=nothing, pair_effects=nothing
    )


def _roles(trait: str, num_causal: int) -> tuple[str, ...]:
    if trait in _PAIRED:
        return tuple(f"pair_{c // 2 + 1}{'ab'[c % 2]}" for c in range(num_causal))
    if trait == "dominance":
        return tuple(("overdominant", "recessive")[c % 2] for c in range(num_causal))
    return ("additive",) * num_causal
