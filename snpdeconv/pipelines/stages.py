"""The parts of a run that jobs of their own may do, one after the other."""

from __future__ import annotations

from typing import Literal

Stage = Literal["validate", "train", "rank", "register"]
"""With ``validate`` a run ends after its training, without a look at the test people: one to choose from."""
