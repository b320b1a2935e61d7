"""Ranking a cohort by single effects, without any network, as a user types it: tables, settings, mistakes."""

import json
import re
import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest

from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.simulation.simulate import simulate
from snpdeconv.simulation.writers import write_bed

SIZES = {"num_samples": 300, "num_variants": 300, "num_causal": 4, "pve": 0.8, "seed": 3}


def simulated(tmp_path_factory, trait):
    folder = tmp_path_factory.mktemp("single") / trait
    simulate(folder, trait=trait, **SIZES)
    return folder


@pytest.fixture(scope="module")
def additive(tmp_path_factory):
    return simulated(tmp_path_factory, "additive")


@pytest.fixture(scope="module")
def interacting(tmp_path_factory):
    return simulated(tmp_path_factory, "epistasis_main")


@pytest.fixture
def files(additive, tmp_path):
    """A copy of the additive cohort that a test may change."""
    return shutil.copytree(additive, tmp_path / "files")


def words(folder, out, *more, genotypes="cohort.bed"):
    return [
        "rank", "--genotypes", folder / genotypes, "--phenotypes", folder / "phenotypes.tsv",
        "--trait", "trait", "--out", out, "--set", "interpretation.num_permutations=1", *more,
    ]  # fmt: skip


def ranked(run, folder, out, *more, **options):
    done = run(*words(folder, out, "--json", *more, **options))
    assert done.code == 0, done.err
    return json.loads(done.out.splitlines()[-1])


def table(out, name="ranking"):
    return pd.read_csv(out / f"{name}.tsv", sep="\t")


def edit(folder, change, name="phenotypes.tsv"):
    path = folder / name
    change(pd.read_csv(path, sep="\t", dtype=str)).to_csv(path, sep="\t", index=False)


def test_the_causal_snps_lead_and_the_tables_agree(run, additive, home, tmp_path):
    printed = ranked(run, additive, tmp_path, "--method", "single_effects")
    causal = pd.read_csv(additive / "causal.tsv", sep="\t")["variant_id"]
    ranking, sets, blocks = table(tmp_path), table(tmp_path, "credible_sets"), table(tmp_path, "blocks")
    assert list(ranking) == [
        "rank", "variant_id", "chrom", "pos", "counted_allele", "other_allele", "block", "score",
        "pip", "effect", "credible_set", "pair_with", "q_value", "marginal", "single_effects",
    ]  # fmt: skip
    assert ranking["effect"].head(3).abs().between(0.05, 1).all()
    assert ranking["score"].is_monotonic_decreasing
    by_hand = ranking.sort_values(["pip", "single_effects", "marginal"], ascending=False, kind="stable")
    assert by_hand["rank"].is_monotonic_increasing
    assert ranking["q_value"].is_monotonic_increasing
    assert ranking["q_value"].between(0, 1).all()
    assert ranking["pip"].between(0, 1).all()
    assert ranking["variant_id"].head(4).isin(causal).sum() >= 2
    # A SNP is in the set that it names, and every SNP of a set names it or a stronger one.
    members = sets.set_index("set")["snps"].str.split(" ")
    for row in ranking.dropna(subset="credible_set").itertuples():
        assert row.variant_id in members[row.credible_set]
    for name, snps in members.items():
        named = ranking.set_index("variant_id").loc[snps, "credible_set"]
        assert (named.str.removeprefix("cs").astype(int) <= int(name.removeprefix("cs"))).all()
    assert (sets["coverage"] >= 0.95).all()
    assert sets["log10_bayes_factor"].is_monotonic_decreasing
    assert sets["best_snp"].isin(causal).sum() >= 2
    assert blocks["pve"].is_monotonic_decreasing
    with_sets = blocks.dropna(subset="credible_sets")
    assert (with_sets["pve_low"] < with_sets["pve"]).all()
    assert (with_sets["pve"] < with_sets["pve_high"]).all()
    assert set(",".join(blocks["credible_sets"].dropna()).split(",")) == set(sets["set"])
    assert sorted(blocks["block"]) == sorted(ranking["block"].unique())
    assert blocks["num_snps"].sum() == len(ranking) == printed["num_variants"]
    assert blocks.loc[0, "best_snp"] in ranking["variant_id"].head(4).tolist()
    assert printed["num_samples"] == 300
    assert printed["single_effects"]["credible_sets"] == len(sets)
    assert [one["variant_id"] for one in printed["top"]] == ranking["variant_id"].head(10).tolist()
    assert set(printed["paths"]) == {
        "ranking", "association", "credible_sets", "pairs", "blocks", "association_plot", "pair_map",
        "block_plot", "metrics", "settings",
    }  # fmt: skip
    for path in printed["paths"].values():
        assert (tmp_path / path).stat().st_size > 0
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.get_experiment_by_name("snpdeconv")
    assert experiment is not None
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert (tracked.info.status, tracked.data.tags["snpdeconv.kind"]) == ("FINISHED", "rank")


def test_the_default_is_the_ensemble_which_single_effects_decide(run, additive, tmp_path):
    done = run(*words(additive, tmp_path))
    assert done.code == 0, done.err
    ranking = table(tmp_path)
    assert list(ranking)[-3:] == ["q_value", "marginal", "single_effects"]
    assert ranking["pip"].is_monotonic_decreasing
    assert ranking["variant_id"].iloc[0] in done.out
    assert "credible sets" in done.out
    assert str(tmp_path / "ranking.tsv") in done.out


def test_pairs_that_interact_are_found_unless_not_asked_for(run, interacting, tmp_path):
    ranked(run, interacting, tmp_path / "a")
    causal = pd.read_csv(interacting / "causal.tsv", sep="\t").set_index("role")["variant_id"]
    pairs = table(tmp_path / "a", "pairs")
    leading = pairs[pairs["pip"] > 0.5]
    found = {frozenset(pair) for pair in zip(leading["variant_id_1"], leading["variant_id_2"], strict=True)}
    planted = {frozenset(causal[[f"pair_{i}a", f"pair_{i}b"]]) for i in (1, 2)}
    assert found & planted
    assert "pair" in table(tmp_path / "a", "credible_sets")["effect"].tolist()
    done = run(*words(interacting, tmp_path / "b", "--set", "interpretation.pairs=false"))
    assert done.code == 0, done.err
    assert (tmp_path / "b" / "pairs.tsv").read_text().startswith("variant_id_1\t")
    assert not len(table(tmp_path / "b", "pairs"))


def test_pairs_of_a_cohort_too_large_are_left_out_and_it_is_told(run, interacting, tmp_path):
    limit = ("--set", "interpretation.max_pair_tests=1e6")
    done = run(*words(interacting, tmp_path / "auto", *limit))
    assert done.code == 0, done.err
    assert "max_pair_tests=1e+06; --set interpretation.pairs=true" in done.err
    assert not len(table(tmp_path / "auto", "pairs"))
    ranked(run, interacting, tmp_path / "asked", *limit, "--set", "interpretation.pairs=true")
    assert len(table(tmp_path / "asked", "pairs"))
    searched = [
        json.loads((tmp_path / name / "metrics.json").read_text())["single_effects"]["pairs_searched"]
        for name in ("auto", "asked")
    ]
    assert searched == [0.0, 1.0]


def test_plain_association_asks_no_single_effects_and_leaves_no_tables_of_others(
    run, additive, tmp_path, monkeypatch
):
    from snpdeconv.pipelines import score

    for name in ("credible_sets.tsv", "pairs.tsv", "blocks.tsv", "pairs.png", "blocks.png", "notes.txt"):
        (tmp_path / name).write_text("of an earlier ranking\n")
    monkeypatch.setattr(score, "fine_map", None)
    printed = ranked(run, additive, tmp_path, "--method", "marginal")
    assert list(table(tmp_path))[7:] == ["score", "marginal"]
    assert printed["single_effects"] is None
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "ranking.tsv", "association.tsv", "association.png", "metrics.json", "settings.yaml", "notes.txt",
        ".lock", "log.txt", "provenance.json",
    }  # fmt: skip


def test_the_same_command_gives_the_same_bytes(run, interacting, tmp_path):
    for out in ("a", "b"):
        ranked(run, interacting, tmp_path / out)
    for name in ("ranking", "credible_sets", "pairs", "blocks"):
        first, second = ((tmp_path / out / f"{name}.tsv").read_bytes() for out in ("a", "b"))
        assert first == second


def test_smaller_coverage_gives_smaller_sets(run, additive, tmp_path):
    ranked(run, additive, tmp_path / "wide", "--set", "interpretation.coverage=0.99")
    ranked(run, additive, tmp_path / "narrow", "--set", "interpretation.coverage=0.5")
    wide, narrow = (table(tmp_path / out, "credible_sets") for out in ("wide", "narrow"))
    assert (narrow["coverage"] >= 0.5).all()
    assert (wide["coverage"] >= 0.99).all()
    both = wide.merge(narrow, on=["best_snp", "effect"])
    assert len(both)
    assert (both["num_snps_y"] <= both["num_snps_x"]).all()


def test_without_decoys_there_are_no_q_values(run, additive, tmp_path):
    printed = ranked(run, additive, tmp_path, "--set", "interpretation.num_permutations=0")
    assert table(tmp_path)["q_value"].isna().all()
    assert printed["top"][0]["q_value"] is None


def genetic_value(folder, tmp_path):
    """What the causal SNPs add up to in each person, standardised."""
    cohort = load_cohort(folder / "cohort.bed", cache_dir=tmp_path / "cache")
    causal = pd.read_csv(folder / "causal.tsv", sep="\t")
    column = {name: place for place, name in enumerate(cohort.variants.variant_id)}
    index = [column[name] for name in causal["variant_id"]]
    dosage = cohort.genotypes.codes(columns=np.array(index)).astype(float)
    value = ((dosage - dosage.mean(axis=0)) / dosage.std(axis=0)) @ np.sign(causal["effect"])
    return (value - value.mean()) / value.std()


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_traits_of_classes(run, files, tmp_path, kind):
    value = genetic_value(files, tmp_path) + 0.3 * np.random.default_rng(1).normal(size=300)
    if kind == "binary":
        classes = np.where(value > 0, "case", "control")
    else:
        classes = np.select([value < -0.5, value > 0.5], ["low", "tall"], "middle")
    edit(files, lambda t: t.assign(trait=classes))
    ranked(run, files, tmp_path / "out")
    ranking, sets = table(tmp_path / "out"), table(tmp_path / "out", "credible_sets")
    causal = pd.read_csv(files / "causal.tsv", sep="\t")["variant_id"]
    assert ranking["variant_id"].head(4).isin(causal).any()
    assert len(sets) >= 1
    if kind == "multiclass":
        assert set(sets["class"]) <= {"low", "middle", "tall"}
        assert not len(table(tmp_path / "out", "pairs"))
    else:
        assert sets["class"].isna().all()


@pytest.mark.parametrize(
    ("sizes", "told"),
    [({"case": 12}, "'case' 12; so few"), ({"a": 30, "b": 49, "c": 50}, "'a' 30, 'b' 49; so few")],
)
def test_few_people_of_a_class_are_told_once(run, files, tmp_path, sizes, told):
    few = np.repeat(list(sizes), list(sizes.values()))
    edit(files, lambda t: t.assign(trait=[*few, *["control"] * (len(t) - len(few))]))
    done = run(*words(files, tmp_path / "out", "--set", "interpretation.num_permutations=0"))
    assert done.code == 0, done.err
    assert done.err.count("fewer than 50 people") == 1
    assert told in done.err


def test_missing_genotypes_missing_traits_twins_and_covariates(run, files, tmp_path):
    """Everything that a real table holds at once: what is left ranks as the whole does, and is counted."""
    source = load_cohort(files / "cohort.bed", cache_dir=tmp_path / "cache")
    codes = source.genotypes.codes().copy()
    rng = np.random.default_rng(7)
    codes[1] = codes[0]  # twins
    codes[rng.random(codes.shape) < 0.02] = 3
    codes[5, :200] = 3
    write_bed(files / "holes", codes, variants=source.variants, samples=source.samples)
    age = rng.normal(50, 9, 300)
    edit(files, lambda t: t.assign(trait=t["trait"].astype(float) + 0.5 * age))
    edit(files, lambda t: t.assign(trait=t["trait"].mask(t.index == 9)))
    people = pd.read_csv(files / "phenotypes.tsv", sep="\t", dtype=str)[["#FID", "IID"]]
    people.assign(age=age, site=["a", "b"] * 150).to_csv(files / "covariates.tsv", sep="\t", index=False)
    causal = pd.read_csv(files / "causal.tsv", sep="\t")["variant_id"]
    found = {}
    for name, more in (("with", ["--covariates", files / "covariates.tsv"]), ("without", [])):
        printed = ranked(run, files, tmp_path / name, *more, genotypes="holes.bed")
        assert printed["num_samples"] == 298
        found[name] = int(table(tmp_path / name)["variant_id"].head(4).isin(causal).sum())
    assert found["with"] >= 2
    assert found["with"] >= found["without"]
    assert json.loads((tmp_path / "with" / "metrics.json").read_text())["cohort"]["people_too_missing"] == 1


def test_blocks_of_ones_own(run, files, tmp_path):
    bim = pd.read_csv(files / "cohort.bim", sep=r"\s+", header=None)
    middle = int(bim[3].median())
    (files / "blocks.bed").write_text(f"1\t0\t{middle}\tleft\n1\t{middle}\t{bim[3].max()}\tright\n")
    ranked(run, files, tmp_path / "out", "--blocks", files / "blocks.bed")
    assert sorted(table(tmp_path / "out", "blocks")["block"]) == ["left", "right"]


def test_structure_is_told_and_components_take_it_out(run, tmp_path):
    folder = tmp_path / "ancestry"
    simulate(folder, trait="ancestry", **SIZES)
    told = run(*words(folder, tmp_path / "plain"))
    assert told.code == 0, told.err
    assert "--set data.num_components=10 takes it out" in told.err
    corrected = run(*words(folder, tmp_path / "corrected", "--set", "data.num_components=10"))
    assert corrected.code == 0, corrected.err
    assert "takes it out" not in corrected.err
    assert len(table(tmp_path / "plain", "credible_sets"))
    assert not len(table(tmp_path / "corrected", "credible_sets"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--method", "attention"], "attention is read off a trained network, and none is given; give one"),
        (["--method", "single_effect"], "did you mean 'single_effects'?"),
        (["--set", "interpretation.coverage=2"], "interpretation.coverage: Input should be less than 1"),
        (["--preset", "smal_cpu"], "did you mean 'small_cpu'?"),
        (["--run", "0" * 32, "--model", "m"], "both --run and --model are given"),
        (["--run", "0" * 32, "--preset", "small_cpu"], "a trained network has its own settings"),
        (["--run", "0" * 32, "--blocks", "b.bed"], "a trained network has its own blocks"),
    ],
)
def test_mistakes_are_one_line(run, additive, tmp_path, more, says):
    done = run(*words(additive, tmp_path / "out", *more))
    assert done.code == 2
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_without_anything_to_rank_and_into_the_folder_of_a_run(run, additive, tmp_path):
    done = run("rank", "--genotypes", additive / "cohort.bed", "--out", tmp_path / "out")
    assert done.code == 2
    assert "there is no --phenotypes and no --trait; give" in done.err
    (tmp_path / "run.json").write_text("{}")
    done = run(*words(additive, tmp_path))
    assert done.code == 2
    assert "is the folder of a training run" in done.err


def test_a_misspelt_trait_is_one_line(run, additive, tmp_path):
    given = words(additive, tmp_path / "out")
    given[given.index("trait")] = "trai"
    done = run(*given)
    assert done.code == 2
    assert "did you mean 'trait'?" in done.err
    assert not (tmp_path / "out").exists()


def test_progress_is_plain_lines_in_the_log(run, additive, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody there: no time for a database
    monkeypatch.setattr("snpdeconv.console._SOON_S", 0.0)
    monkeypatch.setattr("snpdeconv.console._LOG_EVERY_S", 0.001)
    # As many draws as take a while: one may be over before the thread that tells of it wakes.
    settings = (
        "interpretation.pairs=false",
        "tracking.flush_timeout_s=1",
        "interpretation.num_permutations=100",
    )
    given = [word for setting in settings for word in ("--set", setting)]
    done = run(*words(additive, tmp_path, "--json", "--method", "single_effects", *given))
    json.loads(done.out)  # and nothing beside it
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"  INFO  draws of decoys: \d+ of 100(, about \d+ s left)?\n", log), log
    assert log.replace("\n", "").isprintable()
