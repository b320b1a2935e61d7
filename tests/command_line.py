"""The command line as tests type it: quick settings, and how a command ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FAST = (
    "training.epochs=2",
    "training.batch_size=32",
    "model.width=16",
    "model.channels=6,6",
    "model.num_layers=1",
    "interpretation.gradient_steps=4",
    "interpretation.max_samples=40",
    "interpretation.num_permutations=1",
)
"""Settings under which a whole run takes a few seconds."""
FAST_WORDS = [word for setting in FAST for word in ("--set", setting)]


def train_words(folder: Path, out: Path, *more: object) -> list[object]:
    """The train command on a simulated cohort's folder, with quick settings; an option in `more` replaces."""
    usual = {
        "--genotypes": folder / "cohort.bed",
        "--phenotypes": folder / "phenotypes.tsv",
        "--trait": "trait",
        "--out": out,
    }
    kept = [word for option in usual.items() if option[0] not in more for word in option]
    return ["train", *kept, *FAST_WORDS, *more]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str
