"""Planted dominance, pairs and single SNPs come out of one call; nothing comes out of nothing."""

from dataclasses import replace

import numpy as np
import pytest

from snpdeconv.epistasis.dosages import Dosages
from snpdeconv.errors import InputError
from snpdeconv.finemapping import Settings, fit_single_effects, joint, joint_credible_sets
from snpdeconv.finemapping.joint import PairColumns, deconvolve, inherited
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

NUM, BLOCK, BLOCKS = 700, 4, 30
V = BLOCK * BLOCKS
SINGLE, PAIR = 50, (20, 80)


def linked_codes(rng, *, missing=0.0):
    """Blocks of SNPs in LD, each a founder allele with a tenth of the haplotypes redrawn."""
    founder = rng.random((2, NUM, BLOCKS)) < rng.uniform(0.25, 0.5, BLOCKS)
    alleles = np.repeat(founder, BLOCK, axis=2)
    redrawn = rng.random(alleles.shape) < 0.2
    redrawn[:, :, ::BLOCK] = False
    codes = np.where(redrawn, rng.random(alleles.shape) < 0.3, alleles).sum(axis=0).astype(np.uint8)
    codes[rng.random(codes.shape) < missing] = MISSING
    return codes


def places():
    v = np.arange(V)
    return {
        "chrom": np.array([str(1 + b // 10) for b in v // BLOCK], dtype=object),
        "position_bp": (v // BLOCK * 2_000_000 + v % BLOCK * 1_000 + 1).astype(np.int64),
    }


def standardised(codes):
    dosage = np.where(codes == MISSING, np.nan, codes.astype(float))
    dosage = np.where(np.isnan(dosage), np.nanmean(dosage, axis=0), dosage)
    return (dosage - dosage.mean(axis=0)) / dosage.std(axis=0)


def planted(codes, rng):
    z = standardised(codes)
    return 0.5 * z[:, SINGLE] + 0.6 * z[:, PAIR[0]] * z[:, PAIR[1]] + rng.normal(size=len(codes))


@pytest.fixture(scope="module")
def study():
    """Training rows, covariates that matter, missing genotypes; the fit."""
    rng = np.random.default_rng(12)
    codes = linked_codes(rng, missing=0.02)
    covariates = rng.normal(size=(NUM, 2)) + standardised(codes)[:, [0]] * [1.0, 0.0]
    trait = planted(codes, rng) + covariates @ [1.0, -0.5] + 3
    rows = np.sort(rng.permutation(NUM)[: NUM - 100])
    genotypes = PackedGenotypes.from_codes(codes)
    fitted = deconvolve(
        genotypes, trait[rows], kind="quantitative", rows=rows, covariates=covariates[rows], **places()
    )
    return genotypes, trait, covariates, rows, fitted


def test_finds_the_single_snp_and_the_pair(study):
    genotypes, _, _, rows, found = study
    assert (found.pip[[SINGLE, *PAIR]] > 0.9).all()
    assert np.sum(found.pip > 0.5) == 3
    assert (found.pairs.first[0], found.pairs.second[0]) == PAIR
    assert found.pairs.pip[0] > 0.9
    assert 0.4 < found.pairs.effect[0] < 0.8  # the product's standard deviation is about 1
    assert found.pairs.neg_log10_p[0] > 20
    assert found.pairs.q_value[0] < 1e-10
    assert np.sum(found.pairs.pip > 0.5) == 1
    assert {one.top for _, one in joint_credible_sets(found.fits, genotypes, rows=rows)} == {SINGLE, *PAIR}


def test_score_orders_what_pip_leaves_equal(study):
    *_, found = study
    assert (found.score >= found.pip).all()
    assert (found.score <= 1).all()
    assert len(np.unique(found.score)) > 0.9 * V


def test_terms_predict_what_the_fit_does(study):
    genotypes, trait, covariates, rows, found = study
    here = genotypes.take(rows=rows)
    np.testing.assert_allclose(found.terms.predict(here, covariates[rows]), found.fitted, atol=1e-5)
    others = np.setdiff1d(np.arange(NUM), rows)
    there = genotypes.take(rows=others)
    (only,) = found.fits
    # The columns of the pairs, of the moments of the samples fitted, written out for the others.
    dosages = Dosages.of(genotypes, rows=rows)
    z = np.where(there.codes() == MISSING, 0.0, (there.codes() - dosages.mean) * dosages.inverse_sd)
    own = np.where(here.codes() == MISSING, 0.0, (here.codes() - dosages.mean) * dosages.inverse_sd)
    extra = []
    for i, j in found_pairs_in_column_order(found):
        design = np.column_stack([np.ones(len(own)), own[:, i], own[:, j]])
        coefficients = np.linalg.lstsq(design, own[:, i] * own[:, j], rcond=None)[0]
        left = own[:, i] * own[:, j] - design @ coefficients
        outside = np.column_stack([np.ones(len(z)), z[:, i], z[:, j]])
        extra.append((z[:, i] * z[:, j] - outside @ coefficients) / left.std())
    expected = only.predict(there, covariates[others], extra=np.column_stack(extra))
    predicted = found.terms.predict(there, covariates[others])
    np.testing.assert_allclose(predicted[:, 0], expected, atol=1e-4)
    assert np.corrcoef(predicted[:, 0], trait[others])[0, 1] ** 2 > 0.5


def found_pairs_in_column_order(found):
    """Pairs as their columns lie in the fit: by the effects that rest on them."""
    pairs = {}
    for effect in found.fits[0].effects:
        for column, (i, j) in zip(effect.columns, effect.variants, strict=True):
            if j >= 0:
                pairs[int(column) - 2 * V] = (int(i), int(j))
    number = len(found.fits[0].scaling.extra_sd)
    return [pairs.get(column, PAIR) for column in range(number)]


def test_is_the_same_every_time(study):
    genotypes, trait, covariates, rows, found = study
    again = deconvolve(
        genotypes, trait[rows], kind="quantitative", rows=rows, covariates=covariates[rows], **places()
    )
    np.testing.assert_array_equal(again.score, found.score)
    np.testing.assert_array_equal(again.terms.weight, found.terms.weight)


def test_only_the_rows_count(study):
    genotypes, trait, covariates, rows, found = study
    alone = deconvolve(
        genotypes.take(rows=rows), trait[rows], kind="quantitative", covariates=covariates[rows], **places()
    )
    np.testing.assert_array_equal(alone.score, found.score)


def test_without_pairs_only_single_snps_count(study):
    genotypes, trait, covariates, rows, _ = study
    found = deconvolve(
        genotypes,
        trait[rows],
        kind="quantitative",
        rows=rows,
        covariates=covariates[rows],
        pairs=False,
        **places(),
    )
    assert len(found.pairs) == 0
    assert (found.terms.second == -1).all()
    outside = genotypes.take(rows=np.setdiff1d(np.arange(NUM), rows))
    given = np.zeros((outside.num_samples, 2))
    (only,) = found.fits
    assert len(only.scaling.extra_sd) == 0
    np.testing.assert_allclose(found.terms.predict(outside, given)[:, 0], only.predict(outside, given))


def test_a_second_scan_follows_where_single_snps_give_way(study, monkeypatch):
    genotypes, trait, covariates, rows, once = study
    scans = []
    scan_pairs = joint.scan_pairs
    monkeypatch.setattr(joint, "GIVEN_WAY", 0.0)
    monkeypatch.setattr(joint, "scan_pairs", lambda *a, **k: scans.append(0) or scan_pairs(*a, **k))
    twice = deconvolve(
        genotypes, trait[rows], kind="quantitative", rows=rows, covariates=covariates[rows], **places()
    )
    assert len(scans) == 2
    np.testing.assert_allclose(twice.pip[[SINGLE, *PAIR]], once.pip[[SINGLE, *PAIR]], atol=1e-3)


def test_single_snps_are_fitted_once(study):
    genotypes, trait, *_ = study
    found = deconvolve(genotypes, trait, kind="quantitative", pairs=False, **places())
    plain = fit_single_effects(genotypes, trait, kind="quantitative")
    np.testing.assert_array_equal(found.pip, plain.pip)


def test_binary_trait_gives_log_odds():
    rng = np.random.default_rng(21)
    codes = linked_codes(rng)
    liability = planted(codes, rng)
    case = (liability > np.quantile(liability, 0.7)).astype(float)
    found = deconvolve(PackedGenotypes.from_codes(codes), case, kind="binary", **places())
    assert found.pip[[SINGLE, *PAIR]].min() > 0.8
    np.testing.assert_allclose(
        found.terms.predict(PackedGenotypes.from_codes(codes)), found.fitted, atol=1e-5
    )
    assert np.mean(1 / (1 + np.exp(-found.fitted))) == pytest.approx(0.3, abs=0.03)


def test_classes_are_fitted_one_against_the_rest():
    rng = np.random.default_rng(31)
    codes = linked_codes(rng)
    z = standardised(codes)
    odds = np.column_stack([1.5 * z[:, 20], np.zeros(NUM), 1.5 * z[:, 80]]) + rng.gumbel(size=(NUM, 3))
    genotypes = PackedGenotypes.from_codes(codes)
    found = deconvolve(genotypes, odds.argmax(axis=1), kind="multiclass", **places())
    assert len(found.fits) == 3
    assert found.fitted.shape == (NUM, 3)
    assert set(np.argsort(-found.score)[:2]) == {20, 80}
    assert len(found.pairs) == 0
    np.testing.assert_allclose(found.terms.predict(genotypes), found.fitted, atol=1e-6)


def test_a_permuted_trait_has_no_sets_and_no_pairs(study):
    genotypes, trait, *_ = study
    found = deconvolve(
        genotypes, np.random.default_rng(2).permutation(trait), kind="quantitative", **places()
    )
    assert not joint_credible_sets(found.fits, genotypes)
    assert found.pairs.pip.max(initial=0.0) < 0.5


def test_prior_weights_decide_between_twins():
    rng = np.random.default_rng(41)
    codes = linked_codes(rng)
    codes[:, 51] = codes[:, 50]
    trait = standardised(codes)[:, 50] * 0.5 + rng.normal(size=NUM)
    weights = np.ones(V)
    weights[51] = 9.0
    found = deconvolve(
        PackedGenotypes.from_codes(codes),
        trait,
        kind="quantitative",
        prior_weights=weights,
        pairs=False,
        **places(),
    )
    assert found.pip[51] == pytest.approx(9 * found.pip[50], rel=0.1)


def test_says_what_does_not_fit(study):
    genotypes, trait, *_ = study
    with pytest.raises(InputError, match="target: 699 values for 700 samples"):
        deconvolve(genotypes, trait[:-1], kind="quantitative", **places())
    with pytest.raises(InputError, match="chrom: 119 values for 120 variants"):
        deconvolve(
            genotypes,
            trait,
            kind="quantitative",
            chrom=places()["chrom"][:-1],
            position_bp=places()["position_bp"],
        )


def test_pairs_count_without_dominance_columns_too(study):
    genotypes, trait, covariates, rows, _ = study
    found = deconvolve(
        genotypes,
        trait[rows],
        kind="quantitative",
        rows=rows,
        covariates=covariates[rows],
        settings=Settings(dominance_weight=0.0),
        **places(),
    )
    assert (found.pairs.first[0], found.pairs.second[0]) == PAIR
    assert found.pairs.pip[0] > 0.9
    here = genotypes.take(rows=rows)
    np.testing.assert_allclose(found.terms.predict(here, covariates[rows]), found.fitted, atol=1e-5)


def test_dominance_of_a_linked_snp_names_the_one_whose_dosage_acts():
    """A dosage effect spread over two near twins is drawn to the one that also has a dominance effect."""
    rng = np.random.default_rng(51)
    codes = linked_codes(rng)
    codes[:, 51] = np.where(rng.random(NUM) < 0.02, codes[rng.permutation(NUM), 50], codes[:, 50])
    z = standardised(codes)
    trait = 0.3 * z[:, 50] + 0.9 * (codes[:, 50] == 1) + rng.normal(size=NUM)
    genotypes = PackedGenotypes.from_codes(codes)
    found = deconvolve(genotypes, trait, kind="quantitative", pairs=False, **places())
    assert found.pip[50] > found.pip[51]
    kinds = found.terms.first[found.terms.weight[0] != 0]
    assert (kinds == 50).sum() == 2  # its dosage and its dominance


def test_snps_of_a_pair_are_likelier_to_act_alone(study):
    *_, found = study
    columns = PairColumns.of(study[0], np.array([PAIR]), num_tested=1, device="cpu")
    (only,) = found.fits
    sure = replace(only, column_pip=np.concatenate([only.column_pip[: 2 * V], [0.9]]))
    weights = inherited(sure, columns)
    np.testing.assert_allclose(weights[list(PAIR)], 0.05 * 0.9)
    assert np.delete(weights, PAIR).max() == 0
