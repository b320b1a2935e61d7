"""Association of single variants against scipy, least squares and tests written out from their definition."""

import mpmath
import numpy as np
import pytest
from scipy import optimize, special, stats

from snpdeconv.errors import InputError
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats import association, common
from snpdeconv.stats.association import marginal_association


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    num, snps = 300, 37
    codes = rng.binomial(2, rng.uniform(0.05, 0.5, snps), (num, snps)).astype(np.uint8)
    codes[rng.random((num, snps)) < 0.03] = MISSING
    covariates = rng.normal(size=(num, 3)) * [1, 100, 0.01] + [0, 5000, 0]
    value = imputed(codes)[:, :2] @ [0.5, -0.4] + covariates @ [0.3, 0.01, 20] + rng.normal(size=num)
    return codes, covariates, value


def imputed(codes):
    dosage = np.where(codes == MISSING, np.nan, codes.astype(float))
    mean = np.nansum(dosage, axis=0) / np.maximum(np.sum(codes != MISSING, axis=0), 1)
    return np.where(np.isnan(dosage), mean, dosage)


@pytest.fixture
def normal_tail(monkeypatch):
    """Few alleles or many, scores are taken as normal: what the score test is by its definition."""
    monkeypatch.setattr(association, "ENOUGH_ALLELES", 0)


def packed(codes):
    return PackedGenotypes.from_codes(codes)


@pytest.fixture(params=[False, True], ids=["one chunk", "small chunks"])
def chunks(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(association, "MOST_VARIANTS", 10)
        monkeypatch.setattr(association, "BLOCK_ELEMENTS", 170)


def test_quantitative_equals_linregress(study, chunks):
    codes, _, value = study
    found = marginal_association(packed(codes), value, kind="quantitative")
    expected = [stats.linregress(column, value) for column in imputed(codes).T]
    assert found.beta == pytest.approx(np.array([fit.slope for fit in expected]))
    assert found.se == pytest.approx(np.array([fit.stderr for fit in expected]))
    assert found.neg_log10_p == pytest.approx(-np.log10([fit.pvalue for fit in expected]))
    assert found.statistic == pytest.approx(found.beta / found.se)


def least_squares(columns, value):
    """Coefficients, their standard errors and the residual sum of squares."""
    coefficient, *_ = np.linalg.lstsq(columns, value, rcond=None)
    residual = value - columns @ coefficient
    df = len(value) - columns.shape[1]
    covariance = np.linalg.inv(columns.T @ columns) * (residual @ residual) / df
    return coefficient, np.sqrt(np.diag(covariance)), residual @ residual


def test_quantitative_with_covariates_equals_least_squares(study, chunks):
    codes, covariates, value = study
    found = marginal_association(packed(codes), value, kind="quantitative", covariates=covariates)
    scaled = stats.zscore(covariates)
    for v, dosage in enumerate(imputed(codes).T):
        beta, se, _ = least_squares(np.column_stack([np.ones(300), scaled, dosage]), value)
        assert (found.beta[v], found.se[v]) == pytest.approx((beta[-1], se[-1]))
        p = 2 * stats.t.sf(abs(beta[-1] / se[-1]), 300 - 5)
        assert found.neg_log10_p[v] == pytest.approx(-np.log10(p))


def score_test(dosage, columns, case):
    """Rao's test from its definition: the null model fitted by a general optimiser, float64."""

    def loss(coefficient):
        linear = columns @ coefficient
        return np.sum(np.logaddexp(0, linear) - case * linear), columns.T @ (special.expit(linear) - case)

    null = optimize.minimize(
        loss, np.zeros(columns.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    fitted = special.expit(columns @ null.x)
    weight = fitted * (1 - fitted)
    everything = np.column_stack([columns, dosage])
    information = everything.T @ (weight[:, None] * everything)
    score = everything.T @ (case - fitted)
    return score @ np.linalg.solve(information, score), np.linalg.inv(information)[-1, -1]


@pytest.mark.parametrize("with_covariates", [False, True])
def test_binary_equals_the_score_test_from_its_definition(study, chunks, with_covariates, normal_tail):
    codes, covariates, value = study
    case = (value > np.quantile(value, 0.8)).astype(float)
    given = covariates if with_covariates else None
    found = marginal_association(packed(codes), case, kind="binary", covariates=given)
    columns = (
        np.column_stack([np.ones(300), stats.zscore(covariates)]) if with_covariates else np.ones((300, 1))
    )
    for v, dosage in enumerate(imputed(codes).T):
        statistic, variance = score_test(dosage, columns, case)
        assert found.statistic[v] ** 2 == pytest.approx(statistic, rel=1e-5, abs=1e-8)
        assert found.neg_log10_p[v] == pytest.approx(
            -stats.chi2.logsf(statistic, 1) / np.log(10), rel=1e-5, abs=1e-4
        )
        assert found.se[v] == pytest.approx(np.sqrt(variance), rel=1e-5)
    # The one-step estimate has the sign of the full one, and about its size.
    assert np.sign(found.beta[:2]).tolist() == [1, -1]


def test_multiclass_without_covariates_is_the_analysis_of_variance(study, chunks):
    codes, _, value = study
    classes = np.digitize(value, np.quantile(value, [0.3, 0.5, 0.9]))
    found = marginal_association(packed(codes), classes, kind="multiclass")
    for v, dosage in enumerate(imputed(codes).T):
        expected = stats.f_oneway(*(dosage[classes == c] for c in range(4)))
        assert found.statistic[v] == pytest.approx(expected.statistic)
        assert found.neg_log10_p[v] == pytest.approx(-np.log10(expected.pvalue))
    assert np.isnan(found.beta).all()


def test_multiclass_with_covariates_is_the_nested_f_test(study, chunks):
    codes, covariates, value = study
    classes = np.digitize(value, np.quantile(value, [0.3, 0.6]))
    found = marginal_association(packed(codes), classes, kind="multiclass", covariates=covariates)
    small = np.column_stack([np.ones(300), stats.zscore(covariates)])
    large = np.column_stack([small, classes == 1, classes == 2])
    for v, dosage in enumerate(imputed(codes).T):
        rss_small, rss_large = least_squares(small, dosage)[2], least_squares(large, dosage)[2]
        f = (rss_small - rss_large) / 2 / (rss_large / (300 - 6))
        assert found.statistic[v] == pytest.approx(f)
        assert found.neg_log10_p[v] == pytest.approx(-np.log10(stats.f.sf(f, 2, 294)))


@pytest.mark.parametrize("kind", ["quantitative", "binary", "multiclass"])
def test_only_the_rows_given_count(study, kind):
    codes, covariates, value = study
    rows = np.random.default_rng(1).permutation(300)[:200]
    target = value[rows] if kind == "quantitative" else (value[rows] > np.median(value)).astype(int)
    some = marginal_association(packed(codes), target, kind=kind, rows=rows, covariates=covariates[rows])
    alone = marginal_association(packed(codes[rows]), target, kind=kind, covariates=covariates[rows])
    assert some.neg_log10_p == pytest.approx(alone.neg_log10_p)


@pytest.mark.parametrize("kind", ["quantitative", "binary", "multiclass"])
def test_variants_without_variation_are_last_and_disturb_nothing(study, kind):
    codes, covariates, value = study
    codes = codes.copy()
    codes[:, 3], codes[:, 4], codes[:, 5] = 2, MISSING, MISSING
    codes[7, 5] = 1
    covariates = np.column_stack([covariates, imputed(codes)[:, 6]])
    target = value if kind == "quantitative" else (value > np.median(value)).astype(int)
    found = marginal_association(packed(codes), target, kind=kind, covariates=covariates)
    idle = [3, 4, 5, 6]
    assert not found.neg_log10_p[idle].any()
    assert not found.statistic[idle].any()
    assert np.isnan(found.beta[idle]).all()
    assert np.isnan(found.se[idle]).all()
    rest = np.delete(np.arange(37), idle)
    assert np.isfinite(found.neg_log10_p).all()
    assert np.all(found.neg_log10_p[rest] > 0)
    assert np.isfinite(found.lambda_gc)


def test_repeated_constant_or_no_covariates_change_nothing(study):
    codes, covariates, value = study
    once = marginal_association(packed(codes), value, kind="quantitative", covariates=covariates)
    doubled = np.column_stack([covariates, covariates[:, 0] * 3 + 7, np.ones(300)])
    twice = marginal_association(packed(codes), value, kind="quantitative", covariates=doubled)
    assert twice.neg_log10_p == pytest.approx(once.neg_log10_p)
    none = marginal_association(packed(codes), value, kind="quantitative", covariates=np.empty((300, 0)))
    bare = marginal_association(packed(codes), value, kind="quantitative")
    assert np.array_equal(none.neg_log10_p, bare.neg_log10_p)


def test_a_trait_that_is_a_genotype_has_a_huge_but_finite_statistic(study):
    codes, _, _ = study
    for kind in ("quantitative", "binary", "multiclass"):
        target = (imputed(codes)[:, 0] > 0.5).astype(int)
        exact = np.where(codes == MISSING, 0, codes > 0).astype(np.uint8)
        found = marginal_association(packed(exact), target, kind=kind)
        assert found.neg_log10_p.argmax() == 0
        assert np.isfinite(found.neg_log10_p).all()
        assert found.neg_log10_p[0] > 30


def test_no_variant_at_all_varies():
    found = marginal_association(packed(np.zeros((9, 3), np.uint8)), np.arange(9.0), kind="quantitative")
    assert not found.neg_log10_p.any()
    assert np.isnan(found.lambda_gc)


@pytest.mark.parametrize("kind", ["quantitative", "binary", "multiclass"])
def test_covariates_that_give_the_trait_away_are_an_error(study, kind):
    codes, _, value = study
    target = value if kind == "quantitative" else (value > np.median(value)).astype(int)
    with pytest.raises(InputError, match="covariates: the covariates determine the trait"):
        marginal_association(packed(codes), target, kind=kind, covariates=target * 2.0 + 1)


@pytest.mark.parametrize("num_apart", [1, 8])
def test_a_site_of_controls_only_is_no_error_and_counts_for_nothing(num_apart, normal_tail):
    """The limit of the likelihood is the regression of everyone else, without the indicator."""
    rng = np.random.default_rng(4)
    codes = rng.binomial(2, 0.3, (1000, 20)).astype(np.uint8)
    age = rng.normal(50, 10, 1000)
    case = (rng.random(1000) < special.expit((age - 50) / 10)).astype(float)
    site = np.arange(1000) < num_apart
    case[site] = 0
    found = marginal_association(packed(codes), case, kind="binary", covariates=np.column_stack([site, age]))
    columns = np.column_stack([np.ones(1000), stats.zscore(age)])[~site]
    for v, dosage in enumerate(codes[~site].T.astype(float)):
        statistic, variance = score_test(dosage, columns, case[~site])
        assert found.statistic[v] ** 2 == pytest.approx(statistic, rel=1e-4, abs=1e-6)
        assert found.se[v] == pytest.approx(np.sqrt(variance), rel=1e-4)


def test_the_prior_of_the_null_model_does_not_show_in_a_steep_regression(normal_tail):
    rng = np.random.default_rng(8)
    codes = rng.binomial(2, 0.3, (400, 10)).astype(np.uint8)
    covariate = rng.normal(size=400)
    case = (rng.random(400) < special.expit(6 * covariate)).astype(float)
    found = marginal_association(packed(codes), case, kind="binary", covariates=covariate)
    columns, coefficient = np.column_stack([np.ones(400), stats.zscore(covariate)]), np.zeros(2)
    for _ in range(30):
        fitted = special.expit(columns @ coefficient)
        information = columns.T @ ((fitted * (1 - fitted))[:, None] * columns)
        coefficient += np.linalg.solve(information, columns.T @ (case - fitted))
    everything = [np.column_stack([columns, dosage]) for dosage in codes.T.astype(float)]
    scores = [x.T @ (case - fitted) for x in everything]
    informations = [x.T @ ((fitted * (1 - fitted))[:, None] * x) for x in everything]
    expected = [s @ np.linalg.solve(i, s) for s, i in zip(scores, informations, strict=True)]
    assert found.statistic**2 == pytest.approx(np.array(expected), rel=1e-6)


def test_a_trait_cut_from_a_covariate_is_an_error_however_narrow_the_gap(study):
    codes, covariates, _ = study
    case = (covariates[:, 0] > 0.3).astype(int)
    with pytest.raises(InputError, match="the covariates determine the trait"):
        marginal_association(packed(codes), case, kind="binary", covariates=covariates)


@pytest.mark.parametrize("num", [4, 5])
def test_too_many_covariates_are_an_error(num):
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match=f"6 samples are too few to test a variant beside {num} covariates"):
        marginal_association(
            packed(rng.integers(0, 3, (6, 4)).astype(np.uint8)),
            rng.normal(size=6),
            kind="quantitative",
            covariates=rng.normal(size=(6, num)),
        )


def test_p_values_of_a_null_trait_are_uniform_and_uninflated():
    rng = np.random.default_rng(5)
    codes = rng.binomial(2, 0.3, (400, 6000)).astype(np.uint8)
    case = (rng.random(400) < 0.3).astype(float)
    found = marginal_association(packed(codes), case, kind="binary")
    assert stats.kstest(10**-found.neg_log10_p, "uniform").pvalue > 0.001
    assert found.lambda_gc == pytest.approx(1, abs=0.08)


def test_a_trait_driven_by_ancestry_is_inflated_until_ancestry_is_a_covariate():
    rng = np.random.default_rng(5)
    population = np.repeat([0, 1], 200)
    frequency = np.clip(0.3 + rng.normal(0, 0.06, (2, 6000)), 0.02, 0.98)
    codes = rng.binomial(2, frequency[population]).astype(np.uint8)
    value = population + rng.normal(size=400)
    assert marginal_association(packed(codes), value, kind="quantitative").lambda_gc > 1.5
    adjusted = marginal_association(packed(codes), value, kind="quantitative", covariates=population)
    assert adjusted.lambda_gc == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize(
    ("df", "t"), [(5.0, 2.0), (2000, 0.01), (2000, 5), (2000, 60), (10, 1e6), (1e5, 50), (300, 500)]
)
def test_tails_of_t_in_fifty_digits(df, t):
    with mpmath.workdps(50):
        x = mpmath.mpf(df) / (df + mpmath.mpf(t) ** 2)
        expected = -mpmath.log10(mpmath.betainc(mpmath.mpf(df) / 2, 0.5, 0, x, regularized=True))
    assert common.t_tail(np.array([t, -t]), df=df) == pytest.approx([float(expected)] * 2, rel=1e-9)


@pytest.mark.parametrize(("f", "dfn", "dfd"), [(2.0, 3, 50), (400, 10, 2000), (900, 4, 5000)])
def test_tails_of_f_in_fifty_digits(f, dfn, dfd):
    with mpmath.workdps(50):
        x = mpmath.mpf(dfd) / (dfd + dfn * f)
        p = mpmath.betainc(mpmath.mpf(dfd) / 2, mpmath.mpf(dfn) / 2, 0, x, regularized=True)
    found = common.f_tail(np.array([float(f)]), df_model=dfn, df_residual=dfd)
    assert found == pytest.approx([float(-mpmath.log10(p))], rel=1e-9)


def test_tails_of_the_normal_are_those_of_scipy_and_go_on_beyond():
    z = np.array([0.0, -1.96, 6.0, 37.0])
    assert common.normal_tail(z)[:3] == pytest.approx(-np.log10(2 * stats.norm.sf(np.abs(z[:3]))), abs=1e-12)
    assert common.normal_tail(np.array([100.0]))[0] == pytest.approx(
        float(-mpmath.log10(mpmath.erfc(100 / mpmath.sqrt(2)))), rel=1e-9
    )
    assert common.inflation(np.array([-np.log10(0.5)])) == pytest.approx(1)
    chi2 = np.array([0.2, 1.3, 8.0])
    assert common.inflation(-np.log10(stats.chi2.sf(chi2, 1))) == pytest.approx(1.3 / stats.chi2.median(1))


@pytest.mark.parametrize("num_carriers", [3, 20])
@pytest.mark.parametrize(
    "draw",
    [lambda rng: rng.gamma(8, size=400), lambda rng: np.exp(rng.normal(size=400))],
    ids=["mild", "strong"],
)
def test_few_carriers_in_a_skewed_trait_hold_the_size_of_the_test(draw, num_carriers):
    rng = np.random.default_rng(num_carriers)
    codes = (rng.random((400, 2_000)).argsort(axis=0) < num_carriers).astype(np.uint8)
    genotypes = packed(codes)
    p = np.concatenate(
        [marginal_association(genotypes, draw(rng), kind="quantitative").neg_log10_p for _ in range(6)]
    )
    # Of three carriers, a t-test is below .0001 five times too often in the mild one, ninety in the other.
    assert np.mean(p > 3) < 0.002
    assert np.mean(p > 4) < 0.0004


@pytest.mark.parametrize("place", [-1, -4, -9, -15])
def test_two_carriers_in_a_skewed_trait_have_their_exact_p_value(place):
    value = np.random.default_rng(3).gamma(8, size=300)
    carriers = np.argsort(value)[[place, place - 1]]
    codes = np.zeros((300, 1), dtype=np.uint8)
    codes[carriers] = 1
    found = marginal_association(packed(codes), value, kind="quantitative")
    of_any_two = (value[:, None] + value)[np.triu_indices(300, 1)]
    exact = 2 * np.mean(of_any_two >= value[carriers].sum())
    plain = stats.linregress(codes[:, 0], value)
    assert found.neg_log10_p[0] == pytest.approx(-np.log10(exact), abs=0.06)
    assert -np.log10(plain.pvalue) > found.neg_log10_p[0] + 0.25
    assert found.beta[0] == pytest.approx(plain.slope)
    assert found.statistic[0] == pytest.approx(found.beta[0] / found.se[0])


@pytest.mark.parametrize("num_carriers", [3, 20])
def test_a_small_class_among_large_ones_holds_the_size_of_the_test(num_carriers):
    rng = np.random.default_rng(num_carriers)
    codes = (rng.random((1_000, 3_000)).argsort(axis=0) < num_carriers).astype(np.uint8)
    classes = rng.permutation(np.repeat([0, 1, 2], [10, 490, 500]))
    found = marginal_association(packed(codes), classes, kind="multiclass")
    # An F-test is below .001 sixteen to thirty times too often.
    assert np.mean(found.neg_log10_p > 3) < 0.002


def few_cases(num_snps, *, num_cases, seed):
    rng = np.random.default_rng(seed)
    codes = rng.binomial(2, rng.uniform(0.02, 0.05, num_snps), (2000, num_snps)).astype(np.uint8)
    case = np.zeros(2000)
    case[rng.choice(2000, num_cases, replace=False)] = 1
    return codes, case


@pytest.mark.parametrize("num_cases", [10, 20, 50])
def test_few_cases_hold_the_size_of_the_test(num_cases):
    codes, case = few_cases(8_000, num_cases=num_cases, seed=num_cases)
    found = marginal_association(packed(codes), case, kind="binary")
    # Twice the tail that was seen is on the safe side; the normal tail is below .001 in .6 % to 1 %.
    assert np.mean(found.neg_log10_p > 3) < 0.002
    assert np.mean(found.neg_log10_p > 2) < 0.015


@pytest.mark.parametrize("num_carrying", [3, 4, 5])
def test_a_rare_variant_in_few_cases_has_about_its_exact_p_value(num_carrying):
    case, codes = np.zeros(2000), np.zeros((2000, 1), dtype=np.uint8)
    case[:10] = 1
    codes[10 - num_carrying : 90 - num_carrying] = 1
    found = marginal_association(packed(codes), case, kind="binary")
    tail = stats.hypergeom(2000, 80, 10)
    # Of a discrete sum, a continuous tail lies between the one with and the one without what was seen.
    without, beside = -np.log10(2 * tail.sf([num_carrying, num_carrying - 1]))
    assert beside - 0.1 < found.neg_log10_p[0] < without
    assert found.statistic[0] == pytest.approx(found.beta[0] / found.se[0])


def test_few_cases_agree_with_the_firth_regression_of_plink2():
    rng = np.random.default_rng(7)
    codes = rng.binomial(2, [0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5], (2000, 8)).astype(np.uint8)
    odds = 3.0 ** (codes[:, 0] + codes[:, 3] + codes[:, 5])
    case = np.zeros(2000)
    case[rng.choice(2000, 40, replace=False, p=odds / odds.sum())] = 1
    found = marginal_association(packed(codes), case, kind="binary")
    # `plink2 --glm firth allow-no-covars`, -log10 P; it is bolder among the rarest.
    firth = [5.2517, 0.5981, 0.0688, 1.7688, 1.3879, 5.9896, 0.6084, 0.245]
    assert found.neg_log10_p[2:] == pytest.approx(firth[2:], abs=0.45)
    assert 3 < found.neg_log10_p[0] < firth[0]
