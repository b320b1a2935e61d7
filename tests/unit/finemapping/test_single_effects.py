"""Single effects against Bayes factors and regressions written out, planted effects, tiles and mistakes."""

import numpy as np
import pytest
import torch
from scipy import optimize, special

from snpdeconv.errors import InputError
from snpdeconv.finemapping import (
    ExtraColumns,
    Settings,
    credible_sets,
    effects,
    fit_one_against_rest,
    fit_single_effects,
    gram,
    joint_pip,
    likelihoods,
)
from snpdeconv.finemapping.columns import Columns
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

ADDITIVE = Settings(dominance_weight=0.0)


def random_codes(num_samples=400, num_variants=60, *, seed=0, missing=0.0):
    rng = np.random.default_rng(seed)
    # Haplotypes that copy their neighbour most of the time, so that there is LD.
    frequency = rng.uniform(0.1, 0.5, num_variants)
    haplotypes = rng.random((2, num_samples, num_variants)) < frequency
    for column in range(1, num_variants):
        copied = rng.random((2, num_samples)) < 0.7
        haplotypes[:, :, column] = np.where(copied, haplotypes[:, :, column - 1], haplotypes[:, :, column])
    codes = haplotypes.sum(axis=0).astype(np.uint8)
    codes[rng.random(codes.shape) < missing] = MISSING
    return codes


def standardised(codes):
    dosage = np.where(codes == MISSING, np.nan, codes.astype(float))
    dosage = np.where(np.isnan(dosage), np.nanmean(dosage, axis=0), dosage)
    return (dosage - dosage.mean(axis=0)) / dosage.std(axis=0)


def fit(codes, y, *, kind="quantitative", **kwargs):
    return fit_single_effects(PackedGenotypes.from_codes(codes), y, kind=kind, **kwargs)


@pytest.fixture(scope="module")
def study():
    codes = random_codes(500, 80, missing=0.02)
    rng = np.random.default_rng(1)
    y = standardised(codes)[:, [10, 40, 70]] @ [0.5, -0.4, 0.3] + rng.normal(size=500)
    return codes, y


def test_one_effect_is_the_exact_posterior_of_one_column():
    codes = random_codes(300, 40)
    x = standardised(codes)
    y = 0.25 * x[:, 7] + np.random.default_rng(2).normal(size=300)
    y -= y.mean()
    found = fit(codes, y, settings=Settings(dominance_weight=0.0, max_effects=1, tolerance=1e-9))
    # In the eigenbasis of V x x' + s2 I the normal density has a closed form; V and s2 maximise their bound.
    s2, variance = found.noise, found.effects[0].prior_variance

    def log_factors(v):
        share = v / (v + s2 / 300)
        return 0.5 * np.log(1 - share) + 0.5 * (x.T @ y) ** 2 / (300 * s2) * share

    direct = [
        -0.5 * np.linalg.slogdet(np.eye(300) + variance / s2 * np.outer(c, c))[1]
        - 0.5 * (y @ np.linalg.solve(s2 * np.eye(300) + variance * np.outer(c, c), y) - y @ y / s2)
        for c in x.T
    ]
    np.testing.assert_allclose(log_factors(variance), direct, atol=1e-8)
    np.testing.assert_allclose(found.pip, special.softmax(direct), atol=1e-5)
    assert found.effects[0].log_bayes_factor == pytest.approx(
        special.logsumexp(direct) - np.log(40), abs=1e-5
    )
    best = optimize.minimize_scalar(
        lambda log_v: -special.logsumexp(log_factors(np.exp(log_v))), bounds=(-12, 3), method="bounded"
    )
    assert np.log(variance) == pytest.approx(best.x, abs=2e-3)


def test_agrees_with_the_reference_implementation(study):
    pysusie = pytest.importorskip("pysusie")
    codes, y = study
    codes = np.where(codes == MISSING, 0, codes).astype(np.uint8)
    reference = pysusie.susie(codes.astype(float), y, L=10)
    found = fit(codes, y, settings=Settings(dominance_weight=0.0, max_effects=10, entry=0.0, refine=False))
    np.testing.assert_allclose(found.pip, reference.pip, atol=1e-3)
    assert found.noise == pytest.approx(reference.sigma2, rel=2e-3)
    assert found.elbo[-1] == pytest.approx(reference.elbo[-1], abs=0.05)


def test_finds_planted_snps_and_explains_them(study):
    codes, y = study
    found = fit(codes, y)
    assert (found.pip[[10, 40, 70]] > 0.9).all()
    assert np.sum(found.pip > 0.5) == 3
    strong = sorted(effect.pve for effect in found.effects)[-3:]
    np.testing.assert_allclose(strong, np.array([0.09, 0.16, 0.25]) / y.var(), atol=0.06)
    assert 0.8 < found.noise < 1.15


def test_bound_never_falls(study):
    codes, y = study
    for kind, trait in (("quantitative", y), ("binary", y > np.quantile(y, 0.8))):
        found = fit(codes, trait, kind=kind, settings=Settings(tolerance=1e-6))
        assert len(found.elbo) > 3
        assert np.diff(found.elbo).min() > -1e-6


def test_snps_in_perfect_ld_share_the_probability():
    codes = random_codes(300, 30, seed=3)
    codes[:, 5] = 2 - codes[:, 20]
    y = 0.6 * standardised(codes)[:, 20] + np.random.default_rng(4).normal(size=300)
    found = fit(codes, y, settings=ADDITIVE)
    assert found.pip[5] == pytest.approx(found.pip[20], abs=1e-4)
    assert found.pip[5] == pytest.approx(0.5, abs=0.05)


def test_a_pure_dominance_effect_is_found_by_its_dominance_column():
    codes = random_codes(600, 50, seed=5)
    het = (codes[:, 25] == 1).astype(float)
    x = standardised(codes)[:, 25]
    het -= het.mean() + x * (x @ het) / len(x)
    y = 0.5 * het / het.std() + np.random.default_rng(6).normal(size=600)
    found = fit(codes, y, settings=Settings(max_effects=3))
    assert found.pip[25] > 0.9
    assert found.column_pip[50 + 25] > 0.9
    effect = found.effects[0]
    of_snp = effect.variants[:, 0] == 25
    assert sorted(effect.columns[of_snp]) == [25, 75]
    assert effect.share.sum() == pytest.approx(1, abs=1e-5)
    size = dict(zip(effect.columns, effect.mean, strict=True))
    assert abs(size[25]) < 0.1 < 0.4 < size[75]
    assert fit(codes, y, settings=ADDITIVE).pip[25] < 0.2


def test_dosage_and_dominance_of_a_snp_are_one_effect_whose_evidence_adds_up():
    """Log Bayes factors and probabilities of every state, written out with one density a state."""
    codes = random_codes(300, 12, seed=8, missing=0.03)
    x = standardised(codes)
    het = np.where(codes == MISSING, np.nan, codes == 1)
    het = np.nan_to_num(het - np.nanmean(het, axis=0))
    het -= x * (x * het).mean(axis=0)
    het /= het.std(axis=0)
    y = 0.3 * x[:, 4] + 0.25 * het[:, 4] + np.random.default_rng(9).normal(size=300)
    y -= y.mean()
    found = fit(codes, y, settings=Settings(max_effects=1, dominance_weight=0.3, tolerance=1e-9))
    (effect,) = found.effects
    s2, v = found.noise, effect.prior_variance

    def log_density(*columns):
        covariance = s2 * np.eye(300) + v * sum(np.outer(c, c) for c in columns)
        return -0.5 * np.linalg.slogdet(covariance / s2)[1] - 0.5 * (
            y @ np.linalg.solve(covariance, y) - y @ y / s2
        )

    alone = np.array([log_density(c) for c in x.T]) + np.log(1 / 1.3 / 12)
    both = np.array([log_density(c, h) for c, h in zip(x.T, het.T, strict=True)]) + np.log(0.3 / 1.3 / 12)
    total = special.logsumexp([alone, both])
    assert effect.log_bayes_factor == pytest.approx(total, abs=1e-4)
    np.testing.assert_allclose(found.pip, np.exp(alone - total) + np.exp(both - total), atol=1e-5)
    np.testing.assert_allclose(found.column_pip[:12], found.pip, atol=1e-9)
    np.testing.assert_allclose(found.column_pip[12:], np.exp(both - total), atol=1e-5)
    assert np.diff(found.elbo).min() > -1e-6
    (one,) = credible_sets(found, PackedGenotypes.from_codes(codes))
    assert one.variants.tolist() == [4]
    np.testing.assert_allclose(found.predict(PackedGenotypes.from_codes(codes)), found.fitted, atol=1e-9)


def test_covariates_equal_a_regression_on_residuals(study):
    codes, y = study
    codes = np.where(codes == MISSING, 0, codes).astype(np.uint8)
    covariates = np.random.default_rng(7).normal(size=(500, 3)) * [1, 1e4, 1e-3] + [0, 1e5, 0]
    covariates[:, 0] += 2 * standardised(codes)[:, 40]
    y = y + covariates @ [1.0, 1e-4, 500.0]
    design = np.hstack([np.ones((500, 1)), (covariates - covariates.mean(axis=0)) / covariates.std(axis=0)])
    project = np.eye(500) - design @ np.linalg.solve(design.T @ design, design.T)
    # Residuals are no genotypes, so they enter as extra columns beside one genotype that does not vary.
    residuals = ExtraColumns(
        values=(project @ codes).astype(np.float32),
        variants=np.stack([np.zeros(80, dtype=np.int64), np.full(80, -1)], axis=1),
        weight=np.ones(80),
    )
    constant = np.zeros((500, 1), dtype=np.uint8)
    expected = fit(constant, project @ y, extra=residuals, settings=Settings(max_effects=10))
    found = fit(codes, y, covariates=covariates, settings=Settings(dominance_weight=0.0, max_effects=10))
    np.testing.assert_allclose(found.column_pip[:80], expected.column_pip[2:], atol=5e-3)
    fitted = found.predict(PackedGenotypes.from_codes(codes), covariates)
    np.testing.assert_allclose(fitted, found.fitted, atol=1e-6)
    # What the fit leaves is uncorrelated with intercept and covariates.
    assert np.abs(design.T @ (y - fitted)).max() < 1e-6 * np.abs(y).sum()


@pytest.mark.parametrize("kind", ["quantitative", "binary"])
def test_tiles_cache_and_wide_supports_do_not_change_the_result(study, kind, monkeypatch):
    codes, y = study
    y = y if kind == "quantitative" else y > np.quantile(y, 0.8)
    covariates = np.random.default_rng(8).normal(size=(500, 2))
    monkeypatch.setattr(likelihoods, "SPREAD_TOLERANCE", 0.0)
    monkeypatch.setattr(effects, "STILL", 0.0)
    exact = {"tolerance": 1e-6}
    expected = fit(codes, y, kind=kind, covariates=covariates, settings=Settings(**exact))
    again = fit(codes, y, kind=kind, covariates=covariates, settings=Settings(**exact))
    np.testing.assert_array_equal(again.pip, expected.pip)
    assert again.elbo == expected.elbo
    monkeypatch.setattr(gram, "BLOCK_BYTES", 1)
    for changed in (
        Settings(tile_variants=12, expensive_genotypes=0, **exact),
        Settings(expensive_genotypes=0, gram_bytes=0, **exact),
        Settings(tile_variants=28, **exact),
    ):
        found = fit(codes, y, kind=kind, covariates=covariates, settings=changed)
        np.testing.assert_allclose(found.pip, expected.pip, atol=2e-4)
        np.testing.assert_allclose(found.fitted, expected.fitted, atol=1e-3)
    for module in (gram, effects):
        monkeypatch.setattr(module, "MOST_FETCHED", 2)
    if kind == "quantitative":
        dense = fit(codes, y, kind=kind, covariates=covariates, settings=Settings(gram_bytes=0, **exact))
        np.testing.assert_allclose(dense.pip, expected.pip, atol=1e-4)


def test_refinement_leaves_a_local_optimum():
    rng = np.random.default_rng(7)
    # Mosaics of six founders, in which one SNP stands in well for two others.
    founders = rng.random((6, 60)) < 0.4
    who = rng.integers(6, size=(2, 500, 1)) + np.zeros((1, 1, 60), dtype=int)
    cut, other = rng.integers(60, size=(2, 500, 1)), rng.integers(6, size=(2, 500, 1))
    who = np.where(np.arange(60) < cut, who, other)
    codes = founders[who, np.arange(60)].sum(axis=0).astype(np.uint8)
    codes = codes[:, codes.std(axis=0) > 0.2]
    causal = rng.choice(codes.shape[1], 4, replace=False)
    y = standardised(codes)[:, causal] @ [0.6, 0.6, -0.6, 0.6] + rng.normal(size=500)
    first, better = (
        fit(codes, y, settings=Settings(dominance_weight=0.0, max_effects=6, refine=refine))
        for refine in (False, True)
    )
    assert first.pip[causal].min() < 0.1
    assert better.pip[causal].min() > 0.9
    assert better.elbo[-1] > first.elbo[-1] + 10
    assert np.diff(better.elbo).min() > -1e-6


def test_sparing_passes_changes_little(study):
    codes, y = study
    expected = fit(codes, y)
    found = fit(codes, y, settings=Settings(expensive_genotypes=0))
    np.testing.assert_allclose(found.pip, expected.pip, atol=0.02)
    assert found.elbo[-1] > expected.elbo[-1] - 0.2
    assert np.diff(found.elbo).min() > -1e-6


def test_truncation_does_not_show(study, monkeypatch):
    codes, y = study
    expected = fit(codes, y)
    monkeypatch.setattr(effects, "MOST_Z_LEFT_OUT", 0.0)
    np.testing.assert_allclose(fit(codes, y).pip, expected.pip, atol=1e-4)


def test_columns_without_variation_get_nothing(study):
    codes, y = study
    codes = codes.copy()
    codes[:, 3], codes[:, 4] = 0, MISSING
    codes[:, 5] = np.where(codes[:, 5] == 2, 1, codes[:, 5])
    found = fit(codes, y)
    np.testing.assert_array_equal(found.pip[[3, 4]], 0)
    np.testing.assert_array_equal(found.column_pip[[80 + 3, 80 + 4, 80 + 5]], 0)
    assert np.isfinite(found.pip).all()
    assert found.pip[40] > 0.9


def test_nothing_in_the_trait_gives_no_strong_snp():
    codes = random_codes(300, 50, seed=9)
    strongest = [fit(codes, np.random.default_rng(s).normal(size=300)).pip.max() for s in range(10)]
    assert np.sum(np.array(strongest) > 0.9) <= 1


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_a_trait_without_noise_is_its_snps(noise):
    codes = random_codes(200, 30, seed=11)
    y = codes[:, 7] + 0.5 * codes[:, 20] + noise * np.random.default_rng(12).normal(size=200)
    found = fit(codes, y)
    assert np.flatnonzero(found.pip > 0.5).tolist() == [7, 20]
    np.testing.assert_allclose(found.fitted, y, atol=5e-3)


def test_the_next_effect_depends_on_what_is_left_alone(study):
    """A trait without effects, and the same beside one that is explained, order and weigh SNPs alike."""
    codes = study[0]
    rest = np.random.default_rng(13).normal(size=len(codes))
    how = Settings(dominance_weight=0.0, entry=4.0)
    alone = fit(codes, rest, settings=how)
    beside = fit(codes, rest + 2.0 * standardised(codes)[:, 40], settings=how)
    far = np.delete(np.arange(80), np.arange(30, 50))
    assert not alone.effects
    np.testing.assert_allclose(beside.next_effect[far], alone.next_effect[far], rtol=0.5)


def test_prior_weights_move_the_posterior():
    codes = random_codes(300, 30, seed=3)
    codes[:, 5] = codes[:, 20]
    y = 0.6 * standardised(codes)[:, 20] + np.random.default_rng(4).normal(size=300)
    weight = np.ones(30)
    weight[5], weight[0] = 3.0, 0.0
    found = fit(codes, y, settings=ADDITIVE, prior_weights=weight)
    assert found.pip[5] / found.pip[20] == pytest.approx(3, rel=0.1)
    assert found.pip[0] == 0


def test_a_pair_column_counts_for_both_of_its_snps():
    codes = random_codes(500, 40, seed=10)
    x = standardised(codes)
    product = (x[:, [4]] * x[:, [30, 31]]).astype(np.float32)
    y = 0.6 * product[:, 0] + np.random.default_rng(11).normal(size=500)
    pairs = ExtraColumns(values=product, variants=np.array([[4, 30], [4, 31]]), weight=np.array([0.01, 0.01]))
    found = fit(codes, y, extra=pairs)
    assert found.pip[4] > 0.9
    assert found.pip[30] > 0.9
    assert found.effects[0].columns[0] == 80
    genotypes = PackedGenotypes.from_codes(codes)
    np.testing.assert_allclose(found.predict(genotypes, extra=product), found.fitted, atol=1e-5)
    with pytest.raises(InputError, match="extra: 0 columns, but the fit had 2"):
        found.predict(genotypes)


def test_predicts_other_samples(study):
    codes, y = study
    train = np.arange(350)
    genotypes = PackedGenotypes.from_codes(codes)
    found = fit_single_effects(genotypes, y[train], kind="quantitative", rows=train)
    predicted = found.predict(genotypes.take(rows=np.arange(350, 500)))
    assert np.corrcoef(predicted, y[350:])[0, 1] > 0.45
    np.testing.assert_allclose(found.predict(genotypes)[:350], found.fitted, atol=1e-6)
    with pytest.raises(InputError, match="covariates: 1 columns"):
        found.predict(genotypes, np.ones((500, 1)))


def test_binary_trait_matches_logistic_regression_on_the_planted_snp():
    codes = random_codes(2000, 30, seed=12)
    x = standardised(codes)[:, 15]
    rng = np.random.default_rng(13)
    age = rng.normal(size=2000)
    case = rng.random(2000) < special.expit(-2.2 + 0.7 * x + 0.8 * age)
    found = fit(
        codes,
        case,
        kind="binary",
        covariates=age[:, None],
        settings=Settings(dominance_weight=0.0, max_effects=1),
    )
    assert found.pip[15] > 0.9
    design = np.stack([np.ones(2000), age, x], axis=1)
    sign = np.where(case, -1, 1)
    exact = optimize.minimize(lambda b: np.logaddexp(0, sign * (design @ b)).sum(), np.zeros(3)).x
    weight = special.expit(design @ exact) * special.expit(-design @ exact)
    se = np.sqrt(np.diag(np.linalg.inv(design.T @ (weight[:, None] * design))))
    effect = found.effects[0]
    assert effect.mean[0] == pytest.approx(exact[2], abs=0.3 * se[2])
    assert found.covariate_coefficients[0] == pytest.approx(exact[1], abs=0.3 * se[1])
    assert found.intercept == pytest.approx(exact[0], abs=0.3 * se[0])


def test_one_class_against_the_rest():
    codes = random_codes(1200, 30, seed=14)
    x = standardised(codes)
    rng = np.random.default_rng(15)
    score = np.stack([np.zeros(1200), x[:, 5], x[:, 22]], axis=1) + rng.gumbel(size=(1200, 3))
    fits = fit_one_against_rest(PackedGenotypes.from_codes(codes), score.argmax(axis=1))
    assert len(fits) == 3
    assert fits[1].pip[5] > 0.9
    assert fits[2].pip[22] > 0.9
    joint = joint_pip(fits)
    # Each effect counts by its Bayes factor, at prior odds of 1 to 2: less than in its own fit.
    assert joint[[5, 22]].min() > 0.9
    assert (joint <= 1 - (1 - fits[0].pip) * (1 - fits[1].pip) * (1 - fits[2].pip) + 1e-12).all()
    for fit in fits:
        np.testing.assert_array_equal(joint_pip((fit,)), fit.pip)


def test_mistakes_are_named(study):
    codes, y = study
    with pytest.raises(InputError, match="target: 5 values for 500 samples"):
        fit(codes, y[:5])
    with pytest.raises(InputError, match="zeros and ones"):
        fit(codes, y, kind="binary")
    with pytest.raises(InputError, match="covariates: the 1 covariates leave nothing"):
        fit(codes, y, covariates=y[:, None])
    with pytest.raises(InputError, match="prior_weights"):
        fit(codes, y, prior_weights=np.ones(7))
    with pytest.raises(InputError, match="no SNP varies"):
        fit(np.zeros_like(codes), y)


def test_stops_and_says_so(study, caplog):
    codes, y = study
    for kind, trait in (("quantitative", y), ("binary", y > 0)):
        fit(codes, trait, kind=kind, settings=Settings(max_sweeps=1))
        assert "the bound still rises after" in caplog.text
        caplog.clear()


@pytest.mark.gpu
def test_gpu_equals_cpu(study):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    codes, y = study
    expected = fit(codes, y)
    found = fit(codes, y, settings=Settings(device="cuda"))
    np.testing.assert_allclose(found.pip, expected.pip, atol=1e-4)


def test_products_are_those_of_the_whole_matrix_also_when_old_rows_give_way(study, monkeypatch):
    codes, _ = study
    monkeypatch.setattr(gram, "MOST_FETCHED", 2)
    rng = np.random.default_rng(16)
    covariates = np.hstack([np.ones((500, 1)), rng.normal(size=(500, 2))])
    basis = np.linalg.qr(covariates)[0]
    columns = Columns(PackedGenotypes.from_codes(codes), basis=basis, dominance=False)
    x = standardised(codes)
    x -= basis @ (basis.T @ x)
    x /= x.std(axis=0)
    weight = rng.uniform(0.1, 1, 500)
    root = np.sqrt(weight)[:, None]
    projected = root * x - (weighted := np.linalg.qr(root * covariates)[0]) @ (weighted.T @ (root * x))
    for given, expected in ((None, x.T @ x), (torch.from_numpy(weight), projected.T @ projected)):
        held = gram.LazyGram(columns, weight=given, cache_bytes=0)
        np.testing.assert_allclose(held.diagonal, np.diag(expected), rtol=1e-4)
        for index in (np.array([0, 1]), np.array([2, 3]), np.array([0, 5]), np.array([4, 9, 30])):
            b = rng.normal(size=len(index))
            np.testing.assert_allclose(
                held.times(index, torch.from_numpy(b)), expected[:, index] @ b, atol=1e-2
            )
