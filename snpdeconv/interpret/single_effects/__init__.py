"""Single-effects regression: sparse inference of the SNPs that a trait rests on, from packed genotypes."""

from snpdeconv.interpret.single_effects.columns import ExtraColumns
from snpdeconv.interpret.single_effects.credible_sets import (
    CredibleSet,
    credible_sets,
    joint_credible_sets,
)
from snpdeconv.interpret.single_effects.fit import Settings, fit_one_against_rest, fit_single_effects
from snpdeconv.interpret.single_effects.result import SingleEffect, SingleEffectsFit, joint_pip

__all__ = [
    "CredibleSet",
    "ExtraColumns",
    "Settings",
    "SingleEffect",
    "SingleEffectsFit",
    "credible_sets",
    "fit_one_against_rest",
    "fit_single_effects",
    "joint_credible_sets",
    "joint_pip",
]
