"""The ranking table: its columns, its order, its file, and planted variants found in it."""

import numpy as np
import pandas as pd
import pytest

from snpdeconv.genetics.variants import Variants
from snpdeconv.interpret.ranking import Posterior, build_ranking, write_tsv


@pytest.fixture
def variants():
    return Variants.build(
        variant_id=["rs1", "rs2", "rs3", "rs4", "rs5"],
        chrom=["10", "2", "2", "X", "2"],
        position_bp=[500, 90_000, 100, 7, 2_000_000],
        counted_allele=list("ACGTA"),
        other_allele=list("CGTAC"),
    )


BLOCKS = np.array(["b1", "b2", "b2", "b3", "b4"], dtype=object)


def test_columns_and_order(variants):
    scores = {
        "attention": np.array([0.5, 0.1, 0.2, 0.1, 0.1]),
        "marginal": np.array([1.0, 2.0, 7.0, 9.0, 2.0]),
    }
    table = build_ranking(variants, block_names=BLOCKS, scores=scores, final="attention")
    assert list(table) == [
        "rank", "variant_id", "chrom", "pos", "counted_allele", "other_allele", "block", "score", "marginal",
    ]  # fmt: skip
    # Equal attention goes by association, and then by place in the genome.
    assert table["variant_id"].tolist() == ["rs1", "rs3", "rs4", "rs2", "rs5"]
    assert table["rank"].tolist() == [1, 2, 3, 4, 5]
    assert table["score"].tolist() == sorted(scores["attention"], reverse=True)
    assert table.iloc[1, 1:8].tolist() == ["rs3", "2", 100, "G", "T", "b2", 0.2]
    assert table.loc[1, "marginal"] == 7.0


def test_a_posterior_stands_between_the_score_and_the_methods(variants, tmp_path):
    table = build_ranking(
        variants,
        block_names=BLOCKS,
        scores={"marginal": np.arange(5.0)},
        final="marginal",
        posterior=Posterior(
            pip=np.array([0.0, 0.1, 0.2, 0.3, 0.4]),
            effect=np.array([np.nan, 0.1, 0.1, 0.1, -0.25]),
            credible_set=np.array([None, None, None, "cs2", "cs1"], dtype=object),
            pair_with=np.array([None, None, None, None, "rs9"], dtype=object),
            q_value=np.array([np.nan, 1.0, 1.0, 0.5, 0.01]),
        ),
    )
    assert list(table)[7:] == ["score", "pip", "effect", "credible_set", "pair_with", "q_value", "marginal"]
    assert table["credible_set"].tolist()[:2] == ["cs1", "cs2"]
    write_tsv(table, tmp_path / "ranking.tsv")
    lines = (tmp_path / "ranking.tsv").read_text().splitlines()
    assert lines[1].split("\t")[8:] == ["0.4", "-0.25", "cs1", "rs9", "0.01", "4"]
    assert lines[5].split("\t")[8:] == ["0", "NA", "NA", "NA", "NA", "0"]


@pytest.mark.parametrize("final", ["single_effects", "ensemble"])
def test_pips_as_they_are_written_order_and_then_the_evidence(variants, final):
    nothing = np.full(5, None, dtype=object)
    table = build_ranking(
        variants,
        block_names=BLOCKS,
        scores={
            "marginal": np.array([1.0, 2.0, 3.0, 4.0, 9.0]),
            "single_effects": np.array([0.3, 0.5, 0.4, 0.4, 0.4]),
            "ensemble": np.array([0.1, 0.9, 0.4, 0.4, 0.5]),
        },
        final=final,
        posterior=Posterior(
            pip=np.array([0.048, 0.009, 2e-9, 1e-9, 0.0]),  # the last three are written as 0
            effect=np.array([0.1, -0.1, 0.1, 0.1, np.nan]),
            credible_set=nothing,
            pair_with=nothing,
            q_value=np.ones(5),
            trait_class=np.array(["red", "blue", "red", "red", None], dtype=object),
        ),
    )
    assert table["variant_id"].tolist() == ["rs1", "rs2", "rs5", "rs4", "rs3"]
    assert table["pip"].tolist() == [0.048, 0.009, 0.0, 0.0, 0.0]
    assert table["class"].tolist()[:2] == ["red", "blue"]
    assert table["score"].is_monotonic_decreasing
    assert "ensemble" not in table
    numbers = table.select_dtypes("number")
    assert not any(numbers[a].equals(numbers[b]) for a in numbers for b in numbers if a < b)


def test_full_ties_follow_the_genome_not_the_file(variants):
    table = build_ranking(variants, block_names=BLOCKS, scores={"attention": np.zeros(5)}, final="attention")
    assert table["variant_id"].tolist() == ["rs3", "rs2", "rs5", "rs1", "rs4"]
    shuffled = variants.take(np.array([4, 2, 0, 3, 1]))
    again = build_ranking(shuffled, block_names=BLOCKS, scores={"attention": np.zeros(5)}, final="attention")
    assert again["variant_id"].tolist() == table["variant_id"].tolist()


def test_the_file_is_tab_separated_with_six_digits_and_appears_whole(variants, tmp_path):
    table = build_ranking(
        variants,
        block_names=BLOCKS,
        scores={"marginal": np.array([1 / 3, 123456.789, 1e-9, 2, 0])},
        final="marginal",
    )
    path = tmp_path / "out" / "ranking.tsv"
    write_tsv(table, path)
    lines = path.read_text().splitlines()
    assert lines[0].split("\t") == list(table)
    assert lines[1].split("\t") == ["1", "rs2", "2", "90000", "C", "G", "b2", "123457", "123457"]
    assert lines[3].split("\t")[-1] == "0.333333"
    assert [entry.name for entry in path.parent.iterdir()] == ["ranking.tsv"]
    read = pd.read_csv(path, sep="\t", dtype={"chrom": str})
    assert read["chrom"].tolist() == ["2", "X", "10", "2", "2"]


def test_a_table_that_fails_in_the_middle_leaves_the_old_file(variants, tmp_path, monkeypatch):
    path = tmp_path / "ranking.tsv"
    path.write_text("old")

    def broken(self, target, **_):
        target.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", broken)
    with pytest.raises(OSError, match="disk full"):
        write_tsv(pd.DataFrame({"a": [1]}), path)
    assert [entry.read_text() for entry in tmp_path.iterdir() if entry.is_file()] == ["old"]


def test_missing_values_are_written_as_na(tmp_path):
    write_tsv(pd.DataFrame({"a": [None, "x"], "b": pd.array([1, None], dtype="Int64")}), tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "a\tb\nNA\t1\nx\tNA\n"
