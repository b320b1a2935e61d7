"""Turns a network's outputs into probabilities that mean what they say, fitted on validation samples.

Knows no model: it takes logits and targets. Focal loss flattens logits and its class weights shift them, so
both a scale and a bias are needed. Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from snpdeconv.training.metrics import Kind

# Never zero or negative: the order of the predictions stays, and with it AUROC and AUPRC of a binary trait.
SMALLEST_SCALE = 1e-3
# Width of the Gaussian prior around "leave the logits as they are"; keeps the fit finite on separable data.
PRIOR_SD = 2.0


@dataclass(frozen=True)
class Calibration:
    """The map ``scale * logits + bias``.

    Attributes:
        kind: Kind of the trait.
        scale: Positive; the inverse of the temperature.
        bias: One number, or one for each class of a multiclass trait (they sum to 0).
    """

    kind: Kind
    scale: float
    bias: tuple[float, ...]

    def apply(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Calibrated logits (values, for a quantitative trait), shaped as those given."""
        calibrated: NDArray[np.float64] = self.scale * np.asarray(logits, dtype=np.float64) + self.bias
        return calibrated

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes; fit for JSON."""
        return {"kind": self.kind, "scale": self.scale, "bias": list(self.bias)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Calibration:
        """The calibration that `to_dict` wrote."""
        return cls(
            kind=fields["kind"],
            scale=float(fields["scale"]),
            bias=tuple(float(value) for value in fields["bias"]),
        )


def fit_calibration(kind: Kind, logits: ArrayLike, targets: ArrayLike) -> Calibration:
    """Fits scale and bias on samples that the network was not trained on.

    Binary: Platt scaling (Platt 1999). Multiclass: one temperature and a bias for each class, the
    bias-corrected temperature scaling of Alexandari et al. 2020. Both by maximum likelihood with a Gaussian
    prior around the identity, so the log loss on the samples given never rises. Quantitative: the identity,
    as the loss that it was trained with is the one it is measured by.

    Args:
        kind: Kind of the trait.
        logits: (N,), (N, 1) or (N, C), the network's outputs.
        targets: (N,) zeros and ones, class indices, or values.
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


def _fit_softmax(
    logits: NDArray[np.float64], truth: NDArray[np.int64], *, free: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Scale and biases (C,); the biases are the combinations of the rows of `free` (., C)."""
    observed = np.eye(logits.shape[1])[truth]

    def penalised(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
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
