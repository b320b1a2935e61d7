"""Owns the losses: focal, cross-entropy and squared error, each one value a sample.

Sums and divisions are the window's: that alone makes accumulation, splitting and many ranks equal one batch.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from snpdeconv.errors import ConfigError, InputError, nearest

# B batch, O outputs


class FocalLoss(nn.Module):
    """Cross-entropy that looks away from easy samples (Lin et al. 2017, "Focal loss").

    One output is read as a logit of class 1, several as logits of a softmax.

    Args:
        alpha: Weight of class 1 of a binary trait; class 0 has 1 - alpha.
        gamma: How fast easy samples lose weight; 0 gives weighted cross-entropy.
        class_weights: (classes,) takes the place of alpha, e.g. `balanced_class_weights`.
    """

    class_weights: Tensor | None

    def __init__(
        self, *, alpha: float = 0.25, gamma: float = 2.0, class_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, O) or (B,) and target (B,)."""
        cross_entropy = _cross_entropy(logits, target)
        # expm1 keeps 1 - p of samples almost right; the floor keeps gradients of small gammas finite.
        wrong = (-torch.expm1(-cross_entropy)).clamp_min(torch.finfo(cross_entropy.dtype).tiny)
        loss = wrong**self.gamma * cross_entropy
        if self.class_weights is None and _is_binary(logits):
            is_one = target.reshape(-1).to(loss.dtype)
            return loss * (self.alpha * is_one + (1 - self.alpha) * (1 - is_one))
        return _weighted(loss, target, self.class_weights)


class CrossEntropyLoss(nn.Module):
    """Cross-entropy of a binary trait (one output) or of classes (several).

    Args:
        class_weights: (classes,) factor of each sample by its class.
    """

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, O) or (B,) and target (B,)."""
        return _weighted(_cross_entropy(logits, target), target, self.class_weights)


class SquaredErrorLoss(nn.Module):
    """Squared error of a quantitative trait."""

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of predictions (B, 1) or (B,) and target (B,)."""
        values = _full_precision(predicted).reshape(-1)
        return (values - target.reshape(-1).to(values.dtype)).square()


def make_loss(name: str, *, class_weights: Tensor | None = None) -> nn.Module:
    """The loss of a name.

    Args:
        name: `focal`, `cross_entropy` or `mse`.
        class_weights: (classes,) for the first two losses.

    Returns:
        A module that gives (B,) losses of (logits, target).

    Raises:
        ConfigError: No loss has that name.
    """
    if name == "focal":
        return FocalLoss(class_weights=class_weights)
    if name == "cross_entropy":
        return CrossEntropyLoss(class_weights=class_weights)
    if name == "mse":
        return SquaredErrorLoss()
    raise ConfigError(
        f"no loss is called '{name}'", where="loss", mend=nearest(name, ["focal", "cross_entropy", "mse"])
    )


def check_target(loss: object, logits: Tensor, target: Tensor) -> None:
    """Refuses targets that a loss of this module would take for something else, as a height for a class.

    Args:
        loss: One of this module; what others take is theirs to say.
        logits: (B, O) or (B,).
        target: (B,); NaN is left to the look for inputs that are not finite.

    Raises:
        InputError: A value is no class of the model, or there is not one value for each sample and output.
    """
    if not isinstance(loss, (FocalLoss, CrossEntropyLoss, SquaredErrorLoss)):
        return
    is_quantity = isinstance(loss, SquaredErrorLoss)
    values = target.detach().reshape(-1).float().cpu().numpy()
    if len(values) != (logits.numel() if is_quantity else len(logits)):
        raise InputError(
            f"{len(values)} values for logits of shape {tuple(logits.shape)}",
            where="target",
            mend="give one value a sample, and the model one output for a binary trait or a quantity",
        )
    if is_quantity:
        return
    num_classes = 2 if _is_binary(logits) else logits.shape[1]
    wrong = (values < 0) | (values >= num_classes) | (values != np.floor(values)) & ~np.isnan(values)
    if wrong.any():
        raise InputError(
            f"the value {values[wrong][0]:g} is none of the {num_classes} classes, "
            f"which are the whole numbers from 0 to {num_classes - 1}",
            where="target",
            mend="give loss='mse' for a quantity, or the model num_outputs for several classes",
        )


def balanced_class_weights(target: Tensor, num_classes: int) -> Tensor:
    """Weights in inverse proportion to frequency, 1 on average over the samples.

    Args:
        target: (N,) classes 0 ... num_classes - 1 of the training samples, integer or float.
        num_classes: Two for a binary trait.

    Returns:
        (num_classes,) float32; 0 for a class without samples.
    """
    counts = torch.bincount(target.reshape(-1).long(), minlength=num_classes).double()
    present = counts > 0
    weights = torch.where(present, len(target) / (present.sum() * counts.clamp_min(1)), 0.0)
    return weights.float()


def _full_precision(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _is_binary(logits: Tensor) -> bool:
    return logits.ndim == 1 or logits.shape[1] == 1


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    logits = _full_precision(logits)
    if _is_binary(logits):
        flat = logits.reshape(-1)
        return functional.binary_cross_entropy_with_logits(
            flat, target.reshape(-1).to(flat.dtype), reduction="none"
        )
    return functional.cross_entropy(logits, target.reshape(-1).long(), reduction="none")


def _weighted(loss: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    if class_weights is None:
        return loss
    return loss * class_weights[target.reshape(-1).long()].to(loss.dtype)
