"""Explained variance of LD blocks: held against planted effects, exact posteriors and simulated traits."""

import dataclasses

import numpy as np
import pytest

from snpdeconv.epistasis import pair_columns
from snpdeconv.finemapping import ExtraColumns, Settings, fit_one_against_rest, fit_single_effects
from snpdeconv.finemapping import pve as module
from snpdeconv.finemapping.pve import block_pve
from snpdeconv.genetics.ld import Blocks
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

NUM_BLOCKS, BLOCK_SIZE = 12, 5


def unlinked(num_samples, num_variants, rng, *, missing=0.0):
    codes = rng.binomial(2, rng.uniform(0.15, 0.5, num_variants), (num_samples, num_variants)).astype(
        np.uint8
    )
    codes[rng.random(codes.shape) < missing] = MISSING
    return codes


def standardised(codes):
    called = np.where(codes == MISSING, np.nan, codes.astype(float))
    return np.nan_to_num((called - np.nanmean(called, axis=0)) / np.nanstd(called, axis=0))


def even_blocks(num=NUM_BLOCKS, size=BLOCK_SIZE):
    start = np.arange(num) * 1000 + 1
    return Blocks(
        name=np.array([f"1:{s}" for s in start], dtype=object),
        chrom=np.full(num, "1", dtype=object),
        start_bp=start,
        end_bp=start + 999,
        of_variant=np.repeat(np.arange(num), size),
    )


def test_blocks_explain_what_was_planted_in_them():
    rng = np.random.default_rng(0)
    codes = unlinked(3000, NUM_BLOCKS * BLOCK_SIZE, rng, missing=0.02)
    genotypes = PackedGenotypes.from_codes(codes)
    dosage = standardised(codes)
    # Block 0: two SNPs; block 3: dominance; blocks 5 and 8: a pair, half each; block 10: another pair.
    dominance = standardised((codes[:, 17] == 1).astype(np.uint8)[:, None])[:, 0]
    pairs = np.array([[26, 43], [51, 54], [2, 33]])
    products = pair_columns(genotypes, pairs).astype(float)
    signal = {
        0: 0.4 * dosage[:, 1] + 0.3 * dosage[:, 3],
        3: 0.3 * dominance,
        5: np.sqrt(0.5) * 0.4 * products[:, 0],
        8: np.sqrt(0.5) * 0.4 * products[:, 0],
        10: 0.3 * products[:, 1],
    }
    genetic = signal[0] + signal[3] + 0.4 * products[:, 0] + signal[10]
    residual = rng.normal(0, 0.7, len(codes))
    extra = ExtraColumns(values=3 * products.astype(np.float32), variants=pairs, weight=np.full(3, 0.3))
    fit = fit_single_effects(genotypes, genetic + residual, kind="quantitative", extra=extra)
    found = block_pve([fit], genotypes, kind="quantitative", blocks=even_blocks())

    truth = np.zeros(NUM_BLOCKS)
    for block, score in signal.items():
        truth[block] = score.var() / (genetic.var() + 0.49)
    np.testing.assert_allclose(found.pve, truth, atol=0.025)
    planted = list(signal)
    assert np.all(found.low[planted] > 0.03)
    assert np.all((found.low <= found.pve) & (found.pve <= found.high) | (found.pve < 1e-3))
    assert np.all(np.delete(found.pve, planted) < 0.003)
    assert found.total == pytest.approx(genetic.var() / (genetic.var() + 0.49), abs=0.03)
    assert found.pve.sum() == pytest.approx(found.total, abs=0.02)
    assert found.total_low < found.total < found.total_high


def test_a_pair_of_two_blocks_gives_each_half_and_one_of_a_block_gives_it_all():
    rng = np.random.default_rng(1)
    genotypes = PackedGenotypes.from_codes(unlinked(2000, 10, rng))
    pairs = np.array([[1, 7]])
    product = pair_columns(genotypes, pairs)
    extra = ExtraColumns(values=product, variants=pairs, weight=np.ones(1))
    trait = product[:, 0] + rng.normal(size=2000)
    fit = fit_single_effects(
        genotypes, trait, kind="quantitative", extra=extra, settings=Settings(dominance_weight=0)
    )
    two = block_pve([fit], genotypes, kind="quantitative", blocks=even_blocks(2))
    one = block_pve([fit], genotypes, kind="quantitative", blocks=even_blocks(1, 10))
    assert two.pve == pytest.approx([one.total / 2] * 2, rel=1e-3)
    assert one.pve == pytest.approx([one.total], rel=1e-3)
    assert one.total == pytest.approx(0.5, abs=0.04)


def test_intervals_are_those_of_a_regression_on_the_columns_that_act():
    """Two SNPs in LD, certainly causal: the blocks' shares have the known posterior of linear regression."""
    rng = np.random.default_rng(2)
    first = rng.binomial(2, 0.4, 1500)
    second = np.where(rng.random(1500) < 0.6, first, rng.binomial(2, 0.4, 1500))
    codes = np.column_stack([first, second]).astype(np.uint8)
    genotypes = PackedGenotypes.from_codes(codes)
    columns = standardised(codes)
    trait = columns @ [1.0, 0.8] + rng.normal(size=1500)
    fit = fit_single_effects(
        genotypes, trait, kind="quantitative", settings=Settings(dominance_weight=0, max_effects=2)
    )
    found = block_pve([fit], genotypes, kind="quantitative", blocks=even_blocks(2, 1), num_draws=4000, seed=4)
    gram = columns.T @ columns
    estimate = np.linalg.solve(gram, columns.T @ trait)
    noise = np.var(trait - columns @ estimate)
    draws = rng.multivariate_normal(estimate, noise * np.linalg.inv(gram), 20_000)
    total = np.einsum("ds,st,dt->d", draws, gram / 1500, draws)
    expected = draws**2 / (total + noise * 1500 / rng.chisquare(1499, 20_000))[:, None]
    low, high = np.quantile(expected, (0.025, 0.975), axis=0)
    np.testing.assert_allclose(found.low, low, atol=0.006)
    np.testing.assert_allclose(found.high, high, atol=0.006)
    share = total / (total + noise * 1500 / rng.chisquare(1499, 20_000))
    np.testing.assert_allclose(
        [found.total_low, found.total_high], np.quantile(share, (0.025, 0.975)), atol=0.003
    )
    # Were the two taken as independent, the intervals would be a quarter too narrow.
    assert np.all(found.high - found.low > 0.9 * (high - low))


def test_correlations_are_those_of_the_people_fitted_beside_covariates():
    rng = np.random.default_rng(9)
    shared = rng.normal(size=(4000, 1))
    liability = shared + 0.6 * rng.normal(size=(4000, 1)) + 0.6 * rng.normal(size=(4000, 2))
    liability[2000:, 1] *= -1  # People who were not fitted have the opposite LD.
    codes = np.digitize(liability, [-0.6, 0.8]).astype(np.uint8)
    codes[rng.random(codes.shape) < 0.25] = MISSING
    genotypes, rows = PackedGenotypes.from_codes(codes), np.arange(2000)
    dosage, covariates = standardised(codes[:2000]), shared[:2000]
    score = dosage @ [1.0, 1.0]
    trait = score + 3 * covariates[:, 0] + rng.normal(size=2000)
    fit = fit_single_effects(
        genotypes,
        trait,
        kind="quantitative",
        rows=rows,
        covariates=covariates,
        settings=Settings(dominance_weight=0),
    )
    found = block_pve(
        [fit], genotypes, kind="quantitative", blocks=even_blocks(2, 1), rows=rows, covariates=covariates
    )
    design = np.column_stack([np.ones(2000), covariates])
    columns = dosage - design @ np.linalg.lstsq(design, dosage, rcond=None)[0]
    expected = np.array([*columns.var(axis=0), columns.sum(axis=1).var()])
    expected /= expected[-1] + 1
    assert [*found.pve, found.total] == pytest.approx(expected, abs=0.02)


def test_intervals_cover_the_truth():
    rng = np.random.default_rng(3)
    blocks = even_blocks()
    covered = []
    for _ in range(25):
        codes = unlinked(500, NUM_BLOCKS * BLOCK_SIZE, rng)
        genotypes, dosage = PackedGenotypes.from_codes(codes), standardised(codes)
        effects = np.array([0.45, 0.35, 0.3, 0.25])
        genetic = dosage[:, [2, 13, 27, 48]] @ effects
        fit = fit_single_effects(
            genotypes, genetic + rng.normal(0, 0.7, 500), kind="quantitative", settings=Settings(refine=False)
        )
        found = block_pve([fit], genotypes, kind="quantitative", blocks=blocks)
        truth = effects**2 / (genetic.var() + 0.49)
        at = [0, 2, 5, 9]
        covered += list((found.low[at] <= truth) & (truth <= found.high[at]))
    # 95 of 100 are expected; as few as 88 or all 100 have a probability under .01 each.
    assert 88 < sum(covered) <= 100


def test_covariates_are_no_blocks():
    rng = np.random.default_rng(4)
    codes = unlinked(2000, 10, rng)
    genotypes, dosage = PackedGenotypes.from_codes(codes), standardised(codes)
    shared = rng.normal(size=2000)
    covariates = np.column_stack([shared, 2 * shared, np.ones(2000)])  # Two of them say nothing new.
    trait = 0.6 * dosage[:, 3] + 5 * shared + rng.normal(0, 0.8, 2000)
    fit = fit_single_effects(genotypes, trait, kind="quantitative", covariates=covariates)
    found = block_pve([fit], genotypes, kind="quantitative", blocks=even_blocks(2), covariates=covariates)
    assert found.pve == pytest.approx([0.36, 0.0], abs=0.04)


def test_a_binary_trait_is_measured_on_its_liability():
    rng = np.random.default_rng(5)
    codes = unlinked(4000, 20, rng)
    genotypes, dosage = PackedGenotypes.from_codes(codes), standardised(codes)
    log_odds = dosage[:, 2] - 0.8 * dosage[:, 12] - 2
    case = rng.random(4000) < 1 / (1 + np.exp(-log_odds))
    fit = fit_single_effects(genotypes, case, kind="binary")
    found = block_pve([fit], genotypes, kind="binary", blocks=even_blocks(4))
    variance = 1 + 0.64 + np.pi**2 / 3
    assert found.pve == pytest.approx([1 / variance, 0, 0.64 / variance, 0], abs=0.03)
    assert found.total == pytest.approx(sum(effect.pve for effect in fit.effects), abs=0.02)


def test_of_several_classes_the_one_that_a_block_tells_best_counts():
    rng = np.random.default_rng(6)
    codes = unlinked(1500, 20, rng)
    genotypes, dosage = PackedGenotypes.from_codes(codes), standardised(codes)
    odds = np.column_stack([np.zeros(1500), 1.5 * dosage[:, 1], 1.2 * dosage[:, 11]])
    classes = (odds + rng.gumbel(size=odds.shape)).argmax(axis=1)
    fits = fit_one_against_rest(genotypes, classes)
    given = {"kind": "multiclass", "blocks": even_blocks(4), "num_draws": 2000}
    found = block_pve(fits, genotypes, **given)
    alone = [block_pve([fit], genotypes, **given).pve for fit in fits]
    assert found.pve[0] == pytest.approx(alone[1][0], abs=0.01)
    assert found.pve[2] == pytest.approx(alone[2][2], abs=0.01)
    assert alone[1][0] > alone[0][0] + 0.05
    assert alone[2][2] > alone[0][2] + 0.05
    assert found.pve[1] < 0.02


def test_without_effects_nothing_is_explained():
    rng = np.random.default_rng(7)
    genotypes = PackedGenotypes.from_codes(unlinked(400, 10, rng))
    fit = fit_single_effects(genotypes, rng.normal(size=400), kind="quantitative")
    fit = dataclasses.replace(fit, effects=())
    found = block_pve([fit], genotypes, kind="quantitative", blocks=even_blocks(2))
    assert found.pve.tolist() == found.high.tolist() == [0, 0]
    assert (found.total, found.total_low, found.total_high) == (0, 0, 0)


def test_rows_of_the_fit_and_a_draw_of_them_say_the_same(monkeypatch):
    rng = np.random.default_rng(8)
    codes = unlinked(3000, 10, rng)
    genotypes, dosage = PackedGenotypes.from_codes(codes), standardised(codes)
    rows = np.sort(rng.choice(3000, 2000, replace=False))
    trait = dosage[rows, 2] + 0.7 * dosage[rows, 8] + rng.normal(size=2000)
    covariates = rng.normal(size=(2000, 1))
    fit = fit_single_effects(genotypes, trait, kind="quantitative", rows=rows, covariates=covariates)
    given = {"kind": "quantitative", "blocks": even_blocks(2), "rows": rows, "covariates": covariates}
    everyone = block_pve([fit], genotypes, **given)
    again = block_pve([fit], genotypes, **given)
    assert everyone.pve.tolist() == again.pve.tolist()
    monkeypatch.setattr(module, "MAX_ROWS", 300)
    some = block_pve([fit], genotypes, **given)
    assert some.pve == pytest.approx(everyone.pve, abs=0.03)
    assert some.pve.tolist() != everyone.pve.tolist()
