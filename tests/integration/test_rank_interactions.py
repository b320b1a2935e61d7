"""Interactions of SNPs with covariates as a user asks for them: planted ones, none, and mistakes."""

import json

import numpy as np
import pandas as pd
import pytest

from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.simulation.simulate import simulate

NUM = 600


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A cohort whose trait has a main effect of one SNP, and of another an effect of opposite sign by sex."""
    folder = tmp_path_factory.mktemp("interactions") / "files"
    simulate(folder, num_samples=NUM, num_variants=200, num_causal=2, seed=3)
    cohort = load_cohort(folder / "cohort.bed", cache_dir=folder / "cache")
    codes = cohort.genotypes.codes().astype(float)
    common = np.flatnonzero(np.minimum(codes.mean(axis=0), 2 - codes.mean(axis=0)) > 0.5)
    main, acting = (int(common[len(common) * part // 8]) for part in (1, 6))
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    rng = np.random.default_rng(1)
    male, age = rng.integers(0, 2, NUM), rng.normal(50, 9, NUM).round(1)
    site = rng.choice(["a", "b", "c"], NUM)
    spread = np.exp(0.4 * (2 * male - 1))
    trait = 0.6 * z[:, main] + 0.4 * z[:, acting] * (2 * male - 1) + 0.4 * male
    trait += 0.002 * (age - 50) ** 2 + spread * rng.normal(size=NUM)
    table = pd.read_csv(folder / "phenotypes.tsv", sep="\t", dtype=str)
    table = table.assign(trait=trait, thirds=pd.qcut(trait, 3, labels=["low", "mid", "high"]))
    table.to_csv(folder / "phenotypes.tsv", sep="\t", index=False)
    covariates = table[["#FID", "IID"]].assign(sex=np.where(male, "male", "female"), age=age, site=site)
    covariates.to_csv(folder / "covariates.tsv", sep="\t", index=False)
    ids = cohort.variants.variant_id
    return folder, ids[main], ids[acting]


def words(folder, out, *more, trait="trait"):
    return [
        "rank", "--genotypes", folder / "cohort.bed", "--phenotypes", folder / "phenotypes.tsv",
        "--trait", trait, "--out", out, "--set", "interpretation.num_permutations=1", *more,
    ]  # fmt: skip


def covariates_of(folder):
    return ["--covariates", folder / "covariates.tsv"]


def test_a_planted_interaction_comes_out_and_a_main_effect_does_not(run, files, tmp_path):
    folder, main, acting = files
    asked = ["--interaction", "sex, age", *covariates_of(folder)]
    done = run(*words(folder, tmp_path / "out", "--json", *asked))
    assert done.code == 0, done.err
    printed = json.loads(done.out.splitlines()[-1])
    table = pd.read_csv(tmp_path / "out" / "interactions.tsv", sep="\t")
    assert list(table) == [
        "variant_id", "chrom", "pos", "counted_allele", "other_allele", "covariate", "effect", "pip",
        "neg_log10_p", "q_value",
    ]  # fmt: skip
    likely = table[table["q_value"] <= 0.1]
    assert acting in set(likely["variant_id"])
    assert set(likely["covariate"]) == {"sex=male"}
    assert main not in set(table["variant_id"][table["pip"] > 0.01])
    # The copies of a SNP share its probability.
    assert table["pip"].sum() == pytest.approx(1.0, abs=0.1)
    assert table["pip"].is_monotonic_decreasing
    ranking = pd.read_csv(tmp_path / "out" / "ranking.tsv", sep="\t").set_index("variant_id")
    assert list(ranking).index("interacts_with") == list(ranking).index("pair_with") + 1
    best = table.loc[0, "variant_id"]
    if table.loc[0, "pip"] > 0.5:
        assert ranking.loc[best, "interacts_with"] == "sex=male"
        assert printed["single_effects"]["interactions"] == 1
    assert ranking.loc[best, "pip"] >= table.loc[0, "pip"] - 1e-6
    assert pd.isna(ranking.loc[main, "interacts_with"])
    sets = pd.read_csv(tmp_path / "out" / "credible_sets.tsv", sep="\t")
    assert acting in sets.loc[sets["effect"] == "interaction", "snps"].iloc[0].split(" ")
    assert "predictions leave these out" in done.err
    assert printed["paths"]["interactions"].endswith("interactions.tsv")
    # The same by a setting; and without, a table of an earlier ranking does not stay.
    setting = ["--set", "interpretation.interactions=sex,age", *covariates_of(folder)]
    done = run(*words(folder, tmp_path / "set", *setting))
    assert done.code == 0, done.err
    assert f"interactions  {tmp_path / 'set' / 'interactions.tsv'}" in done.out
    assert "interactions with covariates" in done.out
    again = (tmp_path / "set" / "interactions.tsv").read_bytes()
    assert again == (tmp_path / "out" / "interactions.tsv").read_bytes()
    done = run(*words(folder, tmp_path / "set", *covariates_of(folder)))
    assert done.code == 0, done.err
    assert not (tmp_path / "set" / "interactions.tsv").exists()
    plain = pd.read_csv(tmp_path / "set" / "ranking.tsv", sep="\t")
    assert "interacts_with" not in plain


def test_each_level_of_a_text_is_a_covariate_of_its_own(run, files, tmp_path):
    folder, *_ = files
    told = ["--interaction", "site", "--set", "interpretation.pairs=false", *covariates_of(folder)]
    done = run(*words(folder, tmp_path / "out", *told))
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "out" / "interactions.tsv", sep="\t")
    assert set(table["covariate"]) <= {"site=b", "site=c"}
    assert not (table["q_value"] <= 0.1).any()


@pytest.mark.parametrize(
    ("asked", "trait", "says"),
    [
        ("sexx", "trait", "there is no covariate 'sexx'; did you mean 'sex'?"),
        ("sex,weight", "trait", "there is no covariate 'weight'"),
        ("sex", "thirds", "interactions need a quantitative or binary trait"),
    ],
)
def test_mistakes_are_one_line(run, files, tmp_path, asked, trait, says):
    folder, *_ = files
    done = run(*words(folder, tmp_path / "out", "--interaction", asked, *covariates_of(folder), trait=trait))
    assert done.code == 2
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("error: interpretation.interactions: ")
    assert says in last
    assert not (tmp_path / "out").exists()


def test_without_a_table_of_covariates(run, files, tmp_path):
    folder, *_ = files
    done = run(*words(folder, tmp_path / "out", "--interaction", "sex"))
    assert done.code == 2
    assert "there is no covariate 'sex'; give a table of it with --covariates" in done.err
