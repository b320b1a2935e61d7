"""Owns the choice between bf16, fp16 with a gradient scaler, and fp32, and its reason.

Knows devices, not models.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from snpdeconv.device import keep_float32_exact
from snpdeconv.errors import ConfigError, nearest

logger = logging.getLogger(__name__)

# NVIDIA's first generation with bf16 units (Ampere). `torch.cuda.is_bf16_supported()` is no test: it says yes
# too where bf16 is only emulated.
_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Precision:
    """A numeric format for forward and backward.

    Attributes:
        name: `bf16`, `fp16` or `fp32`.
        dtype: Of autocast; None for fp32 (and for models in float64, which are left as they are).
        needs_scaler: Whether gradients must be scaled to stay representable.
        reason: Why this one.
        device_type: What autocast is for.
    """

    name: str
    dtype: torch.dtype | None
    needs_scaler: bool
    reason: str
    device_type: str

    def autocast(self) -> torch.autocast:
        """A context in which the model's operations run in this precision."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def make_scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler; one that passes everything through where none is needed."""
        return torch.amp.GradScaler(self.device_type, enabled=self.needs_scaler)


def choose_precision(device: torch.device, *, requested: str = "auto") -> Precision:
    """The best precision that a device computes natively, and says why in the log.

    Args:
        device: Where the model runs.
        requested: `auto` gives the fastest: bf16 where there are matrix units for it, fp16 on GPUs without,
            fp32 on other processors. `bf16` gives bf16 where there are any instructions for it, else the
            next best. `fp16` and `fp32` are taken at their word.

    Returns:
        The choice.

    Raises:
        ConfigError: Another word.
    """
    precision = _choose(device, requested)
    keep_float32_exact()
    logger.info("precision %s: %s", precision.name, precision.reason)
    return precision


def requested_precision(*, use_amp: bool, amp_dtype: torch.dtype) -> str:
    """The word for `choose_precision` that the two public arguments mean.

    Raises:
        ConfigError: A type that nothing is trained in.
    """
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    if amp_dtype not in names:
        mend = "use torch.bfloat16"
        raise ConfigError(f"{amp_dtype} is no precision to train in", where="amp_dtype", mend=mend)
    return names[amp_dtype] if use_amp else "fp32"


def _choose(device: torch.device, requested: str) -> Precision:
    options = ["auto", "bf16", "fp16", "fp32"]
    if requested not in options:
        raise ConfigError(
            f"no precision is called '{requested}'", where="precision", mend=nearest(requested, options)
        )
    if requested == "fp32":
        return Precision("fp32", None, False, "requested", device.type)
    if requested == "fp16":
        return Precision("fp16", torch.float16, True, "requested, with a gradient scaler", device.type)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        named = f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}"
        if capability >= _BF16_CAPABILITY:
            return Precision("bf16", torch.bfloat16, False, named, device.type)
        reason = f"{named}, and bf16 needs 8.0: fp16 with a gradient scaler"
        return Precision("fp16", torch.float16, True, reason, device.type)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    if capabilities.get("amx_bf16"):
        return Precision("bf16", torch.bfloat16, False, "this processor has bf16 matrix units", device.type)
    if not (capabilities.get("avx512_bf16") or capabilities.get("bf16")):
        return Precision("fp32", None, False, f"no bf16 instructions on this {device.type}", device.type)
    if requested == "bf16":
        return Precision("bf16", torch.bfloat16, False, "this processor has bf16 instructions", device.type)
    # With vector instructions alone a step of the transformer took twice as long in bf16 as in fp32.
    reason = "this processor has bf16 instructions but no matrix units: bf16 would be slower"
    return Precision("fp32", None, False, reason, device.type)
