"""Binary traits: the bound against quadrature, covariates that part cases from controls, local optima."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special

from snpdeconv.finemapping import Settings, credible_sets, fit_single_effects, likelihoods
from snpdeconv.finemapping.columns import Columns
from snpdeconv.finemapping.effects import SingleEffectSum
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

NO_EFFECTS = Settings(max_effects=0)


def random_genotypes(num_samples, num_variants=40, *, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.binomial(2, rng.uniform(0.1, 0.5, num_variants), size=(num_samples, num_variants))
    return PackedGenotypes.from_codes(codes.astype(np.uint8))


def test_the_bound_of_covariates_alone_is_about_their_marginal_likelihood():
    num_samples = 60
    rng = np.random.default_rng(1)
    age = rng.normal(size=num_samples)
    case = rng.random(num_samples) < special.expit(age - 0.5)
    fit = fit_single_effects(
        random_genotypes(num_samples), case, kind="binary", covariates=age[:, None], settings=NO_EFFECTS
    )
    sign = np.where(case, -1, 1)
    unit = (age - age.mean()) / age.std()

    def integrand(slope, intercept):
        log_odds = intercept + slope * unit
        prior = np.exp(-0.5 * (slope / likelihoods.COVARIATE_SD) ** 2) / np.sqrt(2 * np.pi)
        return np.exp(-np.logaddexp(0, sign * log_odds).sum()) * prior / likelihoods.COVARIATE_SD

    # The bound's intercept is in the unit of the orthonormal basis.
    exact = np.log(integrate.dblquad(integrand, -4, 4, -4, 5)[0] * np.sqrt(num_samples))
    assert exact - 0.1 < fit.elbo[-1] < exact


@pytest.mark.parametrize("parted", ["all", "one side"])
def test_covariates_that_part_cases_from_controls_do_not_hold_up_the_fit(parted, caplog):
    rng = np.random.default_rng(2)
    num_samples = 600
    age, sex = rng.normal(size=num_samples), rng.random(num_samples) < 0.3
    case = age > 1 if parted == "all" else (rng.random(num_samples) < 0.3) & ~sex
    covariates = np.column_stack([age, sex])
    genotypes = random_genotypes(num_samples)
    fit = fit_single_effects(genotypes, case, kind="binary", covariates=covariates)
    assert not caplog.records
    assert len(fit.elbo) < 10
    assert fit.pip.max() < 0.5
    probability = special.expit(fit.predict(genotypes, covariates))
    if parted == "all":
        assert probability[case].mean() > 0.8
        assert probability[~case].mean() < 0.05
    else:
        assert probability[sex].max() < 0.02


def test_the_prior_of_covariates_says_next_to_nothing_where_the_data_speak():
    rng = np.random.default_rng(3)
    age = rng.normal(size=3000)
    case = rng.random(3000) < special.expit(1.5 * age - 1)
    fit = fit_single_effects(
        random_genotypes(3000), case, kind="binary", covariates=1e6 * age[:, None], settings=NO_EFFECTS
    )
    assert 1e6 * fit.covariate_coefficients[0] == pytest.approx(1.5, abs=0.2)
    # The score equations of an unpenalised fit.
    left = case - special.expit(fit.fitted)
    assert abs(left.mean()) < 2e-3
    assert abs(left @ age) / len(age) < 2e-3


def test_refinement_leaves_a_local_optimum():
    rng = np.random.default_rng(17)
    # Mosaics of six founders, in which one SNP stands in well for two others.
    founders = rng.random((6, 60)) < 0.4
    who = rng.integers(6, size=(2, 1000, 1)) + np.zeros((1, 1, 60), dtype=int)
    cut, other = rng.integers(60, size=(2, 1000, 1)), rng.integers(6, size=(2, 1000, 1))
    who = np.where(np.arange(60) < cut, who, other)
    codes = founders[who, np.arange(60)].sum(axis=0).astype(np.uint8)
    codes = codes[:, codes.std(axis=0) > 0.2]
    causal = rng.choice(codes.shape[1], 4, replace=False)
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    case = rng.random(1000) < special.expit(z[:, causal] @ [1.2, 1.2, -1.2, 1.2] - 1)
    first, better = (
        fit_single_effects(
            PackedGenotypes.from_codes(codes),
            case,
            kind="binary",
            settings=Settings(dominance_weight=0.0, max_effects=6, refine=refine),
        )
        for refine in (False, True)
    )
    assert first.pip[causal].min() < 0.1
    assert better.pip[causal].min() > 0.9
    assert better.elbo[-1] > first.elbo[-1] + 10
    assert np.diff(better.elbo).min() > -1e-6


def test_a_climb_that_stopped_early_goes_on_to_the_fine_tolerance():
    rng = np.random.default_rng(3)
    codes = rng.binomial(2, 0.4, size=(500, 20)).astype(np.uint8)
    case = rng.random(500) < special.expit(codes[:, 3] - codes[:, 12].astype(float))
    columns = Columns(PackedGenotypes.from_codes(codes), basis=np.full((500, 1), 500**-0.5), dominance=False)

    def climb(*tolerances):
        effects = SingleEffectSum(
            log_prior=torch.full((20,), 1 / 20, dtype=torch.float64).log(),
            log_prior_both=torch.empty(0, dtype=torch.float64),
            max_effects=2,
            entry=1.0,
            limit_passes=False,
        )
        started = likelihoods.LogisticClimb.start(
            columns, torch.from_numpy(case.astype(float)), effects, gram_bytes=2**20
        )
        started.settle_covariates(tolerance=1e-6)
        lengths = []
        for tolerance in tolerances:
            assert started.run(max_sweeps=200, tolerance=tolerance)
            lengths.append(len(started.elbo))
        return started.elbo, lengths

    at_once, _ = climb(1e-6)
    in_two, (stopped, ended) = climb(1.0, 1e-6)
    assert stopped < ended
    assert at_once[-1] > in_two[stopped - 1]
    assert in_two == pytest.approx(at_once, abs=1e-6)


def test_weighted_squares_are_the_same_with_and_without_missing_genotypes():
    rng = np.random.default_rng(5)
    codes = random_genotypes(500, seed=6).codes()
    case = rng.random(500) < special.expit(codes[:, 7] - 1.5)
    codes[:, 39] = rng.binomial(2, 0.3, 500)
    complete = fit_single_effects(PackedGenotypes.from_codes(codes), case, kind="binary")
    # A SNP of its own tile makes the tile's products the long way; without a genotype it cannot act.
    codes[0, 39] = MISSING
    holey = fit_single_effects(PackedGenotypes.from_codes(codes), case, kind="binary")
    np.testing.assert_allclose(holey.pip[:39], complete.pip[:39], atol=0.01)


def rare_study(num_carrying_cases, *, num_cases, seed=0):
    """Two thousand people and 12 rare SNPs, of the first of which so many cases are carriers."""
    rng = np.random.default_rng(seed)
    codes = rng.binomial(2, 0.025, size=(2000, 12)).astype(np.uint8)
    carries = codes[:, 0] > 0
    cases = [
        *rng.choice(np.flatnonzero(carries), num_carrying_cases, replace=False),
        *rng.choice(np.flatnonzero(~carries), num_cases - num_carrying_cases, replace=False),
    ]
    case = np.zeros(2000)
    case[cases] = 1
    return codes, case


def log_bayes_factor(case, column, prior_variance):
    """By quadrature over the effect, the intercept at its best for each size of it."""

    def best(effect):
        def slope(intercept):
            return special.expit(intercept + effect * column).sum() - case.sum()

        log_odds = optimize.brentq(slope, -80, 80) + effect * column
        return float((case * log_odds - np.logaddexp(0, log_odds)).sum())

    null, sd = best(0.0), prior_variance**0.5
    nodes = np.linspace(-8 * sd, 8 * sd, 161)
    gain = np.array([best(effect) for effect in nodes]) - null
    density = np.exp(-0.5 * (nodes / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    return float(np.log(integrate.simpson(np.exp(gain) * density, x=nodes)))


@pytest.mark.parametrize(("carrying", "num_cases"), [(4, 10), (6, 20), (10, 20), (0, 50)])
def test_evidence_of_few_cases_is_that_of_the_likelihood(carrying, num_cases):
    codes, case = rare_study(carrying, num_cases=num_cases)
    settings = Settings(max_effects=1, dominance_weight=0.0)
    fit = fit_single_effects(PackedGenotypes.from_codes(codes), case, kind="binary", settings=settings)
    share = num_cases / 2000
    most = -(num_cases * np.log(share) + (2000 - num_cases) * np.log(1 - share))
    assert all(effect.log_bayes_factor <= most for effect in fit.effects)
    assert np.diff(fit.elbo).min(initial=0.0) >= 0
    if carrying == 10:
        assert fit.pip[0] > 0.9
    for effect in fit.effects:
        z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
        exact = [log_bayes_factor(case, column, effect.prior_variance) for column in z.T]
        expected = special.logsumexp(exact) - np.log(12)
        assert effect.log_bayes_factor == pytest.approx(expected, abs=0.35)


@pytest.mark.parametrize("num_cases", [10, 20, 50])
def test_few_cases_without_effect_give_no_set_and_no_run_off(num_cases):
    for seed in range(4):
        rng = np.random.default_rng([seed, num_cases])
        codes = rng.binomial(2, rng.uniform(0.02, 0.05, 200), size=(2000, 200)).astype(np.uint8)
        case = np.zeros(2000)
        case[rng.choice(2000, num_cases, replace=False)] = 1
        genotypes = PackedGenotypes.from_codes(codes)
        fit = fit_single_effects(genotypes, case, kind="binary")
        assert not credible_sets(fit, genotypes)
        assert fit.pip.max() < 0.5
        assert sum(effect.pve for effect in fit.effects) < 0.5


def test_effects_less_likely_than_none_are_refused_with_a_word(caplog, monkeypatch):
    caplog.set_level("INFO", logger=likelihoods.__name__)
    codes, case = rare_study(10, num_cases=20)
    genotypes = PackedGenotypes.from_codes(codes)
    assert fit_single_effects(genotypes, case, kind="binary").effects
    assert "refused" not in caplog.text
    # Divergences so large that no effect is worth them.
    monkeypatch.setattr(SingleEffectSum, "divergence", lambda self: 1e3 * len(self.effects))
    assert not fit_single_effects(genotypes, case, kind="binary").effects
    assert caplog.text.count("refused effects under which the data are less likely than without any") == 1
