"""Slopes of the marginal likelihood, scores by look-up, and what a trial beyond the first optimum updates."""

import numpy as np
import pytest
import torch

from snpdeconv.finemapping import effects
from snpdeconv.finemapping import gram as gram_module
from snpdeconv.finemapping.columns import Columns, Scaling
from snpdeconv.finemapping.effects import Evidence, SingleEffectSum, best_prior_variance
from snpdeconv.finemapping.gram import LazyGram
from snpdeconv.finemapping.susie import SingleEffect, genotype_score
from snpdeconv.genetics.packed import MISSING, PackedGenotypes


@pytest.fixture(params=["alike", "apart"])
def evidence(request):
    rng = np.random.default_rng(0)
    z2 = rng.chisquare(1, 45)
    z2[[7, 27, 41]] = 20.0, 9.0, 14.0
    variance = np.full(1, 0.01) if request.param == "alike" else rng.uniform(0.005, 0.02, 45)
    prior = rng.random(65)
    prior[20:40] = prior[3] = 0.0
    log_prior = torch.from_numpy(prior / prior.sum()).log()
    return Evidence(
        z2=torch.from_numpy(z2),
        variance=torch.from_numpy(variance),
        log_prior=log_prior[:45],
        log_prior_both=log_prior[45:],
    )


def test_the_slope_is_the_derivative_and_its_root_the_best_variance(evidence):
    for log_variance in (-9.0, -4.0, -1.0, 2.0):
        step = 1e-4
        difference = evidence.marginal(np.exp(log_variance + step)) - evidence.marginal(
            np.exp(log_variance - step)
        )
        assert evidence.slope(log_variance) == pytest.approx(difference / (2 * step), abs=1e-6)
    grid = [evidence.marginal(v) for v in np.exp(np.linspace(-9, 2, 2001))]
    for start in (0.0, 0.05, 0.5):
        assert evidence.marginal(best_prior_variance(evidence, start=start)) > max(grid) - 1e-4


def test_scores_are_those_of_the_codes_one_by_one():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 4, (50, 23)).astype(np.uint8)
    means, slope = rng.random((2, 23)), rng.normal(size=23)
    scaling = Scaling(means[0], 1 + means[1], means[1], slope, 0.5 + means[0], np.array([2.0]))
    index = np.array([2, 11, 22, 23 + 4, 23 + 11, 46])
    values = rng.normal(size=len(index))
    one = SingleEffect(
        columns=index,
        alpha=np.ones(len(index)),
        beside=np.zeros(len(index)),
        mean=values,
        variance=values,
        variants=np.empty((0, 2), dtype=np.int64),
        prior_variance=1.0,
        log_bayes_factor=1.0,
        pve=0.1,
    )
    extra = rng.normal(size=(50, 1))
    of_dosage, of_het, of_extra = scaling.coefficients(index, values)
    called = codes != MISSING
    dosage, het = np.where(called, codes - means[0], 0.0), np.where(called, (codes == 1) - means[1], 0.0)
    expected = dosage @ of_dosage + het @ of_het + extra @ of_extra
    found = genotype_score(PackedGenotypes.from_codes(codes), effects=(one,), scaling=scaling, extra=extra)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_trial_updates_what_is_near_the_columns_taken_away_until_woken():
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 3, (600, 30)).astype(np.uint8)
    codes[:, 11] = np.where(rng.random(600) < 0.9, codes[:, 10], codes[:, 11])
    x = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    y = torch.from_numpy(x[:, [10, 20]] @ [1.0, 1.0] + rng.normal(size=600))
    columns = Columns(PackedGenotypes.from_codes(codes), basis=np.full((600, 1), 600**-0.5), dominance=False)
    found = SingleEffectSum(
        log_prior=torch.full((30,), 1 / 30, dtype=torch.float64).log(),
        log_prior_both=torch.empty(0, dtype=torch.float64),
        max_effects=2,
        entry=1.0,
        limit_passes=False,
    )
    gram = LazyGram(columns)
    found.rebase(gram, gram.correlate(gram.project(y[:, None]))[:, 0])
    for _ in range(3):
        found.sweep(1.0)
    (taken_away,) = found.correlated_effects()
    assert taken_away.tolist() == [10]
    trial = found.without(taken_away)
    (far,) = trial.effects
    trial.sweep(1.0)
    assert [int(effect.alpha.argmax()) for effect in trial.effects] == [20, 11]
    assert trial.effects[0] is far
    trial.reactivate()
    trial.sweep(1.0)
    assert trial.effects[0] is not far


def weak_study():
    """Thirty unlinked SNPs and a trait of which one of them says a little."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, (400, 30)).astype(np.uint8)
    y = torch.from_numpy(0.12 * codes[:, 4] + rng.normal(size=400))
    columns = Columns(PackedGenotypes.from_codes(codes), basis=np.full((400, 1), 400**-0.5))
    log_prior = torch.full((60,), 1 / 60, dtype=torch.float64).log()
    log_prior[30:] = -torch.inf
    found = SingleEffectSum(
        log_prior=log_prior,
        log_prior_both=torch.full((30,), 1 / 60, dtype=torch.float64).log(),
        max_effects=1,
        entry=0.0,
        limit_passes=True,
    )
    gram = LazyGram(columns)
    found.rebase(gram, gram.correlate(gram.project(y[:, None]))[:, 0])
    return found, gram


def test_an_effect_spread_over_many_columns_stays_where_it_would_hardly_move(monkeypatch):
    monkeypatch.setattr(gram_module, "MOST_FETCHED", 2)
    monkeypatch.setattr(effects, "MOST_FETCHED", 2)
    found, gram = weak_study()
    found.sweep(1.0)
    (first,) = found.effects
    assert first.is_spread
    passes = gram.num_passes
    found.sweep(1.001)
    assert found.effects[0] is first
    assert gram.num_passes == passes
    found.sweep(0.8)
    assert found.effects[0] is not first
    assert gram.num_passes > passes


def test_a_pass_for_an_effect_brings_both_columns_of_the_snps_that_may_be_next():
    found, _ = weak_study()
    residual = torch.zeros(60, dtype=torch.float64)
    residual[[7, 20]], residual[25] = 400 * 0.4, 400 * 0.2
    assert sorted(found._peaks(found._evidence(residual, noise=1.0))) == [7, 20, 37, 50]
