"""How well predictions fit held-out targets: metrics of a kind of trait, their intervals, and calibration.

Owns the names and definitions of the metrics. Knows no model and no loader. Shapes: N samples, C classes, Q
bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats
from sklearn import metrics as sk

from snpdeconv.genetics import TraitKind

Floats = NDArray[np.float64]
NUM_BINS = 10
SMALLEST_PROBABILITY = 1e-15
MAIN_METRIC = {"quantitative": "r2", "binary": "auroc", "multiclass": "auroc"}
"""What models of a kind of trait are compared by."""


def probabilities(kind: TraitKind, logits: ArrayLike) -> Floats:
    """A network's outputs on the scale of the predictions: (N,) or (N, 1) logits of a binary trait as
    probabilities of class 1, (N, C) as probabilities that sum to 1, values of a quantity unchanged.
    """
    outputs = np.asarray(logits, dtype=np.float64)
    if kind == "multiclass":
        shares: Floats = special.softmax(outputs, axis=1)
        return shares
    outputs = outputs.reshape(len(outputs))
    return special.expit(outputs) if kind == "binary" else outputs


def evaluate(kind: TraitKind, predictions: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Metrics of predictions (N,) or (N, C), as `probabilities` gives them, by name.

    binary: auroc, auprc, accuracy, macro_f1, brier, ece, log_loss;
    multiclass: auroc, auprc (each one class against the rest, mean over the classes present), accuracy,
    macro_f1, ece (of the most probable class), log_loss;
    quantitative: r2, pearson_r, rmse, calibration_slope (of the targets on the predictions).
    A class is predicted where its probability is the largest. NaN where these samples do not define a
    metric: auroc and auprc with a single class, r2, correlation and slope where nothing varies.
    """
    if kind == "quantitative":
        return _quantitative(np.asarray(predictions, np.float64), np.asarray(targets, np.float64))
    given = np.asarray(predictions, dtype=np.float64)
    truth = np.asarray(targets).astype(np.int64)
    made = _decide(kind, given, truth)
    ranked = [(truth == c, made.shares[:, c]) for c in made.ranked]
    return {
        "auroc": float(np.mean([sk.roc_auc_score(*pair) for pair in ranked])) if ranked else math.nan,
        "auprc": float(np.mean([sk.average_precision_score(*pair) for pair in ranked]))
        if ranked
        else math.nan,
        "accuracy": float(sk.accuracy_score(truth, made.called)),
        "macro_f1": float(sk.f1_score(truth, made.called, average="macro", zero_division=0.0)),
        **({"brier": float(np.mean((given - truth) ** 2))} if kind == "binary" else {}),
        "ece": calibration_error(made.confidence, made.event),
        "log_loss": float(negative_log_likelihood(kind, given, truth).mean()),
    }


def equal_mass_bins(confidence: Floats, *, num_bins: int = NUM_BINS) -> NDArray[np.intp]:
    """(N,) bin of each sample, from 0, of about equal numbers; equal confidences share a bin."""
    last = np.arange(1, num_bins) * len(confidence) // num_bins
    ends = np.unique(np.sort(confidence)[last[last > 0] - 1])
    return np.searchsorted(ends, confidence, side="left")


def calibration_error(confidence: Floats, correct: NDArray[Any]) -> float:
    """Expected calibration error over 10 bins of equal mass (Nixon et al. 2019, adaptive calibration error).

    The mean over samples of the distance between a bin's mean `confidence` and its share of events,
    `correct`.
    """
    excess = np.bincount(equal_mass_bins(confidence), weights=confidence - correct)
    return float(np.abs(excess).sum() / len(confidence))


@dataclass(frozen=True)
class _Decisions:
    shares: Floats  # (N, C)
    called: NDArray[np.int64]  # (N,)
    ranked: list[int]  # classes with samples inside and outside: ranking metrics exist; of two the second
    confidence: Floats  # (N,) of class 1 of a binary trait, else of the class called
    event: NDArray[np.bool_]  # (N,) whether that is true


def _decide(kind: TraitKind, given: Floats, truth: NDArray[np.int64]) -> _Decisions:
    """What probabilities (N,) of a binary trait, or (N, C), say of each sample."""
    binary = kind == "binary"
    shares = np.stack([1 - given, given], axis=1) if binary else given
    called = (given > 0.5).astype(np.int64) if binary else given.argmax(axis=1)
    counts = np.bincount(truth, minlength=shares.shape[1])
    ranked = np.flatnonzero((counts > 0) & (counts < len(truth))).tolist()
    if binary:
        return _Decisions(shares, called, ranked[-1:], given, truth == 1)
    return _Decisions(shares, called, ranked, given.max(axis=1), called == truth)


def _quantitative(values: Floats, truth: Floats) -> dict[str, float]:
    varies = np.ptp(truth) > 0
    line = stats.linregress(values, truth) if varies and np.ptp(values) > 0 else None
    return {
        "r2": float(sk.r2_score(truth, values)) if varies else math.nan,
        "pearson_r": math.nan if line is None else float(line.rvalue),
        "rmse": float(sk.root_mean_squared_error(truth, values)),
        "calibration_slope": math.nan if line is None else float(line.slope),
    }


def negative_log_likelihood(kind: TraitKind, probability: Floats, truth: NDArray[np.int64]) -> Floats:
    """Of each sample of a binary or multiclass trait, in nats: (N,)."""
    if kind == "binary":
        given = np.where(truth == 1, probability, 1 - probability)
    else:
        given = np.take_along_axis(probability, truth[:, None], axis=1)[:, 0]
    nats: Floats = -np.log(np.clip(given, SMALLEST_PROBABILITY, 1.0))
    return nats


Metrics = dict[str, Floats]
# Resamples x samples handled at once: about 32 MiB an array.
CHUNK_ELEMENTS = 2**22
FEW = 10
SHARES = {"auroc", "auprc", "accuracy", "macro_f1"}


@dataclass(frozen=True)
class Interval:
    """A metric's value with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_intervals(
    kind: TraitKind, predictions: ArrayLike, targets: ArrayLike, *, num_resamples: int = 1000, seed: int
) -> dict[str, Interval]:
    """Bias-corrected percentile bootstrap (Efron 1987) of every metric, as wide as so few samples ask for.

    Samples are drawn with replacement, within each class for binary and multiclass traits, so that no class
    is ever absent. Resamples of few samples vary too little; the percentiles taken are those of a t interval
    (Hesterberg 2015, American Statistician 69:371). The calibration error of a resample is larger than that
    of the sample by construction; its resamples are shifted to have the value as their mean. Accuracy is a
    share of the samples and has Wilson's interval, and so has a share that is the same in all resamples, such
    as the AUROC of few samples in perfect order; macro F1, which rests on how many are called, is no narrower
    than that where a class has under `FEW` samples. NaN where the metric is not defined.
    """
    given = np.asarray(predictions, dtype=np.float64)
    truth, strata = _strata(kind, targets)
    value = evaluate(kind, given, truth)
    weighted = _weighted_metrics(kind, given, truth)
    chunks = [
        weighted(weights)
        for weights in _draws(strata, num_resamples=num_resamples, rng=np.random.default_rng(seed))
    ]
    resampled = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in value}
    if "ece" in value:
        resampled["ece"] = np.maximum(resampled["ece"] + value["ece"] - resampled["ece"].mean(), 0.0)
    width = _width(strata)
    found = {name: _interval(value[name], drawn, width) for name, drawn in resampled.items()}
    fewest = int(np.unique(strata, return_counts=True)[1].min())
    for name in SHARES & found.keys():
        low, high = _wilson(value[name], len(truth) if name == "accuracy" else fewest)
        if name == "accuracy" or np.ptp(resampled[name]) == 0:
            found[name] = Interval(value[name], low, high)
        elif name == "macro_f1" and fewest < FEW:
            narrow = found[name]
            found[name] = Interval(value[name], min(low, narrow.low), max(high, narrow.high))
    return found


def paired_difference(
    kind: TraitKind,
    challenger: ArrayLike,
    champion: ArrayLike,
    targets: ArrayLike,
    *,
    metric: str,
    num_resamples: int = 2000,
    seed: int,
) -> Interval:
    """By how much one model's metric is above another's on the same samples, with its 95 % interval.

    Both see the same resamples, stratified as in `bootstrap_intervals`. NaN where the metric is not defined.
    """
    value, drawn = paired_draws(
        kind, challenger, champion, targets, metric=metric, num_resamples=num_resamples, seed=seed
    )
    return _interval(value, drawn, _width(_strata(kind, targets)[1]))


def _strata(kind: TraitKind, targets: ArrayLike) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """(N,) targets, and what resamples keep the numbers of: the classes, or all samples together."""
    if kind == "quantitative":
        truth = np.asarray(targets, dtype=np.float64)
        return truth, np.zeros(len(truth), dtype=np.int64)
    classes = np.asarray(targets, dtype=np.int64)
    return classes, classes


def paired_draws(
    kind: TraitKind,
    challenger: ArrayLike,
    champion: ArrayLike,
    targets: ArrayLike,
    *,
    metric: str,
    num_resamples: int = 2000,
    seed: int,
) -> tuple[float, Floats]:
    """The difference of `paired_difference`, and that of each resample (R,); equal seeds, equal resamples."""
    truth, strata = _strata(kind, targets)
    both = [np.asarray(given, dtype=np.float64) for given in (challenger, champion)]
    values = [evaluate(kind, given, truth)[metric] for given in both]
    weighted = [_weighted_metrics(kind, given, truth) for given in both]
    drawn = [
        weighted[0](weights)[metric] - weighted[1](weights)[metric]
        for weights in _draws(strata, num_resamples=num_resamples, rng=np.random.default_rng(seed))
    ]
    return values[0] - values[1], np.concatenate(drawn)


def _interval(value: float, drawn: Floats, width: float) -> Interval:
    """The interval of so many standard errors to each side, by percentiles."""
    if math.isnan(value):
        return Interval(value, value, value)
    # Where resamples are lower than the value more often than not, so is the value than the truth.
    below = np.mean(drawn < value) + np.mean(drawn == value) / 2
    bias = stats.norm.ppf(np.clip(below, 1 / len(drawn), 1 - 1 / len(drawn)))
    low, high = np.quantile(drawn, stats.norm.cdf([2 * bias - width, 2 * bias + width]))
    return Interval(value, float(low), float(high))


def _width(strata: NDArray[np.int64]) -> float:
    """Of a 95 % interval to each side, in standard errors of resamples; 1.96 where every stratum is large.

    The variance of a mean of strata is known to Satterthwaite's degrees of freedom, and that of resamples is
    smaller by (n - 1) / n in a stratum of n.
    """
    size = np.unique(strata, return_counts=True)[1]
    left = np.maximum(size - 1, 1)
    df = np.sum(1 / size) ** 2 / np.sum(1 / size**2 / left)
    return float(np.sqrt(np.sum(1 / left) / np.sum(1 / size)) * stats.t.isf(0.025, df))


def _wilson(share: float, num: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many."""
    z = float(stats.norm.isf(0.025))
    centre, half = share + z**2 / (2 * num), z * math.sqrt(share * (1 - share) / num + (z / (2 * num)) ** 2)
    scale = 1 + z**2 / num
    return (centre - half) / scale, (centre + half) / scale


def _draws(strata: NDArray[np.int64], *, num_resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Blocks (r, N) of how often each sample was drawn, stratum by stratum."""
    members = [np.flatnonzero(strata == level) for level in np.unique(strata)]
    num_samples = len(strata)
    step = max(1, CHUNK_ELEMENTS // num_samples)
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        counts = np.zeros((size, num_samples))
        row = np.arange(size)[:, None]
        for group in members:
            drawn = rng.integers(len(group), size=(size, len(group))) + row * len(group)
            tallies = np.bincount(drawn.ravel(), minlength=size * len(group))
            counts[:, group] = tallies.reshape(size, len(group))
        yield counts


def _weighted_metrics(
    kind: TraitKind, given: Floats, truth: NDArray[np.generic]
) -> Callable[[Floats], Metrics]:
    """The function weights (R, N) -> metrics, each (R,); all that no weight changes is done once."""
    if kind == "quantitative":
        return lambda weights: _resampled_quantitative(weights, given, truth.astype(np.float64))
    labels = truth.astype(np.int64)
    made = _decide(kind, given, labels)
    rankings = [_Ranking(made.shares[:, c], labels == c) for c in made.ranked]
    level = np.arange(made.shares.shape[1])
    is_true, is_called = labels[:, None] == level, made.called[:, None] == level
    bins = equal_mass_bins(made.confidence)
    excess = (bins[:, None] == np.arange(bins.max() + 1)) * (made.confidence - made.event)[:, None]
    nll = negative_log_likelihood(kind, given, labels)

    def weighted(weights: Floats) -> Metrics:
        total = weights.sum(axis=1)
        hits = weights @ (is_true & is_called).astype(np.float64)
        sizes = weights @ is_true.astype(np.float64) + weights @ is_called.astype(np.float64)
        f1 = np.divide(2 * hits, sizes, out=np.full_like(hits, np.nan), where=sizes > 0)
        scores = [ranking.scores(weights) for ranking in rankings]
        auroc, auprc = np.mean(scores, axis=0) if scores else np.full((2, len(weights)), np.nan)
        found = {
            "auroc": auroc,
            "auprc": auprc,
            "accuracy": hits.sum(axis=1) / total,
            "macro_f1": np.nanmean(f1, axis=1),
            "ece": np.abs(weights @ excess).sum(axis=1) / total,
            "log_loss": weights @ nll / total,
        }
        if kind == "binary":
            found["brier"] = weights @ (given - labels) ** 2 / total
        return found

    return weighted


class _Ranking:
    """Area under the ROC and precision-recall curves of one class, for many weightings at once."""

    def __init__(self, score: Floats, positive: NDArray[np.bool_]) -> None:
        order = np.argsort(-score, kind="stable")
        falling = score[order]
        self._starts = np.flatnonzero(np.concatenate([[True], falling[1:] != falling[:-1]]))
        self._order = order
        self._positive = positive[order]

    def scores(self, weights: Floats) -> tuple[Floats, Floats]:
        """(R,) AUROC and (R,) average precision; tied scores share a threshold, as in scikit-learn."""
        ordered = weights[:, self._order]
        hits_RT = np.add.reduceat(ordered * self._positive, self._starts, axis=1)
        misses_RT = np.add.reduceat(ordered * ~self._positive, self._starts, axis=1)
        hits_above, misses_above = hits_RT.cumsum(axis=1), misses_RT.cumsum(axis=1)
        num_hits, num_misses = hits_above[:, -1], misses_above[:, -1]
        won = np.sum(misses_RT * (hits_above - hits_RT / 2), axis=1)
        named = hits_above + misses_above
        precision = np.divide(hits_above, named, out=np.zeros_like(named), where=named > 0)
        return won / (num_hits * num_misses), np.sum(hits_RT * precision, axis=1) / num_hits


def _resampled_quantitative(weights: Floats, values: Floats, truth: Floats) -> Metrics:
    # Centred first, so that the moments below do not cancel.
    x, y = values - values.mean(), truth - truth.mean()
    total = weights.sum(axis=1)
    moments = weights @ np.stack([x, y, x * x, y * y, x * y, (values - truth) ** 2], axis=1)
    mean_x, mean_y, xx, yy, xy, squared_error = (moments / total[:, None]).T
    variance_x, variance_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "r2": 1 - squared_error / variance_y,
            "pearson_r": covariance / np.sqrt(variance_x * variance_y),
            "rmse": np.sqrt(squared_error),
            "calibration_slope": covariance / variance_x,
        }


# Never zero or negative: the order of the predictions stays, and with it AUROC and AUPRC of a binary trait.
SMALLEST_SCALE = 1e-3
# Width of the Gaussian prior around "leave the logits as they are"; keeps the fit finite on separable data.
PRIOR_SD = 2.0


@dataclass(frozen=True)
class Calibration:
    """The map ``scale * logits + bias`` of a kind of trait."""

    kind: TraitKind
    scale: float  # positive; the inverse of the temperature
    bias: tuple[float, ...]  # one number, or one for each class of a multiclass trait (they sum to 0)

    def apply(self, logits: ArrayLike) -> Floats:
        """Calibrated logits (values, for a quantitative trait), shaped as those given."""
        calibrated: Floats = self.scale * np.asarray(logits, dtype=np.float64) + self.bias
        return calibrated


def fit_calibration(kind: TraitKind, logits: ArrayLike, targets: ArrayLike) -> Calibration:
    """Fits scale and bias on samples that the network was not trained on: (N,), (N, 1) or (N, C) logits.

    Binary: Platt scaling (Platt 1999). Multiclass: one temperature and a bias for each class, the
    bias-corrected temperature scaling of Alexandari et al. 2020. Both by maximum likelihood with a Gaussian
    prior around the identity, so the log loss on the samples given never rises. Quantitative: the identity,
    as the loss that it was trained with is the one it is measured by.
    """
    if kind == "quantitative":
        return Calibration(kind=kind, scale=1.0, bias=(0.0,))
    outputs = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(targets).astype(np.int64)
    if kind == "binary":
        # A binary trait is the two-class case with logits (0, x) and one free bias.
        outputs = outputs.reshape(len(outputs), 1)
        padded = np.hstack([np.zeros_like(outputs), outputs])
        scale, bias = _fit_softmax(padded, truth, free=np.array([[0.0, 1.0]]))
        return Calibration(kind=kind, scale=scale, bias=(float(bias[1]),))
    scale, bias = _fit_softmax(outputs, truth, free=np.eye(outputs.shape[1]))
    return Calibration(kind=kind, scale=scale, bias=tuple(float(value) for value in bias))


def _fit_softmax(logits: Floats, truth: NDArray[np.int64], *, free: Floats) -> tuple[float, Floats]:
    """Scale and biases (C,); the biases are the combinations of the rows of `free` (., C)."""
    observed = np.eye(logits.shape[1])[truth]

    def penalised(x: Floats) -> tuple[float, Floats]:
        calibrated = x[0] * logits + x[1:] @ free
        log_shares = special.log_softmax(calibrated, axis=1)
        excess = np.exp(log_shares) - observed
        away = (x - identity) / PRIOR_SD**2
        slopes = np.concatenate([[np.sum(excess * logits)], free @ excess.sum(axis=0)])
        return float(-np.sum(observed * log_shares) + away @ (x - identity) / 2), slopes + away

    identity = np.concatenate([[1.0], np.zeros(len(free))])
    bounds = [(SMALLEST_SCALE, None)] + [(None, None)] * len(free)
    # Convex in (scale, bias), so any start gives the one minimum.
    found = optimize.minimize(penalised, identity, jac=True, method="L-BFGS-B", bounds=bounds)
    return float(found.x[0]), found.x[1:] @ free
