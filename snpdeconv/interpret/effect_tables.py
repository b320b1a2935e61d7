"""Tables of what single effects found: credible sets, pairs of SNPs, and LD blocks.

Takes results and names; knows neither how they were found nor any genotype.
Shapes: V variants, K blocks, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.genetics.blocks import Blocks
from snpdeconv.genetics.variants import Variants
from snpdeconv.interpret.block_pve import BlockPVE
from snpdeconv.interpret.deconvolution import PairEffects
from snpdeconv.interpret.ranking import PIP_DECIMALS
from snpdeconv.interpret.single_effects import CredibleSet, SingleEffectsFit

_LN_10 = np.log(10)
LIKELY_PAIR = 0.5
"""Inclusion probability above which a pair counts as found."""


def set_name(place: int) -> str:
    """What the credible set at a place of the list, from 0, is called in all tables."""
    return f"cs{place + 1}"


def set_of_variant(sets: Sequence[CredibleSet], *, num_variants: int) -> NDArray[np.object_]:
    """(V,) name of the strongest credible set that each variant is in; None where there is none."""
    name = np.full(num_variants, None, dtype=object)
    for place in reversed(range(len(sets))):
        name[sets[place].variants] = set_name(place)
    return name


def partner_of_variant(pairs: PairEffects, *, variants: Variants) -> NDArray[np.object_]:
    """(V,) ID of the other SNP of each variant's most probable pair; None where no pair is likely."""
    partner = np.full(len(variants), None, dtype=object)
    for pair in np.argsort(pairs.pip, kind="stable"):
        if pairs.pip[pair] > LIKELY_PAIR:
            sides = [pairs.first[pair], pairs.second[pair]]
            partner[sides] = variants.variant_id[sides[::-1]]
    return partner


def _labels(variants: Variants) -> NDArray[np.object_]:
    """(V,) IDs without blanks; those that several variants have, with place and alleles."""
    ids = pd.Series(variants.variant_id, dtype=object).str.replace(r"\s", "_", regex=True)
    table = variants.to_frame().astype(str)
    place = table["chrom"] + ":" + table["pos"] + ":" + table["other_allele"] + ":" + table["counted_allele"]
    return ids.where(~ids.duplicated(keep=False), ids + "@" + place).to_numpy(dtype=object)


def credible_set_table(
    sets: Sequence[CredibleSet],
    *,
    variants: Variants,
    kinds: Sequence[str],
    classes: Sequence[str],
    effects: Sequence[float],
) -> pd.DataFrame:
    """One row a credible set, the strongest evidence first.

    Args:
        sets: The sets, strongest first.
        variants: The V variants that they number.
        kinds: Of each set, what its effect is: additive, dominance or pair.
        classes: Of each set, the class of the trait that its effect tells from the rest; empty where a trait
            has no such classes.
        effects: Of each set, what a standard deviation of its best SNP's dosage does; NaN where the effect is
            not of a dosage.

    Returns:
        Columns set, effect, class (NA where there is none), coverage, purity, log10_bayes_factor, pve,
        num_snps, best_snp, best_effect, chrom, start, end, snps and probabilities, the last two as lists with
        blanks, which no ID can hold, the most probable SNP first.
    """
    labels = _labels(variants)
    rows = []
    for place, (found, kind) in enumerate(zip(sets, kinds, strict=True)):
        position = variants.position_bp[found.variants]
        rows.append(
            {
                "set": set_name(place),
                "effect": kind,
                "class": classes[place] if classes else None,
                "coverage": found.coverage,
                "purity": found.purity,
                "log10_bayes_factor": found.log_bayes_factor / _LN_10,
                "pve": found.pve,
                "num_snps": len(found.variants),
                "best_snp": labels[found.top],
                "best_effect": effects[place],
                "chrom": variants.chrom[found.top],
                "start": int(position.min()),
                "end": int(position.max()),
                "snps": " ".join(labels[found.variants]),
                "probabilities": " ".join(f"{p:.6g}" for p in found.probability),
            }
        )
    columns = (
        "set", "effect", "class", "coverage", "purity", "log10_bayes_factor", "pve", "num_snps", "best_snp",
        "best_effect", "chrom", "start", "end", "snps", "probabilities",
    )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def pair_table(pairs: PairEffects, *, variants: Variants) -> pd.DataFrame:
    """One row a pair of SNPs that may interact, the most probable first, equal ones by their p-value.

    Args:
        pairs: The P pairs.
        variants: The V variants that they number.

    Returns:
        Place and alleles of both SNPs (variant_id_1, chrom_1, pos_1, counted_allele_1, other_allele_1 and the
        same with 2), effect, pip, neg_log10_p and q_value.
    """
    sides = [
        variants.take(side).to_frame().add_suffix(f"_{number}")
        for number, side in ((1, pairs.first), (2, pairs.second))
    ]
    table = pd.concat(sides, axis=1).assign(
        effect=pairs.effect, pip=pairs.pip, neg_log10_p=pairs.neg_log10_p, q_value=pairs.q_value
    )
    order = np.lexsort((-pairs.neg_log10_p, -pairs.pip))
    return table.iloc[order].reset_index(drop=True)


def block_table(
    blocks: Blocks,
    *,
    variants: Variants,
    share: BlockPVE,
    pip: NDArray[np.float64],
    score: NDArray[np.float64],
    sets: Sequence[CredibleSet],
) -> pd.DataFrame:
    """One row an LD block, that of the largest share of variance first, equal ones along the genome.

    Args:
        blocks: The K blocks.
        variants: The V variants.
        share: Explained variance of each block.
        pip: (V,) inclusion probabilities.
        score: (V,) what orders the variants of a block of equal pip.
        sets: Credible sets; a block names those that have a SNP in it.

    Returns:
        Columns block, chrom, start, end, num_snps, pve, pve_low, pve_high (the 95 % interval), best_snp,
        best_pip and credible_sets (names with commas, NA where there are none).
    """
    # Of each block the variant that the ranking puts first; the first in the cohort where several are equal.
    order = np.lexsort((-score, -pip.round(PIP_DECIMALS), blocks.of_variant))
    best = order[np.searchsorted(blocks.of_variant[order], np.arange(len(blocks)))]
    touching: list[list[str]] = [[] for _ in range(len(blocks))]
    for place, found in enumerate(sets):
        for block in np.unique(blocks.of_variant[found.variants]):
            touching[block].append(set_name(place))
    table = pd.DataFrame(
        {
            "block": blocks.name,
            "chrom": blocks.chrom,
            "start": blocks.start_bp,
            "end": blocks.end_bp,
            "num_snps": np.bincount(blocks.of_variant, minlength=len(blocks)),
            "pve": share.pve,
            "pve_low": share.low,
            "pve_high": share.high,
            "best_snp": variants.variant_id[best],
            "best_pip": pip[best],
            "credible_sets": [",".join(names) or None for names in touching],
        }
    )
    return table.iloc[np.argsort(-share.pve, kind="stable")].reset_index(drop=True)


def effect_kind(fit: SingleEffectsFit, number: int) -> str:
    """What an effect most probably is: additive, dominance (with an additive part or without) or pair."""
    effect = fit.effects[number]
    paired = effect.variants[:, 1] >= 0
    is_dosage = effect.columns < len(fit.pip)
    weight = {
        "additive": effect.alpha[is_dosage].sum() - effect.beside.sum(),
        "dominance": effect.alpha[~is_dosage & ~paired].sum(),
        "pair": effect.alpha[paired].sum(),
    }
    return max(weight, key=weight.__getitem__)
