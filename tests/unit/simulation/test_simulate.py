from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bed_reader
import cyvcf2
import numpy as np
import pandas as pd
import pgenlib
import pytest
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, ResourceError, UserError
from snpdeconv.simulation.genotypes import population_labels
from snpdeconv.simulation.simulate import (
    SimulatedCohort,
    simulate,
    simulate_genotypes,
    simulate_trait,
)

SMALL: dict[str, Any] = {"num_samples": 60, "num_variants": 90, "num_causal": 4, "length_mb": 4.0}


def make(out: Path, **changes: Any) -> SimulatedCohort:
    return simulate(out, **(SMALL | changes))


def read_bed(path: Path) -> NDArray[np.uint8]:
    with bed_reader.open_bed(path, count_A1=True) as bed:
        codes = bed.read(dtype="int8")
    return np.where(codes < 0, 3, codes).astype(np.uint8)


def read_pgen(path: Path) -> NDArray[np.uint8]:
    with pgenlib.PgenReader(bytes(path)) as reader:
        codes = np.empty((reader.get_variant_ct(), reader.get_raw_sample_ct()), np.int8)
        reader.read_range(0, len(codes), codes)
    return np.where(codes < 0, 3, codes).astype(np.uint8).T


def read_vcf(path: Path) -> NDArray[np.uint8]:
    codes = [record.gt_types.copy() for record in cyvcf2.VCF(path, gts012=True)]
    return np.array(codes, dtype=np.uint8).T


READERS: dict[str, Callable[[Path], NDArray[np.uint8]]] = {
    "bed": read_bed,
    "pgen": read_pgen,
    "vcf": read_vcf,
}
FILES = {"bed": {"bed", "bim", "fam"}, "pgen": {"pgen", "pvar", "psam"}, "vcf": {"vcf.gz"}}


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype={"chrom": str, "#FID": str})


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("file_format", ["bed", "pgen", "vcf"])
def test_every_format_reads_back_the_same_codes(tmp_path: Path, file_format: str) -> None:
    cohort = make(tmp_path / "out", file_format=file_format, num_holdout=20, seed=7)
    codes, variants = simulate_genotypes(60, num_variants=90, seed=7, length_mb=4.0, num_holdout=20)
    np.testing.assert_array_equal(READERS[file_format](cohort.genotypes), codes[:60])
    assert cohort.holdout_genotypes is not None
    np.testing.assert_array_equal(READERS[file_format](cohort.holdout_genotypes), codes[60:])
    parts = {f"cohort.{end}" for end in FILES[file_format]} | {"phenotypes.tsv"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == parts | {"causal.tsv", "holdout"}
    assert {path.name for path in (tmp_path / "out" / "holdout").iterdir()} == parts
    if file_format == "bed":
        bim = pd.read_csv(cohort.genotypes.with_suffix(".bim"), sep=r"\s+", header=None, dtype={0: str})
        assert list(bim[1]) == list(variants.variant_id)
        assert list(bim[4]) == list(variants.counted_allele)
        assert list(bim[5]) == list(variants.other_allele)


def test_phenotypes_name_the_people_of_the_cohort(tmp_path: Path) -> None:
    cohort = make(tmp_path / "out", num_holdout=20)
    people = table(cohort.phenotypes)
    assert list(people.columns) == ["#FID", "IID", "trait"]
    fam = pd.read_csv(cohort.genotypes.with_suffix(".fam"), sep=r"\s+", header=None, dtype=str)
    assert list(people["IID"]) == list(fam[1])
    assert list(people["#FID"]) == list(fam[0])
    assert cohort.holdout_phenotypes is not None
    assert not set(people["IID"]) & set(table(cohort.holdout_phenotypes)["IID"])
    assert people["trait"].var(ddof=0) == pytest.approx(1, abs=1e-6)


def test_written_truth_explains_the_written_trait(tmp_path: Path) -> None:
    cohort = make(tmp_path / "out", pve=0.7)
    truth = table(cohort.causal)
    assert list(truth.columns) == ["variant_id", "chrom", "pos", "role", "effect", "pair_effect"]
    assert list(truth["role"]) == ["additive"] * 4
    bim = pd.read_csv(cohort.genotypes.with_suffix(".bim"), sep=r"\s+", header=None, dtype={0: str})
    bim = bim.reset_index().set_index(1)
    assert list(truth["pos"]) == list(bim.loc[truth["variant_id"], 3])
    assert list(truth["chrom"]) == list(bim.loc[truth["variant_id"], 0])
    dosage = read_bed(cohort.genotypes)[:, bim.loc[truth["variant_id"], "index"]].astype(np.float64)
    signal = (dosage - dosage.mean(axis=0)) / dosage.std(axis=0) @ truth["effect"].to_numpy()
    assert np.corrcoef(signal, table(cohort.phenotypes)["trait"])[0, 1] ** 2 == pytest.approx(0.7, abs=1e-6)


def test_binary_trait_is_zero_or_one(tmp_path: Path) -> None:
    cohort = make(tmp_path / "out", trait="binary", prevalence=0.2)
    values = [line.split("\t")[2] for line in cohort.phenotypes.read_text().splitlines()[1:]]
    assert sorted(values) == ["0"] * 48 + ["1"] * 12


def test_pairs_are_told_apart_in_the_truth(tmp_path: Path) -> None:
    truth = table(make(tmp_path / "out", trait="epistasis").causal)
    assert list(truth["role"]) == ["pair_1a", "pair_1b", "pair_2a", "pair_2b"]
    assert (truth["effect"] == 0).all()
    assert (truth["pair_effect"] != 0).all()


def test_ancestry_cohort_has_populations_and_no_causal_variant(tmp_path: Path) -> None:
    cohort = make(tmp_path / "out", trait="ancestry", num_holdout=15)
    assert cohort.causal.read_text() == "variant_id\tchrom\tpos\trole\teffect\tpair_effect\n"
    assert cohort.holdout_phenotypes is not None
    people = pd.concat([table(cohort.phenotypes), table(cohort.holdout_phenotypes)])
    assert list(people["population"]) == list(population_labels(75))
    means = people.groupby("population")["trait"].mean().sort_values()
    assert (means.diff().dropna() > 0.3).all()


@pytest.mark.parametrize("file_format", ["bed", "pgen", "vcf"])
def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path, file_format: str) -> None:
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        make(tmp_path / name, seed=seed, file_format=file_format, num_holdout=10, missing_rate=0.05)
    first, again, other = (tree(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    changed = {name for name in first if first[name] != other[name]}
    # Only tables of names stay: the people are called the same.
    assert changed >= {name for name in first if not name.endswith((".fam", ".psam"))}


def test_another_trait_leaves_the_people_as_they_are(tmp_path: Path) -> None:
    additive, binary = (make(tmp_path / trait, trait=trait) for trait in ("additive", "binary"))
    assert additive.genotypes.read_bytes() == binary.genotypes.read_bytes()


@pytest.mark.parametrize("file_format", ["bed", "pgen", "vcf"])
def test_genotypes_go_missing_at_the_rate_asked_for(tmp_path: Path, file_format: str) -> None:
    cohort = make(tmp_path / "out", missing_rate=0.1, file_format=file_format)
    whole, _ = simulate_genotypes(60, num_variants=90, seed=1, length_mb=4.0)
    codes = READERS[file_format](cohort.genotypes)
    missing = codes == 3
    assert missing.mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_array_equal(codes[~missing], whole[~missing])
    # The trait was made before, from the whole genotypes.
    truth = simulate_trait(
        whole, trait="additive", num_causal=4, pve=0.5, prevalence=0.1, rng=np.random.default_rng([1, 1])
    )
    np.testing.assert_allclose(table(cohort.phenotypes)["trait"], truth.values, atol=1e-8)


def test_progress_counts_chromosomes(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    make(tmp_path / "out", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 1)]


@pytest.mark.parametrize("made", [True, False])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: bool) -> None:
    def fail(path: Path, *_: object) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("snpdeconv.simulation.simulate._write_tsv", fail)
    out = tmp_path / "out"
    if made:
        out.mkdir()
    with pytest.raises(ResourceError, match=r"out: cannot be written \(No space left on device\)"):
        make(out)
    assert out.exists() == made
    assert not made or list(out.iterdir()) == []


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", progress=interrupt)
    assert list(tmp_path.glob("out*")) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"not empty \(it holds 'note.txt'\)"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_file_in_place_of_the_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(UserError, match="cannot be written"):
            make(out)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_format": "pgn"}, "format: unknown format 'pgn'; did you mean 'pgen'"),
        ({"missing_rate": 1.0}, "missing_rate: 1 is not"),
        ({"num_holdout": -1}, "holdout: -1 people"),
        ({"trait": "binry"}, "trait: unknown trait 'binry'; did you mean 'binary'"),
        ({"num_samples": 5}, "samples: 5 people"),
        ({"num_causal": 91}, "causal: 91 causal variants asked for"),
    ],
)
def test_values_that_do_not_fit_are_refused_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refusal:
        make(tmp_path / "out", **changes)
    assert str(refusal.value).startswith(message)
    assert not (tmp_path / "out").exists()
