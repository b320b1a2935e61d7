"""False discovery rates of a ranking from a permutation null: real genotypes, given to other samples.

Owns how the null is drawn, fitted and counted, and what the posterior adds; knows no table. Settings and
columns call the permuted SNPs decoys. Shapes: N samples, V variants, O outputs, C covariates, D permutations.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snpdeconv.console import track
from snpdeconv.errors import InputError
from snpdeconv.finemapping import Settings
from snpdeconv.finemapping.joint import Deconvolution, deconvolve
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

Floats = NDArray[np.float64]

PERMUTATION_STREAM = 11
# SNPs of a larger rate by the null, and those that rank lower, are not held against the posterior.
HOPELESS = 0.5
MOST_JUDGED = 2_000
# SNPs in less LD than this, among so many samples at most, are not linked.
LINKED_R2 = 0.1
MOST_SAMPLES = 5_000


def permutation_scores(
    genotypes: PackedGenotypes,
    target: ArrayLike,
    found: Deconvolution,
    *,
    chrom: NDArray[np.object_],
    position_bp: NDArray[np.int64],
    rows: NDArray[np.integer] | None = None,
    covariates: ArrayLike | None = None,
    prior_weights: ArrayLike | None = None,
    pairs: bool = True,
    interactions: Sequence[int] = (),
    settings: Settings | None = None,
    draws: Iterable[int] = range(10),
    seed: int = 0,
) -> Floats:
    """(D, V) scores that the same SNPs get under a permutation, in the fit that made the ranking.

    A permutation gives every sample the whole genotype of another: frequencies, LD and the number of tests
    stay, and nothing is left that could be associated. The permuted SNPs meet the real ones in one fit: what
    these explain, the linear predictor of `found`, stands in it as a covariate, and the permuted SNPs compete
    for the rest, as real SNPs without effect do, singly, by their dominance, in pairs and with covariates.
    The null tells what chance does, not structure: a confounder that the covariates leave is not among what
    it estimates.

    A permutation would break what relatives share. Beside a polygenic background of `found`, everyone keeps
    their genotypes, and the trait is drawn anew: what effects and covariates leave, freed of the background's
    covariance, is permuted and given it back.

    All but the last two arguments are those of the fit. `draws` numbers the permutations; one rests on its
    number and the seed alone, so that several machines can share them. Each takes about as long as the fit of
    a trait without effects.
    """
    samples = np.arange(genotypes.num_samples) if rows is None else np.asarray(rows)
    given = np.empty((len(samples), 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    background, drawn = found.background, np.asarray(target)
    beside = given if background is not None else np.hstack([given, found.fitted])

    def draw(number: int) -> Floats:
        rng, rows, trait = np.random.default_rng([PERMUTATION_STREAM, seed, number]), samples, drawn
        if background is None:
            rows = rng.permutation(samples)
        else:
            trait = background.shuffled(trait - found.fitted[:, 0], rng)
        try:
            return deconvolve(
                genotypes,
                trait,
                kind=found.kind,
                chrom=chrom,
                position_bp=position_bp,
                rows=rows,
                covariates=beside,
                prior_weights=prior_weights,
                pairs=pairs,
                interactions=interactions,
                kinship=None if background is None else background.spectra,
                settings=settings,
            ).score
        except InputError as error:
            if error.where != "covariates":
                raise
            # What was found explains the trait wholly: nothing is left that a permutation could show.
            return np.zeros(genotypes.num_variants)

    scores = [draw(number) for number in track(draws, "draws of decoys")]
    return np.array(scores).reshape(-1, genotypes.num_variants)


def permutation_q_values(score: ArrayLike, decoys: ArrayLike) -> Floats:
    """(V,) smallest false discovery rate at which each SNP would still be reported, from `decoys` (D, V).

    A SNP's p-value is the share of null scores that are as high, itself counted among them so that it is
    never 0 (Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39); the rates are those of Benjamini and
    Hochberg (1995). So it takes 10 SNPs at D = 1, or 2 at D = 5, above the whole null to reach a rate of .1.
    A discovery counts as false if it is linked with nothing causal: SNPs in LD with a causal one share its
    evidence, and how far it can be told apart is what inclusion probabilities and credible sets say. Values
    are in (0, 1], never smaller for a lower score; equal scores have equal values.
    """
    values, null = np.asarray(score, dtype=np.float64), np.asarray(decoys, dtype=np.float64)
    if null.ndim != 2 or not len(null) or null.shape[1] != len(values):
        raise InputError(
            f"shape {null.shape} for {len(values)} SNPs",
            where="decoys",
            hint="give at least one row of scores of the same SNPs",
        )
    sorted_null, sorted_values = np.sort(null, axis=None), np.sort(values)
    order = np.argsort(values, kind="stable")
    num_above = null.size - np.searchsorted(sorted_null, values[order], side="left")
    num_found = len(values) - np.searchsorted(sorted_values, values[order], side="left")
    rate = len(values) * (1 + num_above) / (1 + null.size) / num_found
    q = np.empty_like(values)
    # From the lowest score up, a rate that is lower further down holds above as well.
    q[order] = np.minimum(np.minimum.accumulate(rate), 1.0)
    return q


def q_values(
    genotypes: PackedGenotypes,
    found: Deconvolution,
    decoys: ArrayLike,
    *,
    rows: NDArray[np.integer] | None = None,
) -> Floats:
    """(V,) false discovery rates of a ranking by `score`: the larger of what null and posterior say.

    The permutation null, `decoys` (D, V), tells which scores chance reaches, SNP by SNP. Among dense SNPs a
    linked group that shares a faint hint, or the far end of a real signal, passes it all at once, and by the
    number of SNPs looks like many discoveries. The posterior tells where effects are: the probability that a
    SNP is linked with what acts is the sum of the inclusion probabilities around it, and its mean complement
    over the SNPs down to a score estimates the rate as well (Käll et al. 2008, Bioinformatics 24:i42). The
    larger of the two counts; it is in (0, 1] and never smaller for a lower score.
    """
    by_null = permutation_q_values(found.score, decoys)
    order = np.argsort(-found.score, kind="stable")[:MOST_JUDGED]
    judged = order[by_null[order] < HOPELESS]
    missed = 1 - _linked_mass(genotypes, found.pip, judged, rows=rows)
    rate = np.cumsum(missed) / np.arange(1, len(judged) + 1)
    # Of SNPs with equal scores, all count.
    last = np.searchsorted(-found.score[judged], -found.score[judged], side="right") - 1
    by_posterior = np.ones_like(by_null)
    by_posterior[judged] = np.minimum.accumulate(rate[last][::-1])[::-1]
    return np.maximum(by_null, by_posterior)


def _linked_mass(
    genotypes: PackedGenotypes,
    pip: Floats,
    judged: NDArray[np.int64],
    *,
    rows: NDArray[np.integer] | None,
) -> Floats:
    """Probability that each of (J,) SNPs is linked with one that acts; (J,)."""
    samples = np.arange(genotypes.num_samples) if rows is None else np.asarray(rows)
    seen = np.linspace(0, len(samples) - 1, min(len(samples), MOST_SAMPLES)).astype(np.int64)
    codes = genotypes.codes(rows=samples[seen], columns=judged)
    called = codes != MISSING
    dosage = np.where(called, codes, 0).astype(np.float32)
    mean = (dosage.sum(axis=0) / np.maximum(called.sum(axis=0), 1)).astype(np.float32)
    centred = np.where(called, dosage - mean, np.float32(0))
    unit = centred / np.maximum(np.linalg.norm(centred, axis=0), np.float32(1e-12))
    linked = (unit.T @ unit) ** 2 >= LINKED_R2
    np.fill_diagonal(linked, True)
    mass: Floats = np.minimum(linked @ pip[judged], 1.0)
    return mass
