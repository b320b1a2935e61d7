"""Decoys: how they are counted, that chance alone is not reported, and that planted SNPs are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from snpdeconv.errors import InputError
from snpdeconv.finemapping.fdr import permutation_q_values, permutation_scores, q_values
from snpdeconv.finemapping.joint import Deconvolution, deconvolve
from snpdeconv.genetics.packed import PackedGenotypes

# Few different values, so that ties are the rule.
COARSE = st.integers(0, 6).map(lambda k: k / 6)


@st.composite
def rankings(draw):
    num_variants, num_draws = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    return (
        draw(arrays(np.float64, num_variants, elements=COARSE)),
        draw(arrays(np.float64, (num_draws, num_variants), elements=COARSE)),
    )


@given(rankings())
def test_rates_are_ordered_as_the_scores_and_in_range(ranking):
    score, decoys = ranking
    q = permutation_q_values(score, decoys)
    assert ((q > 0) & (q <= 1)).all()
    order = np.argsort(-score, kind="stable")
    assert (np.diff(q[order]) >= 0).all()
    assert all(len(set(q[score == value])) == 1 for value in score)


@given(rankings())
def test_is_benjamini_and_hochberg_of_the_share_of_decoys(ranking):
    score, decoys = ranking
    reached = (decoys.ravel()[None] >= score[:, None]).sum(axis=1)
    expected = stats.false_discovery_control((1 + reached) / (1 + decoys.size), method="bh")
    assert permutation_q_values(score, decoys) == pytest.approx(expected)


@given(rankings(), st.integers(0, 2**31))
def test_order_of_snps_and_scale_do_not_matter(ranking, seed):
    score, decoys = ranking
    order = np.random.default_rng(seed).permutation(len(score))
    q = permutation_q_values(score, decoys)
    assert np.array_equal(permutation_q_values(score[order], decoys), q[order])
    assert np.array_equal(permutation_q_values(np.exp(3 * score), np.exp(3 * decoys)), q)


@given(rankings())
def test_stronger_decoys_never_lower_a_rate(ranking):
    score, decoys = ranking
    assert (permutation_q_values(score, decoys + 0.25) >= permutation_q_values(score, decoys)).all()


def test_snps_that_nothing_speaks_for_have_no_chance():
    score = np.zeros(1_000)
    score[:4] = 0.9
    decoys = np.zeros((5, 1_000))
    q = permutation_q_values(score, decoys)
    assert q[:4] == pytest.approx(0.05, rel=1e-3)
    assert (q[4:] == 1).all()


def test_one_snp_alone_needs_ten_draws():
    score = np.append(np.zeros(499), 1.0)
    assert permutation_q_values(score, np.zeros((9, 500)))[-1] > 0.1
    assert permutation_q_values(score, np.zeros((10, 500)))[-1] < 0.1


def test_chance_alone_is_reported_as_seldom_as_stated():
    rng = np.random.default_rng(0)
    reported = [
        (permutation_q_values(rng.normal(size=200), rng.normal(size=(10, 200))) <= 0.1).any()
        for _ in range(600)
    ]
    # 1 of 11 in expectation, and three standard errors.
    assert np.mean(reported) <= 1 / 11 + 3 * (0.09 * 0.91 / 600) ** 0.5


@pytest.mark.parametrize("shape", [(0, 5), (2, 4), (5,)])
def test_decoys_of_other_snps_are_refused(shape):
    with pytest.raises(InputError, match="decoys"):
        permutation_q_values(np.zeros(5), np.zeros(shape))


def ranked(pip, score=None):
    """A fit of which only the ranking matters."""
    made = Deconvolution.__new__(Deconvolution)
    object.__setattr__(made, "pip", np.asarray(pip, dtype=float))
    object.__setattr__(made, "score", made.pip if score is None else np.asarray(score, dtype=float))
    return made


def linked_pairs(num_variants):
    """SNPs of which each second one is a copy of the one before; one genotype is missing."""
    codes = np.random.default_rng(7).binomial(2, 0.4, (400, num_variants)).astype(np.uint8)
    codes[:, 1::2] = codes[:, ::2][:, : num_variants // 2]
    codes[3, 0] = 3
    return PackedGenotypes.from_codes(codes)


@given(rankings())
def test_the_posterior_only_adds_to_the_decoys_rate(ranking):
    score, decoys = ranking
    found = ranked(score**2, score)
    q = q_values(linked_pairs(len(score)), found, decoys)
    assert (q >= permutation_q_values(score, decoys)).all()
    assert (q <= 1).all()
    assert (np.diff(q[np.argsort(-score, kind="stable")]) >= 0).all()
    assert all(len(set(q[score == value])) == 1 for value in score)


def test_snps_far_from_what_acts_are_false_whatever_decoys_say():
    pip = np.array([1.0, 0.0, 0.5, 0.5, 0.02, 0.02, 0.0, 0.0, 0.0, 0.0])
    score = np.array([1.0, 0.01, 0.5, 0.5, 0.02, 0.02, 0.0, 0.0, 0.0, 0.0])
    decoys = np.zeros((20, 10))
    by_decoys, q = permutation_q_values(score, decoys), q_values(linked_pairs(10), ranked(pip, score), decoys)
    assert (by_decoys[:6] <= 0.05).all()
    # Two linked SNPs that share one effect are one discovery that is certain.
    assert q[:1] == pytest.approx(by_decoys[:1])
    assert q[[2, 3]] == pytest.approx(by_decoys[[2, 3]])
    # The copy of the first, below them, is linked with it.
    assert q[[1, 4, 5]] == pytest.approx(1.92 / 6)
    assert (q[6:] == 1).all()


NUM_SAMPLES, NUM_VARIANTS = 500, 60
PLANTED = [7, 23, 41]


def cohort(seed):
    rng = np.random.default_rng(seed)
    codes = rng.binomial(2, rng.uniform(0.2, 0.5, NUM_VARIANTS), (NUM_SAMPLES, NUM_VARIANTS)).astype(np.uint8)
    place = {"chrom": np.full(NUM_VARIANTS, "1", object), "position_bp": 50_000 * np.arange(NUM_VARIANTS)}
    return codes, PackedGenotypes.from_codes(codes), place, rng


def q_of(genotypes, trait, *, kind, place, pairs=False, num_draws=4, rows=None, covariates=None):
    given = {"rows": rows, "covariates": covariates, "pairs": pairs, **place}
    found = deconvolve(genotypes, trait, kind=kind, **given)
    decoys = permutation_scores(genotypes, trait, found, draws=range(num_draws), seed=3, **given)
    assert decoys.shape == (num_draws, NUM_VARIANTS)
    return q_values(genotypes, found, decoys, rows=rows), decoys


def test_planted_snps_have_small_rates_and_others_do_not():
    codes, genotypes, place, rng = cohort(0)
    trait = codes[:, PLANTED].sum(axis=1) + rng.normal(size=NUM_SAMPLES)
    q, decoys = q_of(genotypes, trait, kind="quantitative", place=place)
    assert (q[PLANTED] <= 0.1).all()
    assert (np.delete(q, PLANTED) > 0.1).all()
    # Decoys of the planted SNPs are like all others, or they would be counted against themselves.
    assert decoys[:, PLANTED].max() < 0.5


def test_planted_pairs_have_small_rates():
    codes, genotypes, place, rng = cohort(1)
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    trait = z[:, 5] * z[:, 50] + 0.7 * rng.normal(size=NUM_SAMPLES)
    q, _ = q_of(genotypes, trait, kind="quantitative", place=place, pairs=True)
    assert (q[[5, 50]] <= 0.15).all()
    assert (np.delete(q, [5, 50]) > 0.15).all()


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_classes(kind):
    codes, genotypes, place, rng = cohort(2)
    liability = codes[:, PLANTED].sum(axis=1) + rng.logistic(size=NUM_SAMPLES) / 2
    trait = np.digitize(liability, np.quantile(liability, [0.5] if kind == "binary" else [0.33, 0.67]))
    q, _ = q_of(genotypes, trait, kind=kind, place=place)
    assert (q[PLANTED] <= 0.1).all()
    assert (np.delete(q, PLANTED) > 0.1).all()


def test_covariates_and_rows_are_those_of_the_fit():
    codes, genotypes, place, rng = cohort(4)
    rows = np.arange(100, NUM_SAMPLES)
    confounder = codes[rows, 30] + rng.normal(0, 0.05, len(rows))
    trait = 3 * confounder + codes[rows][:, PLANTED].sum(axis=1) + rng.normal(size=len(rows))
    q, decoys = q_of(
        genotypes, trait, kind="quantitative", place=place, rows=rows, covariates=confounder[:, None]
    )
    assert (q[PLANTED] <= 0.1).all()
    assert q[30] > 0.1
    again = q_of(
        genotypes, trait, kind="quantitative", place=place, rows=rows, covariates=confounder[:, None]
    )
    assert np.array_equal(again[1], decoys)


def test_a_trait_of_chance_has_no_small_rate():
    reported = 0
    for seed in range(10, 22):
        _, genotypes, place, rng = cohort(seed)
        q, _ = q_of(genotypes, rng.normal(size=NUM_SAMPLES), kind="quantitative", place=place)
        reported += (q <= 0.1).any()
    assert reported <= 2
