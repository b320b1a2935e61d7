"""The parts of a run that jobs of their own may do, one after the other."""

from __future__ import annotations

from typing import Literal

Stage = Literal["train", "rank", "register"]
