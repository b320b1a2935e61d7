"""Single-effects regression: sparse inference of the SNPs that a trait rests on, from packed genotypes."""

from snpdeconv.finemapping.columns import ExtraColumns
from snpdeconv.finemapping.credible_sets import CredibleSet, credible_sets, joint_credible_sets
from snpdeconv.finemapping.susie import (
    Settings,
    SingleEffect,
    SingleEffectsFit,
    fit_one_against_rest,
    fit_single_effects,
    joint_pip,
)

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
