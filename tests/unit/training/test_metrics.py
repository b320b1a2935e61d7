"""Metrics against scikit-learn and hand-made cases; intervals against resamples written out; calibration."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from sklearn.metrics import log_loss, roc_auc_score

from snpdeconv.files import parse_record
from snpdeconv.training.metrics import (
    Calibration,
    _weighted_metrics,
    bootstrap_intervals,
    calibration_error,
    equal_mass_bins,
    evaluate,
    fit_calibration,
    paired_difference,
    probabilities,
)


def binary_case(num=200, *, seed=0, decimals=2):
    """Calibrated probabilities; rounded, so that there are ties."""
    rng = np.random.default_rng(seed)
    probability = np.round(special.expit(rng.normal(-1, 1.5, num)), decimals)
    return probability, (rng.random(num) < probability).astype(np.int64)


def multiclass_case(num=200, num_classes=4, *, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (num, num_classes))
    shares = special.softmax(logits, axis=1)
    truth = np.array([rng.choice(num_classes, p=row) for row in shares])
    return logits, shares, truth


def test_binary_metrics_of_four_samples_by_hand():
    found = evaluate("binary", np.array([0.9, 0.6, 0.4, 0.2]), np.array([1, 0, 1, 0]))
    assert found == pytest.approx(
        {
            "auroc": 0.75,
            "auprc": (1 + 2 / 3) / 2,
            "accuracy": 0.5,
            "macro_f1": 0.5,
            "brier": (0.1**2 + 0.6**2 + 0.6**2 + 0.2**2) / 4,
            "ece": (0.1 + 0.6 + 0.6 + 0.2) / 4,
            "log_loss": -np.log([0.9, 0.4, 0.4, 0.8]).mean(),
        }
    )


def test_multiclass_metrics_are_means_over_classes_against_the_rest():
    _, shares, truth = multiclass_case()
    found = evaluate("multiclass", shares, truth)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, shares, multi_class="ovr", average="macro"))
    assert found["log_loss"] == pytest.approx(log_loss(truth, shares))


def test_a_class_that_nobody_has_is_left_out_of_the_means():
    _, shares, truth = multiclass_case(num_classes=3)
    padded = np.hstack([shares * 0.999, np.full((len(shares), 1), 0.001)])
    with_absent = evaluate("multiclass", padded, truth)
    assert with_absent["auroc"] == pytest.approx(evaluate("multiclass", shares, truth)["auroc"])


def test_quantitative_metrics_of_a_shifted_and_scaled_prediction():
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    found = evaluate("quantitative", truth / 2 + 1, truth)
    assert found["pearson_r"] == pytest.approx(1)
    assert found["calibration_slope"] == pytest.approx(2)
    residual = truth / 2 - 1
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(residual**2)))
    assert found["r2"] == pytest.approx(1 - np.sum(residual**2) / 5)


def test_what_is_not_defined_is_nan_and_nothing_else_is():
    one_class = evaluate("binary", np.array([0.2, 0.4]), np.array([0, 0]))
    assert {name for name, value in one_class.items() if math.isnan(value)} == {"auroc", "auprc"}
    one_of_three = evaluate("multiclass", np.full((4, 3), 1 / 3), np.zeros(4, int))
    assert {name for name, value in one_of_three.items() if math.isnan(value)} == {"auroc", "auprc"}
    constant = evaluate("quantitative", np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert {n for n, v in constant.items() if math.isnan(v)} == {"pearson_r", "calibration_slope"}
    assert math.isnan(evaluate("quantitative", np.zeros(3), np.ones(3))["r2"])


def test_calibration_error_is_small_for_calibrated_and_large_for_overconfident_probabilities():
    rng = np.random.default_rng(0)
    probability = rng.uniform(0, 1, 50_000)
    event = (rng.random(50_000) < probability).astype(int)
    assert calibration_error(probability, event) < 0.01
    # Squared odds: the mean distance between p and its overconfident version.
    overconfident = special.expit(2 * special.logit(probability))
    expected = np.mean(np.abs(overconfident - probability))
    assert calibration_error(overconfident, event) == pytest.approx(expected, abs=0.01)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]) | st.floats(0, 1), min_size=1, max_size=60))
def test_bins_are_ordered_and_never_part_equal_confidences(values):
    confidence = np.array(values)
    bins = equal_mass_bins(confidence)
    assert bins.min() >= 0
    assert bins.max() < 10
    order = np.argsort(confidence)
    assert np.all(np.diff(bins[order]) >= 0)
    assert len({(c, b) for c, b in zip(values, bins, strict=True)}) == len(set(values))


def test_bins_of_distinct_confidences_hold_equal_numbers():
    assert np.bincount(equal_mass_bins(np.linspace(0, 1, 200))).tolist() == [20] * 10


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_probabilities_are_logistic_softmax_or_the_values(shape):
    logits = np.linspace(-800, 800, 5).reshape(shape)
    assert probabilities("binary", logits) == pytest.approx([0, 0, 0.5, 1, 1])
    assert probabilities("quantitative", logits).tolist() == [-800, -400, 0, 400, 800]
    assert probabilities("multiclass", [[0.0, np.log(3)], [1000.0, 0.0]]) == pytest.approx(
        np.array([[0.25, 0.75], [1, 0]])
    )


@pytest.mark.parametrize("kind", ["binary", "multiclass", "quantitative"])
def test_weighted_metrics_equal_those_of_the_samples_written_out(kind):
    rng = np.random.default_rng(3)
    if kind == "binary":
        predictions, truth = binary_case(80, decimals=1)
    elif kind == "multiclass":
        _, predictions, truth = multiclass_case(80)
    else:
        truth = rng.normal(170, 8, 80)
        predictions = truth + rng.normal(0, 5, 80)
    weights = rng.integers(0, 4, size=(20, 80)).astype(float)
    found = _weighted_metrics(kind, predictions, truth)(weights)
    for r, counts in enumerate(weights.astype(int)):
        expected = evaluate(kind, np.repeat(predictions, counts, axis=0), np.repeat(truth, counts))
        expected.pop("ece", None)  # Its bins are those of the whole sample.
        assert {name: found[name][r] for name in expected} == pytest.approx(expected, rel=1e-9)
    assert set(found) == set(evaluate(kind, predictions, truth))
    once = _weighted_metrics(kind, predictions, truth)(np.ones((1, 80)))
    assert {name: value[0] for name, value in once.items()} == pytest.approx(
        evaluate(kind, predictions, truth)
    )


def test_intervals_surround_the_value_are_seeded_and_shrink_with_more_samples(monkeypatch):
    small = bootstrap_intervals("binary", *binary_case(200), seed=1)
    large = bootstrap_intervals("binary", *binary_case(3200), seed=1)
    for name, interval in small.items():
        assert interval.low <= interval.value <= interval.high, name
        assert large[name].high - large[name].low < 0.6 * (interval.high - interval.low)
    assert bootstrap_intervals("binary", *binary_case(200), seed=1) == small
    assert bootstrap_intervals("binary", *binary_case(200), seed=2) != small
    monkeypatch.setattr("snpdeconv.training.metrics.CHUNK_ELEMENTS", 200 * 300)
    in_chunks = bootstrap_intervals("binary", *binary_case(200), seed=1)
    assert in_chunks["auroc"].low == pytest.approx(small["auroc"].low, abs=0.02)


def test_interval_of_a_correlation_is_that_of_fisher():
    rng = np.random.default_rng(0)
    value = rng.normal(size=1000)
    truth = 0.6 * value + 0.8 * rng.normal(size=1000)
    interval = bootstrap_intervals("quantitative", value, truth, seed=0)["pearson_r"]
    z = np.arctanh(interval.value)
    assert interval.low == pytest.approx(np.tanh(z - 1.96 / np.sqrt(997)), abs=0.012)
    assert interval.high == pytest.approx(np.tanh(z + 1.96 / np.sqrt(997)), abs=0.012)


@pytest.mark.parametrize(("num", "share"), [(16, 0.5), (30, 0.2), (90, 0.2)])
def test_intervals_of_few_people_cover_the_truth(num, share):
    rng = np.random.default_rng(num)

    def drawn(size):
        case = (np.arange(size) < share * size).astype(int)
        log_odds = np.log(share / (1 - share)) + rng.normal(size=size) + case - 0.5
        return special.expit(log_odds), case

    truth = evaluate("binary", *drawn(100_000))
    covered = dict.fromkeys(["auroc", "auprc", "accuracy", "macro_f1", "brier", "log_loss"], 0)
    for _ in range(120):
        found = bootstrap_intervals("binary", *drawn(num), num_resamples=300, seed=1)
        for name in covered:
            covered[name] += found[name].low <= truth[name] <= found[name].high
    # Percentiles alone: accuracy .44 and AUROC .84 of 15 people with three cases.
    assert min(covered.values()) >= 0.84 * 120, covered


@pytest.mark.parametrize("num", [16, 90])
def test_intervals_of_a_quantity_in_few_people_cover_the_truth(num):
    rng = np.random.default_rng(num)
    covered = dict.fromkeys(["r2", "pearson_r", "rmse"], 0)
    truth = {"r2": 0.5, "pearson_r": 0.5**0.5, "rmse": 0.5**0.5}
    for _ in range(120):
        value = rng.normal(size=num) * 0.5**0.5
        found = bootstrap_intervals(
            "quantitative", value, value + rng.normal(size=num) * 0.5**0.5, num_resamples=300, seed=1
        )
        for name in covered:
            covered[name] += found[name].low <= truth[name] <= found[name].high
    assert min(covered.values()) >= 0.84 * 120, covered


def test_few_people_in_perfect_order_promise_no_certainty():
    found = bootstrap_intervals("binary", [0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0, 0, 0, 1, 1, 1], seed=0)
    assert (found["auroc"].value, found["accuracy"].value) == (1, 1)
    assert found["auroc"].low == pytest.approx(0.438, abs=0.001)  # Wilson's bound of three of three
    assert found["accuracy"].low == pytest.approx(0.610, abs=0.001)  # and of six of six


def test_a_class_of_two_people_is_in_every_resample():
    _, shares, truth = multiclass_case(60, 3)
    truth[:] = np.where(np.arange(60) < 2, 2, truth % 2)
    intervals = bootstrap_intervals("multiclass", shares, truth, seed=0)
    assert all(math.isfinite(i.low) and math.isfinite(i.high) for i in intervals.values())


def test_undefined_metrics_have_undefined_intervals():
    intervals = bootstrap_intervals("quantitative", np.zeros(20), np.arange(20.0), seed=0)
    assert math.isnan(intervals["pearson_r"].high)
    assert math.isfinite(intervals["rmse"].high)
    assert math.isnan(bootstrap_intervals("binary", [0.2, 0.6], [0, 0], seed=0)["auroc"].low)


def test_platt_scaling_undoes_a_known_distortion():
    rng = np.random.default_rng(0)
    true_logit = rng.normal(-2, 2, 20_000)
    truth = (rng.random(20_000) < special.expit(true_logit)).astype(int)
    distorted = (true_logit + 1.5) / 2.5
    calibration = fit_calibration("binary", distorted[:, None], truth)
    assert calibration.scale == pytest.approx(2.5, rel=0.05)
    assert calibration.bias == pytest.approx((-1.5,), abs=0.1)
    calibrated = evaluate("binary", probabilities("binary", calibration.apply(distorted)), truth)
    before = evaluate("binary", probabilities("binary", distorted), truth)
    assert calibrated["log_loss"] < before["log_loss"] - 0.1
    assert calibrated["ece"] < 0.01 < before["ece"]
    assert calibrated["auroc"] == before["auroc"]


def test_class_biases_and_temperature_undo_a_known_distortion():
    logits, _, truth = multiclass_case(20_000, 3)
    distorted = (logits - np.array([1.0, -0.5, -0.5])) / 2
    calibration = fit_calibration("multiclass", distorted, truth)
    assert calibration.scale == pytest.approx(2, rel=0.05)
    assert calibration.bias == pytest.approx((1.0, -0.5, -0.5), abs=0.1)


@given(st.integers(0, 10_000), st.integers(2, 40), st.sampled_from(["binary", "multiclass"]))
@settings(max_examples=30, deadline=None)
def test_calibration_never_raises_the_log_loss_it_was_fitted_on(seed, num, kind):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (num, 1 if kind == "binary" else 3))
    truth = rng.integers(0, 2 if kind == "binary" else 3, num)
    calibration = fit_calibration(kind, logits, truth)

    def loss(outputs):
        return evaluate(kind, probabilities(kind, outputs), truth)["log_loss"]

    assert calibration.scale > 0
    assert loss(calibration.apply(logits)) <= loss(logits) + 1e-6


def test_separable_samples_give_a_finite_scale_and_useless_logits_the_base_rate():
    separable = fit_calibration("binary", np.array([-1.0, -2.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert 1 < separable.scale < 20
    rng = np.random.default_rng(0)
    noise = rng.normal(size=5000)
    truth = (rng.random(5000) < 0.1).astype(int)
    predicted = probabilities("binary", fit_calibration("binary", noise, truth).apply(noise))
    assert predicted == pytest.approx(np.full(5000, truth.mean()), abs=0.05)


def test_a_calibration_survives_json_and_leaves_quantities_alone():
    calibration = fit_calibration("multiclass", *multiclass_case(100)[::2])
    kept = json.dumps(asdict(calibration)).encode()
    assert parse_record(kept, Calibration, where="", hint="") == calibration
    values = np.array([[1.0], [2.0]])
    assert fit_calibration("quantitative", values, np.array([5.0, 9.0])).apply(values).tolist() == [
        [1.0],
        [2.0],
    ]


def test_the_difference_of_two_models_is_told_far_more_finely_than_either_of_them():
    rng = np.random.default_rng(5)
    truth = rng.normal(size=600)
    shared = truth + rng.normal(size=600)
    better, worse = shared * 0.5, shared * 0.5 + 0.15 * rng.normal(size=600)
    difference = paired_difference("quantitative", better, worse, truth, metric="r2", seed=2)
    assert difference.value == pytest.approx(
        evaluate("quantitative", better, truth)["r2"] - evaluate("quantitative", worse, truth)["r2"]
    )
    assert 0 < difference.low < difference.value < difference.high
    alone = bootstrap_intervals("quantitative", better, truth, seed=2)["r2"]
    assert difference.high - difference.low < (alone.high - alone.low) / 2
    swapped = paired_difference("quantitative", worse, better, truth, metric="r2", seed=2)
    assert (swapped.value, swapped.low) == (-difference.value, pytest.approx(-difference.high))


def test_the_interval_of_a_difference_covers_it():
    covered = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = (rng.random(300) < 0.3).astype(int)
        signal = truth + rng.normal(size=300)
        first, second = (1 / (1 + np.exp(-(signal + 0.5 * rng.normal(size=300)))) for _ in range(2))
        interval = paired_difference(
            "binary", first, second, truth, metric="auroc", num_resamples=400, seed=1
        )
        covered += interval.low <= 0 <= interval.high  # both are equally good
    assert covered >= 52


def test_the_difference_of_an_undefined_metric_is_nan():
    ones = np.ones(20, dtype=int)
    assert np.isnan(paired_difference("binary", ones * 0.5, ones * 0.4, ones, metric="auroc", seed=1).value)
