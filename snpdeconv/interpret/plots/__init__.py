"""The figures of a report; each function draws one into a PNG. matplotlib is imported on first use."""

from __future__ import annotations

from snpdeconv.interpret.plots.genome import association_plot
from snpdeconv.interpret.plots.pairs import pair_map
from snpdeconv.interpret.plots.performance import (
    block_plot,
    calibration_plot,
    importance_by_method,
    prediction_scatter,
    roc_plot,
    training_curves,
)

__all__ = [
    "association_plot",
    "block_plot",
    "calibration_plot",
    "importance_by_method",
    "pair_map",
    "prediction_scatter",
    "roc_plot",
    "training_curves",
]
