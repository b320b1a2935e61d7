"""The table of ranked variants: how it is ordered, written, and held against planted truth.

Takes scores by method; knows neither how they were made nor any genotype. Shapes: V variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.files import replacing
from snpdeconv.genetics.variants import Variants, normalise_chroms

# What pips are written with, so that a reader finds in the file what orders it.
PIP_DECIMALS = 6


@dataclass(frozen=True)
class Posterior:
    """What the single effects say of each variant, beside their score.

    Attributes:
        pip: (V,) probability that the variant takes part in any effect.
        effect: (V,) effect of one standard deviation of the counted allele's dosage, given that it acts; NaN
            where none may rest on it.
        trait_class: (V,) class of the trait that `effect` tells from the rest; None where there is no effect;
            None altogether for a trait without such classes.
        pair_with: (V,) ID of the SNP that it probably acts with in a pair; None for most.
        credible_set: (V,) name of the strongest credible set it is in; None where there is none.
        q_value: (V,) false discovery rate of all variants of at least its single-effects score; NaN where it
            was not asked for.
    """

    pip: NDArray[np.float64]
    effect: NDArray[np.float64]
    credible_set: NDArray[np.object_]
    pair_with: NDArray[np.object_]
    q_value: NDArray[np.float64]
    trait_class: NDArray[np.object_] | None = None


def build_ranking(
    variants: Variants,
    *,
    block_names: NDArray[np.object_],
    scores: Mapping[str, NDArray[np.float64]],
    final: str,
    posterior: Posterior | None = None,
) -> pd.DataFrame:
    """Variants from the most important down.

    Args:
        variants: The V variants.
        block_names: (V,) name of each one's LD block.
        scores: (V,) finite scores by method, higher is more important; that of ``marginal`` is -log10 p.
        final: The method in `scores` to order by; with a posterior ``single_effects`` and ``ensemble`` are
            the order by pip, as it is written, then by ``single_effects``, which is the evidence. Ties go by
            ``marginal``, where it is there, then by chromosome, position and alleles.
        posterior: What single effects say, where they were asked.

    Returns:
        Columns rank (1 to V), variant_id, chrom, pos, counted_allele, other_allele, block, score (that of
        `final`, or -log10 of rank / (V + 1) where pip decides), with a posterior pip, effect, class (of a
        trait that has them), credible_set (missing for most), pair_with and q_value, and then one for each
        method in the order of `scores` that ``score`` is not a copy of; ``marginal`` is always there.
    """
    by_pip = posterior is not None and final in ("single_effects", "ensemble")
    table = variants.to_frame().assign(block=block_names, score=scores[final])
    keys = [scores[final]]
    if posterior is not None:
        table = table.assign(pip=posterior.pip.round(PIP_DECIMALS), effect=posterior.effect)
        if posterior.trait_class is not None:
            table["class"] = posterior.trait_class
        table = table.assign(
            credible_set=posterior.credible_set, pair_with=posterior.pair_with, q_value=posterior.q_value
        )
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


def recovered(ranking: pd.DataFrame, causal: pd.DataFrame, *, window_bp: int = 50_000) -> pd.DataFrame:
    """Where the planted variants of a simulation stand in a ranking.

    Args:
        ranking: As `build_ranking` gives it.
        causal: Columns variant_id, chrom, pos, and others that are kept, one row a planted variant.
        window_bp: How far a variant may lie to stand for a planted one.

    Returns:
        The rows of `causal` with ``rank`` (missing where the variant was filtered out), and
        ``best_variant_id``, ``best_rank`` and ``best_distance_bp`` of the best-ranked variant of the same
        chromosome within the window, the planted one included; ordered by rank.
    """
    ranking = ranking.sort_values("rank")
    rank_of = dict(zip(ranking["variant_id"], ranking["rank"], strict=True))
    chrom, pos = ranking["chrom"].to_numpy(), ranking["pos"].to_numpy()
    rows = []
    for planted_chrom, planted_pos in zip(
        normalise_chroms(causal["chrom"].astype(str)), causal["pos"], strict=True
    ):
        near = np.flatnonzero((chrom == planted_chrom) & (np.abs(pos - planted_pos) <= window_bp))
        best = ranking.iloc[near[0]] if len(near) else None
        rows.append(
            {
                "best_variant_id": None if best is None else best["variant_id"],
                "best_rank": None if best is None else int(best["rank"]),
                "best_distance_bp": None if best is None else abs(int(best["pos"]) - int(planted_pos)),
            }
        )
    nearby = pd.DataFrame(
        rows, index=causal.index, columns=["best_variant_id", "best_rank", "best_distance_bp"]
    )
    nearby = nearby.astype({"best_rank": "Int64", "best_distance_bp": "Int64"})
    rank = causal["variant_id"].map(rank_of).astype("Int64").rename("rank")
    return pd.concat([causal, rank, nearby], axis=1).sort_values(["rank", "best_rank"], ignore_index=True)
