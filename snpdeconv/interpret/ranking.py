"""The tables of a ranking: variants in their order, credible sets, pairs and LD blocks.

Owns how methods are combined, how variants are ordered, what columns mean, and how a ranking is held against
planted truth. Knows neither how scores were made nor any genotype. Shapes: V variants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from snpdeconv.errors import ConfigError
from snpdeconv.files import replacing
from snpdeconv.finemapping import CredibleSet, SingleEffectsFit
from snpdeconv.finemapping.interactions import InteractionEffects
from snpdeconv.finemapping.joint import Deconvolution, PairEffects
from snpdeconv.finemapping.pve import BlockPVE
from snpdeconv.genetics.ld import Blocks
from snpdeconv.genetics.packed import MISSING
from snpdeconv.genetics.variants import Variants
from snpdeconv.stats.association import Marginal

# What pips are written with, so that a reader finds in the file what orders it.
PIP_DECIMALS = 6


@dataclass(frozen=True)
class Posterior:
    """What the single effects say of each variant, beside their score."""

    pip: NDArray[np.float64]  # (V,) probability that the variant takes part in any effect
    # (V,) effect of one standard deviation of the counted allele's dosage, given that it acts; NaN where none
    # may rest on it
    effect: NDArray[np.float64]
    # (V,) name of the strongest credible set it is in; None where there is none
    credible_set: NDArray[np.object_]
    pair_with: NDArray[np.object_]  # (V,) ID of the SNP that it probably acts with in a pair; None for most
    # (V,) false discovery rate of all variants of at least its single-effects score; NaN where it was not
    # asked for
    q_value: NDArray[np.float64]
    # (V,) class of the trait that `effect` tells from the rest; None where there is no effect; None
    # altogether for a trait without such classes
    trait_class: NDArray[np.object_] | None = None
    # (V,) name of the covariate that probably changes what the SNP does, None for most; None altogether where
    # no interactions were asked for
    interacts_with: NDArray[np.object_] | None = None


def build_ranking(
    variants: Variants,
    *,
    block_names: NDArray[np.object_],
    scores: Mapping[str, NDArray[np.float64]],
    final: str,
    posterior: Posterior | None = None,
) -> pd.DataFrame:
    """Variants from the most important down: one row each, all columns of ranking.tsv.

    `scores` (V,) are finite, higher is more important; that of ``marginal`` is -log10 p. `final` names the
    method to order by; with a posterior ``single_effects`` and ``ensemble`` are the order by pip, as it is
    written, then by ``single_effects``, which is the evidence. Ties go by ``marginal``, where it is there,
    then by chromosome, position and alleles.

    Columns are rank (1 to V), variant_id, chrom, pos, counted_allele, other_allele, block, score (that of
    `final`, or -log10 of rank / (V + 1) where pip decides), with a posterior pip, effect, class (of a trait
    that has them), credible_set (missing for most), pair_with, interacts_with (where interactions were asked
    for) and q_value, and then one for each method in
    the order of `scores` that ``score`` is not a copy of; ``marginal`` is always there.
    """
    by_pip = posterior is not None and final in ("single_effects", "ensemble")
    table = variants.to_frame().assign(block=block_names, score=scores[final])
    keys = [scores[final]]
    if posterior is not None:
        table = table.assign(pip=posterior.pip.round(PIP_DECIMALS), effect=posterior.effect)
        if posterior.trait_class is not None:
            table["class"] = posterior.trait_class
        table = table.assign(credible_set=posterior.credible_set, pair_with=posterior.pair_with)
        if posterior.interacts_with is not None:
            table["interacts_with"] = posterior.interacts_with
        table = table.assign(q_value=posterior.q_value)
        if by_pip:
            keys = [table["pip"].to_numpy(), scores["single_effects"]]
    copied = "ensemble" if by_pip else final
    table = table.assign(**{name: s for name, s in scores.items() if name != copied or name == "marginal"})
    place = np.empty(len(variants), dtype=np.int64)
    place[variants.genome_order()] = np.arange(len(variants))
    # lexsort orders by its last key first; where all is equal the order of the genome decides.
    keys.append(scores.get("marginal", keys[-1]))
    order = np.lexsort((place, *(-key for key in reversed(keys))))
    table = table.iloc[order].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    if by_pip:
        table["score"] = -np.log10(table["rank"] / (len(table) + 1))
    return table


def write_tsv(table: pd.DataFrame, path: Path) -> None:
    """Writes a table with six significant digits, whole or not at all; missing values as NA."""
    with replacing(path) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g", na_rep="NA", lineterminator="\n")


# What the ranking benchmark supports: the single effects decide. A network's attributions rank far below
# plain association in cohorts of thousands, so they get no say; the trace of association settles ties, and
# orders alone where single effects were not asked for.
DEFAULT_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"single_effects": 1.0, "marginal": 1e-9, "integrated_gradients": 0.0, "attention": 0.0}
)


def combine(
    scores: Mapping[str, NDArray[np.float64]], *, weights: Mapping[str, float] = DEFAULT_WEIGHTS
) -> NDArray[np.float64]:
    """(V,) weighted mean over methods of -log10(rank / (V + 1)).

    That is the -log10 p-value a variant would have if the method's scores were exchangeable, so methods with
    scores (V,) on any scale count alike, and the top of a list counts most; higher is more important. Tied
    scores share their mean rank.
    """
    missing = sorted(scores.keys() - weights.keys())
    if missing:
        raise ConfigError(f"no weight for {', '.join(missing)}", where="ensemble", hint="give it one")
    total = sum(weights[method] for method in scores)
    if total <= 0:
        raise ConfigError("the weights are all 0", where="ensemble", hint="give one method weight")
    surprise = {
        method: -np.log10(stats.rankdata(-values, method="average") / (len(values) + 1))
        for method, values in scores.items()
        if weights[method]
    }
    combined: NDArray[np.float64] = np.sum([weights[m] / total * s for m, s in surprise.items()], axis=0)
    return combined


# Inclusion probability above which a pair or an interaction counts as found.
LIKELY = 0.5


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
        if pairs.pip[pair] > LIKELY:
            sides = [pairs.first[pair], pairs.second[pair]]
            partner[sides] = variants.variant_id[sides[::-1]]
    return partner


def covariate_of_variant(found: Deconvolution, *, names: Mapping[str, int]) -> NDArray[np.object_] | None:
    """(V,) name of the covariate of each variant's most probable interaction; None where none is likely.

    `names` are those of columns of the covariates that interactions were looked for with; without any it is
    None altogether.
    """
    if not names:
        return None
    interactions, name = found.interactions, np.full(len(found.pip), None, dtype=object)
    likely = np.flatnonzero(interactions.pip > LIKELY)
    order = likely[np.argsort(interactions.pip[likely], kind="stable")]
    name[interactions.variant[order]] = _covariate_names(interactions, names)[order]
    return name


def _covariate_names(interactions: InteractionEffects, names: Mapping[str, int]) -> NDArray[np.object_]:
    """(E,)."""
    name_of = {column: name for name, column in names.items()}
    return np.array([name_of[int(column)] for column in interactions.covariate], dtype=object)


def _labels(variants: Variants) -> NDArray[np.object_]:
    """(V,) IDs without blanks; those that several variants have, with place and alleles."""
    ids = pd.Series(variants.variant_id, dtype=object).str.replace(r"\s", "_", regex=True)
    table = variants.to_frame().astype(str)
    place = table["chrom"] + ":" + table["pos"] + ":" + table["other_allele"] + ":" + table["counted_allele"]
    return ids.where(~ids.duplicated(keep=False), ids + "@" + place).to_numpy(dtype=object)


def association_table(
    association: Marginal, *, variants: Variants, counts: NDArray[np.int64], unit: float
) -> pd.DataFrame:
    """One row a variant, in the order of the genome: variant_id, chrom, pos, effect_allele, other_allele,
    effect_allele_frequency, n, beta, standard_error and neg_log10_p.

    `counts` (4, V) are of the genotype codes, `n` is of the called ones. A coefficient is in the trait's own
    unit: `unit` is that of `association` in it.
    """
    called = counts[:MISSING].sum(axis=0)
    table = pd.DataFrame(
        {
            "variant_id": variants.variant_id,
            "chrom": variants.chrom,
            "pos": variants.position_bp,
            "effect_allele": variants.counted_allele,
            "other_allele": variants.other_allele,
            "effect_allele_frequency": (counts[1] + 2 * counts[2]) / np.maximum(2 * called, 1),
            "n": called,
            "beta": association.beta * unit,
            "standard_error": association.se * unit,
            "neg_log10_p": association.neg_log10_p,
        }
    )
    return table.iloc[variants.genome_order()]


def credible_set_table(
    sets: Sequence[CredibleSet],
    *,
    variants: Variants,
    kinds: Sequence[str],
    classes: Sequence[str],
    effects: Sequence[float],
) -> pd.DataFrame:
    """One row a credible set, the strongest evidence first.

    `kinds` are additive, dominance, pair or interaction; `classes` the class of the trait that each effect
    tells from the rest, empty where a trait has none; `effects` what a standard deviation of the best SNP's
    dosage does, NaN where the effect is not of a dosage.

    Columns are set, effect, class (NA where there is none), coverage, purity, log10_bayes_factor, existence
    (probability that there is such an effect), pve, num_snps, best_snp, best_effect, chrom, start, end, snps
    and probabilities, the last two as lists with blanks, which no ID can hold, the most probable SNP first.
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
                "log10_bayes_factor": found.log_bayes_factor / np.log(10),
                "existence": found.existence,
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
        "set", "effect", "class", "coverage", "purity", "log10_bayes_factor", "existence", "pve", "num_snps",
        "best_snp", "best_effect", "chrom", "start", "end", "snps", "probabilities",
    )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def pair_table(pairs: PairEffects, *, variants: Variants) -> pd.DataFrame:
    """One row a pair of SNPs that may interact, the most probable first, equal ones by their p-value.

    Columns are place and alleles of both SNPs (variant_id_1, chrom_1, pos_1, counted_allele_1, other_allele_1
    and the same with 2), effect, pip, neg_log10_p and q_value.
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


def interaction_table(
    interactions: InteractionEffects, *, variants: Variants, names: Mapping[str, int]
) -> pd.DataFrame:
    """One row a SNP whose effect may depend on a covariate, the most probable first, then by p-value.

    `names` are those of columns of the covariates. Columns are variant_id, chrom, pos, counted_allele,
    other_allele, covariate, effect (of a standard deviation of the product beside what the SNP and the
    covariates do by themselves), pip, neg_log10_p and q_value.
    """
    table = (
        variants.take(interactions.variant)
        .to_frame()
        .assign(
            covariate=_covariate_names(interactions, names),
            effect=interactions.effect,
            pip=interactions.pip,
            neg_log10_p=interactions.neg_log10_p,
            q_value=interactions.q_value,
        )
    )
    order = np.lexsort((-interactions.neg_log10_p, -interactions.pip))
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

    `pip` and `score` (V,) order the variants of a block; it names the credible sets that have a SNP in it.

    Columns are block, chrom, start, end, num_snps, pve, pve_low, pve_high (the 95 % interval), best_snp,
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
    """What an effect most probably is: additive, dominance (with an additive part or without), pair or
    interaction (with a covariate).
    """
    effect = fit.effects[number]
    paired = effect.variants[:, 1] >= 0
    is_dosage = effect.columns < len(fit.pip)
    is_extra = effect.columns >= 2 * len(fit.pip)
    weight = {
        "additive": effect.alpha[is_dosage].sum() - effect.beside.sum(),
        "dominance": effect.alpha[~is_dosage & ~is_extra].sum(),
        "pair": effect.alpha[paired].sum(),
        "interaction": effect.alpha[is_extra & ~paired].sum(),
    }
    return max(weight, key=weight.__getitem__)
