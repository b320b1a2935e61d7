"""Floor 1: cohorts on disk and in memory, and statistics of genotypes. Knows no model and no training."""

from typing import Literal

TraitKind = Literal["binary", "multiclass", "quantitative"]
"""What a trait is, and with it what predicts it; `config.TraitType` is what may be asked for."""
