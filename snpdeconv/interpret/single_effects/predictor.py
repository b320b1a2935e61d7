"""What a logistic regression knows of each sample's log odds, and the covariates' part in it.

Owns pseudo-observations and the expected log likelihood; knows neither columns nor effects.
Shapes: N samples, Q covariates and intercept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

HERMITE_NODES, HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
HERMITE_WEIGHTS = HERMITE_WEIGHTS / HERMITE_WEIGHTS.sum()
# A sample whose outcome is certain would have weight 0 and no response.
LEAST_WEIGHT = 1e-6
NEWTON_STEPS = 40
LONGEST_STEP = 1.0


@dataclass(frozen=True)
class Predictor:
    """Posterior of each sample's linear predictor.

    Attributes:
        mean: (N,).
        variance: (N,).
        squares: (Q,) expected squares of the coefficients of the covariates' orthonormal basis.
    """

    mean: Tensor
    variance: Tensor
    squares: Tensor

    def pseudo_observations(self, case: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, and weights times responses, (N,) each."""
        probability = torch.sigmoid(self._nodes())
        quadrature = self._quadrature()
        expected = probability @ quadrature
        weight = ((probability * (1 - probability)) @ quadrature).clamp(min=LEAST_WEIGHT)
        return weight, weight * self.mean + case - expected

    def expected_log_likelihood(self, case: Tensor) -> float:
        """Sum over samples, by quadrature."""
        sign = (2 * case - 1)[:, None]
        return float((torch.nn.functional.logsigmoid(sign * self._nodes()) @ self._quadrature()).sum())

    def _nodes(self) -> Tensor:
        nodes = torch.from_numpy(HERMITE_NODES).to(self.mean.device)
        return self.mean[:, None] + self.variance.sqrt()[:, None] * nodes

    def _quadrature(self) -> Tensor:
        return torch.from_numpy(HERMITE_WEIGHTS).to(self.mean.device)


def fitted_anew(predictor: Predictor, case: Tensor, *, basis: Tensor, precision: Tensor) -> Predictor:
    """The predictor after the covariates took their best coefficients, all variances unchanged."""
    spread = predictor.squares - (basis.T @ predictor.mean) ** 2
    for _ in range(NEWTON_STEPS):
        weight, product = predictor.pseudo_observations(case)
        slope = basis.T @ (product - weight * predictor.mean) - precision * (basis.T @ predictor.mean)
        curvature = basis.T @ (weight[:, None] * basis) + torch.diag(precision)
        change = basis @ torch.linalg.solve(curvature, slope)
        # From where the outcome is all but certain, a whole step leads far beyond the best place.
        largest = float(change.abs().max())
        predictor = replace(
            predictor, mean=predictor.mean + change * LONGEST_STEP / max(largest, LONGEST_STEP)
        )
        if largest < 1e-4:
            break
    return replace(predictor, squares=spread + (basis.T @ predictor.mean) ** 2)
