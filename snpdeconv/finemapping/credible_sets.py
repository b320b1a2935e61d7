"""Credible sets: the smallest sets of SNPs that hold an effect with a stated probability.

Owns coverage, purity and the merging of duplicates. Shapes: N samples, S SNPs of a set.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from snpdeconv.finemapping.susie import ENOUGH_EVIDENCE, SingleEffect, SingleEffectsFit
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

# Purity of larger sets is that of so many of their SNPs, evenly spread over the ranks.
MOST_CORRELATED = 500
# Beside a background, least probability that there is an effect and that it is of this locus.
LEAST_EXISTENCE = 1 / 3


@dataclass(frozen=True)
class CredibleSet:
    """SNPs of which one carries an effect, with a stated probability."""

    variants: NDArray[np.int64]  # (S,) SNPs, most probable first
    probability: NDArray[np.float64]  # (S,) that the effect is this SNP's
    coverage: float  # sum of `probability`
    purity: float  # smallest absolute correlation of dosages among the SNPs
    log_bayes_factor: float  # natural logarithm, of the effect against none
    pve: float  # share of variance that the effect explains; of a pair, half of it in each of its two sets
    # indices of the effects that the set stands for; more than one where sets were merged
    effects: tuple[int, ...]
    existence: float = (
        1.0  # posterior probability that there is an effect among the SNPs linked with the first
    )

    @property
    def top(self) -> int:
        """The most probable SNP."""
        return int(self.variants[0])


def credible_sets(
    fit: SingleEffectsFit,
    genotypes: PackedGenotypes,
    *,
    rows: NDArray[np.integer] | None = None,
    coverage: float = 0.95,
    min_purity: float = 0.5,
    min_log_bayes_factor: float = ENOUGH_EVIDENCE,
) -> tuple[CredibleSet, ...]:
    """Credible sets of the effects of a fit, strongest evidence first; the columns of a SNP count together.

    An effect of a pair gives one set for each of its two SNPs. Sets that share more than half of the smaller
    one are duplicates; the one of larger Bayes factor stays. Those with less purity or evidence (natural
    logarithm) than the least say nothing of use and are left out. Cohort and `rows` are those of the fit.

    The probabilities of a set say where an effect is, given that there is one. Whether there is one is what
    the Bayes factor says, averaged over all columns by their prior: under no effect its mean is 1, so that it
    reaches 20 in at most 1 of 20 traits whose residual is normal (Markov; Shafer et al. 2011, Stat. Sci.
    26:84), however many SNPs and pairs were looked at. The prior variance, chosen to make it largest, adds to
    that, and its skewness takes away more. Of several fits, as of each class against the rest, the bound
    holds for all of them together with the logarithm of their number added.

    Beside a polygenic background chance has less room, and so have weak effects of single SNPs: the
    background takes its part of each. There a set is that of the SNPs linked with the most probable one
    (`min_purity`), and stays from an `existence` of a third on. In simulations nearly all sets of so little
    hold an effect, as what is left over to other places is mostly that of other weak effects.

    Sets of few SNPs hold more than their coverage, most of them nearly 1. They miss where the model does:
    among dense SNPs one that is linked with two causal ones can explain the trait as well as both, and then
    stands alone in its set. Neither purity nor evidence tells such a set from others.
    """
    found: list[CredibleSet] = []
    strongest_first = sorted(range(len(fit.effects)), key=lambda i: -fit.effects[i].log_bayes_factor)
    for number in strongest_first:
        effect = fit.effects[number]
        # The background takes its part of single SNPs, and none of products.
        lenient = fit.background is not None and not _is_product(effect, num_variants=len(fit.pip))
        if not lenient and effect.log_bayes_factor < min_log_bayes_factor:
            continue
        for side in range(effect.variants.shape[1]):
            variants, probability = _by_snp(effect, side=side)
            share = 1.0
            if fit.background is not None and len(variants):
                near = _correlation(genotypes, variants[:MOST_CORRELATED], rows=rows)[0] >= min_purity
                variants, probability = variants[: len(near)][near], probability[: len(near)][near]
                share = float(probability.sum())
                probability = probability / share
            existence = share * effect.existence
            if fit.background is not None and existence < LEAST_EXISTENCE:
                continue
            variants, probability = _smallest(variants, probability, coverage=coverage)
            if not len(variants):
                continue
            purity = _purity(genotypes, variants, rows=rows)
            if purity >= min_purity:
                new = CredibleSet(
                    variants=variants,
                    probability=probability,
                    coverage=float(probability.sum()),
                    purity=purity,
                    log_bayes_factor=effect.log_bayes_factor,
                    existence=existence,
                    pve=effect.pve * _share_of_side(effect, side=side),
                    effects=(number,),
                )
                _add(found, new)
    return tuple(found)


def joint_credible_sets(
    fits: tuple[SingleEffectsFit, ...],
    genotypes: PackedGenotypes,
    *,
    rows: NDArray[np.integer] | None = None,
    coverage: float = 0.95,
    min_purity: float = 0.5,
) -> tuple[tuple[int, CredibleSet], ...]:
    """Credible sets of K fits to one trait, such as of each class against the rest, strongest evidence first.

    Each comes with the number of its fit; the more fits, the more evidence each has to show.
    """
    evidence = ENOUGH_EVIDENCE + math.log(len(fits))
    sets = [
        (number, one)
        for number, fit in enumerate(fits)
        for one in credible_sets(
            fit,
            genotypes,
            rows=rows,
            coverage=coverage,
            min_purity=min_purity,
            min_log_bayes_factor=evidence,
        )
    ]
    return tuple(sorted(sets, key=lambda numbered: -numbered[1].log_bayes_factor))


def _is_product(effect: SingleEffect, *, num_variants: int) -> bool:
    """Whether an effect is rather of a pair or an interaction than of a single SNP."""
    return float(effect.alpha[effect.columns >= 2 * num_variants].sum()) > 0.5


def _by_snp(effect: SingleEffect, *, side: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """SNPs of one side of the columns, most probable first, and their probabilities."""
    taking_part = effect.variants[:, side] >= 0
    probability = np.bincount(effect.variants[taking_part, side], effect.share[taking_part])
    order = np.argsort(-probability, kind="stable")
    return order.astype(np.int64), probability[order].astype(np.float64)


def _smallest(
    variants: NDArray[np.int64], probability: NDArray[np.float64], *, coverage: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The first SNPs that hold ``coverage``; none where all hold less."""
    held = np.cumsum(probability)
    if not len(held) or held[-1] < coverage:
        return variants[:0], probability[:0]
    num = int(np.searchsorted(held, coverage)) + 1
    return variants[:num], probability[:num]


def _share_of_side(effect: SingleEffect, *, side: int) -> float:
    """Of a pair, each of the two sets has half of what it explains."""
    taking_part = effect.variants >= 0
    share = np.where(taking_part.all(axis=1), 0.5, taking_part[:, side])
    return float(effect.alpha @ share / effect.alpha.sum())


def _purity(
    genotypes: PackedGenotypes, variants: NDArray[np.int64], *, rows: NDArray[np.integer] | None
) -> float:
    if len(variants) == 1:
        return 1.0
    if len(variants) > MOST_CORRELATED:
        variants = variants[np.linspace(0, len(variants) - 1, MOST_CORRELATED).astype(np.int64)]
    return float(_correlation(genotypes, variants, rows=rows).min())


def _correlation(
    genotypes: PackedGenotypes, variants: NDArray[np.int64], *, rows: NDArray[np.integer] | None
) -> NDArray[np.float64]:
    """(S, S) absolute correlation of dosages; 0 of SNPs that do not vary."""
    codes = genotypes.codes(rows=rows, columns=variants)
    called = codes != MISSING
    dosage = np.where(called, codes, 0).astype(np.float32)
    mean = dosage.sum(axis=0) / np.maximum(called.sum(axis=0), 1)
    centred = np.where(called, dosage - mean, 0).astype(np.float32)
    length = np.sqrt(np.sum(centred**2, axis=0, dtype=np.float64))
    unit = np.where(length > 0, length, np.inf)
    correlation: NDArray[np.float64] = np.abs((centred.T @ centred) / np.outer(unit, unit))
    return np.minimum(correlation, 1.0)


def _add(found: list[CredibleSet], new: CredibleSet) -> None:
    """Adds a set, or adds what it stands for to the one that it duplicates."""
    for place, old in enumerate(found):
        num_shared = len(np.intersect1d(old.variants, new.variants))
        if 2 * num_shared > min(len(old.variants), len(new.variants)):
            effects = tuple(dict.fromkeys((*old.effects, *new.effects)))
            pve = old.pve + (new.pve if set(new.effects) - set(old.effects) else 0.0)
            found[place] = replace(old, pve=pve, effects=effects)
            return
    found.append(new)
