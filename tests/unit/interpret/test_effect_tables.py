"""What the tables of single effects say: places, names, order, and headers where nothing was found."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from snpdeconv.finemapping import CredibleSet, fit_single_effects
from snpdeconv.finemapping.joint import PairEffects
from snpdeconv.finemapping.pve import BlockPVE
from snpdeconv.genetics.ld import Blocks
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.variants import Variants
from snpdeconv.interpret.ranking import (
    block_table,
    credible_set_table,
    effect_kind,
    pair_table,
    partner_of_variant,
    set_of_variant,
    write_tsv,
)

VARIANTS = Variants.build(
    variant_id=[f"rs{i}" for i in range(6)],
    chrom=["1", "1", "1", "2", "2", "X"],
    position_bp=[500, 100, 900, 70, 60, 5],
    counted_allele=list("ACGTAC"),
    other_allele=list("CGTACG"),
)


def credible_set(variants, probability, *, log_bayes_factor=10.0, effects=(0,)):
    probability = np.array(probability)
    return CredibleSet(
        variants=np.array(variants),
        probability=probability,
        coverage=float(probability.sum()),
        purity=0.9,
        log_bayes_factor=log_bayes_factor,
        pve=0.1,
        effects=effects,
    )


STRONG = credible_set([0, 1], [0.7, 0.28], log_bayes_factor=np.log(1e6))
WEAK = credible_set([4, 1, 3], [0.5, 0.3, 0.16], effects=(1,))


def test_a_snp_in_several_sets_is_named_with_the_strongest():
    found = set_of_variant([STRONG, WEAK], num_variants=6)
    assert found.tolist() == ["cs1", "cs1", None, "cs2", "cs2", None]
    assert set_of_variant([], num_variants=2).tolist() == [None, None]


def test_credible_sets():
    table = credible_set_table(
        [STRONG, WEAK], variants=VARIANTS, kinds=["additive", "pair"], classes=[], effects=[0.5, np.nan]
    )
    first = table.iloc[0]
    assert first[["set", "effect", "best_snp", "chrom", "start", "end", "num_snps", "snps"]].tolist() == [
        "cs1", "additive", "rs0", "1", 100, 500, 2, "rs0 rs1",
    ]  # fmt: skip
    assert first["probabilities"] == "0.7 0.28"
    assert first["coverage"] == pytest.approx(0.98)
    assert first["log10_bayes_factor"] == pytest.approx(6)
    assert table["class"].isna().all()
    np.testing.assert_equal(table["best_effect"].tolist(), [0.5, np.nan])
    assert table["effect"].tolist() == ["additive", "pair"]
    named = credible_set_table(
        [STRONG], variants=VARIANTS, kinds=["additive"], classes=["tall"], effects=[-1.0]
    )
    assert named["class"].tolist() == ["tall"]


def test_the_sides_of_a_likely_pair_name_each_other():
    pairs = PairEffects(
        first=np.array([0, 0, 2]),
        second=np.array([3, 4, 5]),
        effect=np.zeros(3),
        pip=np.array([0.6, 0.9, 0.4]),
        neg_log10_p=np.zeros(3),
        q_value=np.zeros(3),
    )
    # rs0 is in two: the likelier counts.
    assert partner_of_variant(pairs, variants=VARIANTS).tolist() == ["rs4", None, None, "rs0", "rs0", None]


def test_pairs_by_probability_then_by_evidence():
    pairs = PairEffects(
        first=np.array([0, 1, 2]),
        second=np.array([3, 4, 5]),
        effect=np.array([0.1, -0.2, 0.3]),
        pip=np.array([0.2, 0.9, 0.2]),
        neg_log10_p=np.array([8.0, 20.0, 9.0]),
        q_value=np.array([0.05, 1e-9, 0.04]),
    )
    table = pair_table(pairs, variants=VARIANTS)
    assert table["variant_id_1"].tolist() == ["rs1", "rs2", "rs0"]
    assert table.iloc[0].tolist() == [
        "rs1", "1", 100, "C", "G", "rs4", "2", 60, "A", "C", -0.2, 0.9, 20.0, 1e-9,
    ]  # fmt: skip


BLOCKS = Blocks(
    name=np.array(["a", "b", "c"], dtype=object),
    chrom=np.array(["1", "2", "X"], dtype=object),
    start_bp=np.array([100, 60, 5]),
    end_bp=np.array([900, 70, 5]),
    of_variant=np.array([0, 0, 0, 1, 1, 2]),
)


def test_blocks_by_share_with_their_best_snp_and_the_sets_that_touch_them():
    table = block_table(
        BLOCKS,
        variants=VARIANTS,
        share=BlockPVE(
            pve=np.array([0.1, 0.3, 0.1]), low=np.array([0, 0.2, 0]), high=np.array([0.2, 0.4, 0.2]),
            total=0.5, total_low=0.4, total_high=0.6,
        ),
        pip=np.array([0.1, 0.9, 0.2, 0.3, 0.4, 0.0]),
        score=np.array([0.1, 0.9, 0.2, 0.4, 0.4, 0.0]),
        sets=[STRONG, WEAK],
    )  # fmt: skip
    assert table["block"].tolist() == ["b", "a", "c"]
    assert table["best_snp"].tolist() == ["rs4", "rs1", "rs5"]
    assert table["best_pip"].tolist() == [0.4, 0.9, 0.0]
    assert table["num_snps"].tolist() == [2, 3, 1]
    assert table["credible_sets"].tolist()[:2] == ["cs2", "cs1,cs2"]
    assert pd.isna(table["credible_sets"][2])


def test_tables_of_nothing_have_their_header(tmp_path):
    none = np.empty(0, dtype=np.int64)
    write_tsv(
        credible_set_table([], variants=VARIANTS, kinds=[], classes=[], effects=[]), tmp_path / "sets.tsv"
    )
    write_tsv(pair_table(PairEffects(none, none, *[np.empty(0)] * 4), variants=VARIANTS), tmp_path / "p.tsv")
    assert (tmp_path / "sets.tsv").read_text().startswith("set\teffect\tclass\tcoverage\tpurity\t")
    pairs = (tmp_path / "p.tsv").read_text()
    assert pairs.count("\n") == 1
    assert pairs.startswith("variant_id_1\tchrom_1\tpos_1\tcounted_allele_1\tother_allele_1\tvariant_id_2")
    assert pairs.endswith("\teffect\tpip\tneg_log10_p\tq_value\n")


@pytest.mark.parametrize("kind", ["additive", "dominance"])
def test_what_an_effect_is(kind):
    rng = np.random.default_rng(2)
    codes = rng.binomial(2, 0.5, (400, 20)).astype(np.uint8)
    acting = codes[:, 7] if kind == "additive" else (codes[:, 7] == 1)
    fit = fit_single_effects(
        PackedGenotypes.from_codes(codes), acting + 0.5 * rng.normal(size=400), kind="quantitative"
    )
    assert effect_kind(fit, 0) == kind


def test_ids_with_commas_and_repeated_ids_stay_apart():
    ids = VARIANTS.variant_id.copy()
    ids[0], ids[1], ids[4] = "1:100_A,G", 'rs7,rs8;"x"', 'rs7,rs8;"x"'
    given = replace(VARIANTS, variant_id=ids)
    table = credible_set_table(
        [STRONG, WEAK], variants=given, kinds=["additive", "pair"], classes=[], effects=[0.5, np.nan]
    )
    sets = [text.split(" ") for text in table["snps"]]
    assert [len(names) for names in sets] == table["num_snps"].tolist()
    assert sets[0] == ["1:100_A,G", 'rs7,rs8;"x"@1:100:G:C']
    assert sets[1] == ['rs7,rs8;"x"@2:60:C:A', 'rs7,rs8;"x"@1:100:G:C', "rs3"]
