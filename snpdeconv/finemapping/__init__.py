"""Floor 4: the SNPs and pairs that a trait rests on: sparse inference from packed genotypes."""

from snpdeconv.finemapping.columns import ColumnSpectra, ExtraColumns
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
    "ColumnSpectra",
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
