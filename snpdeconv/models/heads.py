"""From features to outputs: the wide additive path, the covariates' path and the network's own head.

On biobank traits networks lose to linear models (Kelemen 2025, Grealey 2024), so every architecture carries
the linear model and starts as it; the network adds what is left.
Shape suffixes: B batch, C channels, S slots, D width, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snpdeconv.models.dropout import Dropout

# How fast the two paths learn under one learning rate. With 4 and 0.3 rather than 1 and 1 the networks' test
# R2 on simulated additive traits rose from .31 to .33 (cnn_transformer) and from .35 to .38 (gnn); on seeds
# that no table reports. benchmarks/tuning.py chooses them on validation people.
WIDE_SPEED = 4.0
NETWORK_SPEED = 0.3


class WidePath(nn.Module):
    """A weight for each channel of each SNP and output, from zero, in float32 under autocast.

    The sum is scaled by ``WIDE_SPEED`` / sqrt(S), so that a learning rate means the same at any number of
    SNPs.

    Args:
        num_slots: S.
        encoding_dim: C.
        num_outputs: O.
        num_covariates: Columns of the covariates, which get linear weights of their own.
        trained: Whether the SNPs' weights are parameters; otherwise they are a buffer that ``fit_linear``
            fills. Bias and covariates' weights are parameters either way.
    """

    weight: Tensor

    def __init__(
        self, num_slots: int, *, encoding_dim: int, num_outputs: int, num_covariates: int, trained: bool
    ) -> None:
        super().__init__()
        self.scale = WIDE_SPEED * num_slots**-0.5
        weight = torch.zeros(num_outputs, encoding_dim * num_slots)
        if trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        self.covariate_weight = (
            nn.Parameter(torch.zeros(num_outputs, num_covariates)) if num_covariates else None
        )

    def forward(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """(B, C, S) centred input and (B, num_covariates) -> (B, O) float32."""
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = x.flatten(1) @ self.weight.t() * self.scale + self.bias
            if self.covariate_weight is not None and covariates is not None:
                logits = logits + covariates.float() @ self.covariate_weight.t()
        return logits


class NetworkHead(nn.Module):
    """Outputs from the network's features, near zero at the start.

    Args:
        width: D.
        num_outputs: O.
        dropout: On the features.
    """

    def __init__(self, width: int, *, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(width, num_outputs, bias=False)
        nn.init.normal_(self.out.weight, std=1e-2 * width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, O) float32."""
        with torch.autocast(features.device.type, enabled=False):
            return NETWORK_SPEED * self.out(self.dropout(features.float()))  # type: ignore[no-any-return]
