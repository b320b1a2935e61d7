"""What a trained network says of samples, and how well: calibrated on validation, measured on held-out test.

Beside it, its linear part alone and the covariates alone, and what each adds to the other.

Shapes: N samples of a part, O outputs, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import Tensor, nn

from snpdeconv.device import OomSafeBatches, Precision
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.gpu import pick_device
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.samples import Samples
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines.dataset import Dataset, Scale
from snpdeconv.training import distributed
from snpdeconv.training.metrics import (
    MAIN_METRIC,
    Calibration,
    Interval,
    bootstrap_intervals,
    fit_calibration,
    paired_difference,
    probabilities,
)

Figures = dict[str, float | None]
"""Value, low and high of a 95 % interval; None where they are not defined."""


@torch.no_grad()
def logits(
    model: nn.Module,
    packed: NDArray[np.uint8],
    covariates: NDArray[np.float32],
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
) -> NDArray[np.float32]:
    """The network's (N, O) float32 outputs in evaluation mode; in smaller batches where memory runs out.

    `packed` is (N, S / 4) in slot order, `covariates` (N, C), C may be 0.
    """

    def outputs(rows: slice) -> Tensor:
        genotypes = torch.from_numpy(np.ascontiguousarray(packed[rows])).to(device)
        extra = torch.from_numpy(covariates[rows]).to(device) if covariates.shape[1] else None
        with precision.autocast():
            result: Tensor = model(genotypes, extra)
        return result.float().cpu()

    was_training = model.training
    model.eval()
    parts = list(OomSafeBatches(batch_size).map(outputs, num_samples=len(packed)))
    model.train(was_training)
    return torch.cat(parts).numpy()


def statistics_device(genotypes: PackedGenotypes, device: torch.device) -> torch.device:
    """Where single effects and pairs are computed: on all ranks' GPUs, or on the CPU of each; a collective.

    The two round otherwise. Ranks that took the one here and the other there would compare decoys and folds
    with a fit of another rounding.
    """
    fits = pick_device(genotypes, device)
    return torch.device("cpu") if distributed.any_rank(fits.type != device.type, device) else fits


@dataclass(frozen=True)
class Evaluation:
    """Performance on the test samples.

    Attributes:
        test: Value, low and high of the 95 % interval of each metric; None where it is not defined.
        predictions: (N,) probability of class 1 or value in the trait's units, or (N, C) probabilities.
        truth: (N,) classes, or values in the trait's units.
        calibration: Fitted on the validation samples; None where there is none to fit.
    """

    test: dict[str, Figures]
    predictions: NDArray[np.float64]
    truth: NDArray[np.float64] | NDArray[np.int64]
    calibration: Calibration | None


def evaluate_test(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    seed: int,
) -> Evaluation:
    """Calibrates on the validation samples and measures on the test samples, which training never saw."""
    kind = dataset.trait.kind
    part_logits = {
        part: logits(
            model,
            dataset.packed[rows],
            dataset.covariates[rows],
            batch_size=batch_size,
            device=device,
            precision=precision,
        )
        for part, rows in (("val", dataset.split.val), ("test", dataset.split.test))
    }
    # A quantity is predicted as the network says it: to recalibrate it on few samples only adds noise.
    calibration = (
        Calibration(kind=kind, scale=1.0, bias=(0.0,))
        if kind == "quantitative"
        else fit_calibration(kind, part_logits["val"], dataset.target[dataset.split.val])
    )
    predictions = predictions_from(
        part_logits["test"], calibration=calibration, kind=kind, scale=dataset.scale
    )
    return _measured(dataset, predictions, calibration=calibration, seed=seed)


def evaluate_covariates(dataset: Dataset, *, seed: int) -> Evaluation | None:
    """The test samples as a regression on covariates and components alone predicts them; None without any."""
    if not dataset.covariates.shape[1]:
        return None
    kind, train = dataset.trait.kind, dataset.split.train
    model = LinearRegression() if kind == "quantitative" else LogisticRegression(C=100.0, max_iter=1000)
    model.fit(dataset.covariates[train], dataset.trait.values[train])
    rows = dataset.covariates[dataset.split.test]
    if kind == "quantitative":
        predictions = model.predict(rows)
    else:
        predictions = model.predict_proba(rows)
        predictions = predictions[:, 1] if kind == "binary" else predictions
    return _measured(dataset, predictions.astype(np.float64), calibration=None, seed=seed)


def gain(dataset: Dataset, better: Evaluation, other: Evaluation, *, seed: int) -> dict[str, Figures]:
    """By how much the main metric of one is above the other's on the same test samples, with its interval."""
    kind = dataset.trait.kind
    metric = MAIN_METRIC[kind]
    difference = paired_difference(
        kind, better.predictions, other.predictions, better.truth, metric=metric, seed=seed
    )
    return {metric: _figures(difference)}


def _measured(
    dataset: Dataset, predictions: NDArray[np.float64], *, calibration: Calibration | None, seed: int
) -> Evaluation:
    truth = dataset.trait.values[dataset.split.test]
    test = measured(dataset.trait.kind, predictions, truth, seed=seed)
    return Evaluation(test=test, predictions=predictions, truth=truth, calibration=calibration)


def measured(
    kind: TraitKind,
    predictions: NDArray[np.float64],
    truth: NDArray[np.float64] | NDArray[np.int64],
    *,
    seed: int,
) -> dict[str, Figures]:
    """Each metric of some samples' predictions, as `Evaluation` has them, with its bootstrap interval."""
    intervals = bootstrap_intervals(kind, predictions, truth, seed=seed)
    return {name: _figures(interval) for name, interval in intervals.items()}


def finite(value: float | None) -> float | None:
    """The value; None where it is not defined, as JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None


def _figures(interval: Interval) -> Figures:
    return {part: finite(value) for part, value in asdict(interval).items()}


@contextmanager
def linear_part_only(model: InterpretableSNPModel) -> Iterator[InterpretableSNPModel]:
    """The model as its linear part alone, to see what the network adds; the network comes back afterwards."""
    weight = model.head.out.weight.detach()
    kept = weight.clone()
    weight.zero_()
    try:
        yield model
    finally:
        weight.copy_(kept)


def predictions_from(
    outputs: NDArray[np.float32], *, calibration: Calibration, kind: TraitKind, scale: Scale
) -> NDArray[np.float64]:
    """Logits (N, O) -> probabilities (N,) or (N, C), or values (N,) in the trait's units."""
    predicted = probabilities(kind, calibration.apply(outputs))
    return predicted * scale.sd + scale.mean if kind == "quantitative" else predicted


def prediction_table(
    samples: Samples, predictions: NDArray[np.float64], *, kind: TraitKind, classes: Sequence[str]
) -> pd.DataFrame:
    """Columns #FID, IID, prediction and, for classes, a probability each."""
    table = pd.DataFrame({"#FID": samples.fid, "IID": samples.iid})
    if kind == "quantitative":
        table["prediction"] = predictions
        return table
    shares = np.column_stack([1 - predictions, predictions]) if kind == "binary" else predictions
    table["prediction"] = np.array(classes, dtype=object)[shares.argmax(axis=1)]
    for index, name in enumerate(classes):
        table[f"probability_{name}"] = shares[:, index]
    return table
