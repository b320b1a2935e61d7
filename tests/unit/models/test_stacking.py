"""Weights of scores: against known truths, never negative where they must not be."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from snpdeconv.models.linear import stack


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def test_a_quantity_is_weighted_by_least_squares_beside_covariates(rng):
    good, other = rng.normal(size=(2, 3000, 1))
    covariates = rng.normal(size=(3000, 2)) + 0.5 * good
    target = 3 + 0.8 * good[:, 0] + 0.3 * other[:, 0] + covariates @ [1.0, -2.0] + rng.normal(size=3000)
    found = stack([good, other], target, covariates, kind="quantitative")
    np.testing.assert_allclose([float(s[0, 0]) for s in found.slopes], [0.8, 0.3], atol=0.08)
    np.testing.assert_allclose(found.covariate_slope, [[1.0, -2.0]], atol=0.08)
    np.testing.assert_allclose(found.intercept, [3.0], atol=0.08)


@pytest.mark.parametrize("kind", ["quantitative", "binary"])
def test_a_score_that_points_the_wrong_way_is_left_out(rng, kind):
    good = rng.normal(size=(500, 1))
    target = good[:, 0] + rng.normal(size=500)
    if kind == "binary":
        target = (target > 0).astype(float)
    # What the mean of the others says of each: all of the sample's own value, turned round.
    mean_of_others = ((target.sum() - target) / 499)[:, None]
    found = stack([good, mean_of_others], target, np.empty((500, 0)), kind=kind)
    assert found.slopes[0][0, 0] > 0.3
    assert found.slopes[1][0, 0] == 0
    alone = stack([mean_of_others], target, np.empty((500, 0)), kind=kind)
    assert alone.slopes[0][0, 0] == 0
    share = target.mean()
    odds = np.log(share / (1 - share)) if kind == "binary" else np.nan
    assert alone.intercept[0] == pytest.approx(share if kind == "quantitative" else odds, rel=1e-3)


def test_cases_get_log_odds(rng):
    score, covariate = rng.normal(size=(2, 20_000, 1))
    case = rng.random(20_000) < expit(-1 + 0.5 * score[:, 0] + covariate[:, 0])
    found = stack([score], case.astype(float), covariate, kind="binary")
    assert found.slopes[0][0, 0] == pytest.approx(0.5, abs=0.06)
    assert found.covariate_slope[0, 0] == pytest.approx(1, abs=0.06)
    assert found.intercept[0] == pytest.approx(-1, abs=0.06)


def test_each_class_has_slopes_on_all_scores(rng):
    classes = rng.integers(0, 3, 900)
    first = np.eye(3)[classes] + rng.normal(size=(900, 3))
    second = rng.normal(size=(900, 3))
    found = stack([first, second], classes, np.empty((900, 0)), kind="multiclass")
    assert found.slopes[0].shape == found.slopes[1].shape == (3, 3)
    logits = first @ found.slopes[0].T + second @ found.slopes[1].T + found.intercept
    assert (logits.argmax(1) == classes).mean() > 0.6
    assert np.abs(np.diag(found.slopes[0])).min() > 3 * np.abs(found.slopes[1]).max()
