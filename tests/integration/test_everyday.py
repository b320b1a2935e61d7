"""What a user meets every day at the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import FAST_WORDS, train_words

from snpdeconv.config import load_config, preset_text
from snpdeconv.errors import ConfigError
from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.genetics.samples import Samples
from snpdeconv.simulation.writers import write_vcf


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--genotypes", "a", "--phenotypes", "b", "--trait", "t", "--out", "x", "--out", "y"),
        ("rank", "--out", "x", "--out=y"),
        ("predict", "--model", "m", "--out", "x", "--genotypes", "a", "--out", "y"),
        ("submit", "small_cpu", "--out", "x", "--out", "y"),
        ("retrain", "--name", "m", "--out", "x", "--out", "y"),
        ("simulate", "folder", "--seed", "1", "--seed", "2"),
    ],
)
def test_an_option_that_takes_one_value_is_refused_a_second(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.code == 2
    option = "--seed" if words[0] == "simulate" else "--out"
    assert done.err == f"error: {option}: is given 2 times; give it once\n"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("training.epochs=0", "--set training.epochs: "),
        ("training.epochs=many", "--set training.epochs: "),
        ("model.width=30", "--set model.width: "),
        ("interpretation.rank_by=attention", ""),
    ],
)
def test_what_a_setting_breaks_is_said_of_it(setting, told):
    if not told:
        told, setting = "--set interpretation.methods: ", "interpretation.methods=single_effects"
        with pytest.raises(ConfigError, match=re.escape(told)):
            load_config("small_cpu", overrides=["interpretation.rank_by=attention", setting])
        return
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        load_config("small_cpu", overrides=["training.seed=2", setting])


def test_a_preset_may_hold_only_what_it_changes(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: memory_constrained\ntraining: {epochs: 7}\n")
    config, base = load_config(str(mine)), load_config("memory_constrained")
    assert config.training == base.training.model_copy(update={"epochs": 7})
    assert config.data == base.data
    assert config.preset == "mine"
    mine.write_text(config.to_yaml())
    assert load_config(str(mine)) == config  # what is written is whole
    mine.write_text("base: small_gpu\n")
    with pytest.raises(ConfigError, match="mine: base: there is no preset 'small_gpu'; did you mean"):
        load_config(str(mine))
    mine.write_text("base: small_cpu\ntraining: {epohcs: 7}\n")
    with pytest.raises(ConfigError, match=r"mine: training.epohcs: .* 'training.epochs'"):
        load_config(str(mine))
    mine.write_text(preset_text("small_cpu").replace("gradient_clip", "# "))
    with pytest.raises(ConfigError, match=r"mine: training.gradient_clip: .* base: small_cpu"):
        load_config(str(mine))


def test_json_is_alone_on_standard_output(run, cohort, tmp_path):
    trained = run(*train_words(cohort, tmp_path / "run", "--name", "m", "--json"))
    assert json.loads(trained.out)["version"] == 1
    ranked = run("rank", "--model", "m", "--method", "marginal", "--out", tmp_path / "r", "--json")
    assert json.loads(ranked.out)["method"] == "marginal"
    others = cohort / "holdout" / "cohort.bed"
    predicted = run("predict", "--model", "m", "--genotypes", others, "--out", tmp_path / "p.tsv", "--json")
    assert json.loads(predicted.out)["num_samples"] == 60
    assert json.loads(run("status", "--json").out) == []


def test_the_page_that_ui_opens_is_that_of_the_runs(cohort, run, home, tmp_path, monkeypatch):
    from snpdeconv.tracking.connection import MlflowUi, _newest_experiment, connect, show_page
    from snpdeconv.tracking.home import embedded_uri

    assert run(*train_words(cohort, tmp_path / "run", "--name", "height")).code == 0
    client = connect(embedded_uri())
    experiment = _newest_experiment(client)
    (one,) = client.search_runs([experiment])
    assert re.fullmatch(r"height cnn \d{4}-\d\d-\d\d \d\d:\d\d", one.info.run_name)
    page = MlflowUi("http://127.0.0.1:5000", None, experiment).page
    assert page == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?workflowType=machine_learning"
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" >{opened}\n')
    browser.chmod(0o755)
    show = f"from snpdeconv.tracking.connection import show_page; show_page({page!r})"
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("BROWSER", raising=False)
    show_page(page)
    assert not opened.exists()
    subprocess.run([sys.executable, "-c", show], check=True, env={"BROWSER": f"{browser} %s"})
    assert opened.read_text() == page


def test_no_installation_is_named_that_cannot_work():
    """The package is in no index: extras are installed from the checkout, libraries by their own names."""
    top = Path(__file__).parents[2]
    for path in (top / "README.md", *(top / "snpdeconv").rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"pip install .*snpdeconv\b", line), f"{path}: {line}"


def test_without_msprime_simulate_says_what_to_install(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "msprime", None)
    done = run("simulate", tmp_path / "c")
    assert done.code == 2
    assert "pip install 'msprime>=1.3'" in done.err


@pytest.fixture
def files(cohort, tmp_path):
    """A table of covariates that two people and one column lack."""
    people = pd.read_csv(cohort / "phenotypes.tsv", sep="\t", dtype=str).drop(columns="trait")
    rng = np.random.default_rng(4)
    table = people.assign(
        age=rng.integers(20, 70, len(people)).astype(str), site=rng.choice(["Oslo", "Rome"], len(people))
    )
    table.loc[3, "age"] = "NA"
    table["empty"] = "NA"
    table.drop(index=7).to_csv(tmp_path / "covariates.tsv", sep="\t", index=False)
    return tmp_path


def rank_words(cohort, out, *more):
    tables = ["--genotypes", cohort / "cohort.bed", "--phenotypes", cohort / "phenotypes.tsv"]
    return ["rank", *tables, "--trait", "trait", "--method", "marginal", "--out", out, *more]


def test_people_without_a_covariate_are_dropped_and_counted(run, cohort, files):
    words = rank_words(cohort, files / "r", "--covariates", files / "covariates.tsv")
    done = run(*words)
    assert done.code == 2
    assert "covariates.tsv: nobody of 240 people has all covariates" in done.err
    done = run(*words, "--covariate-columns", "age,site")
    assert done.code == 0, done.err
    assert "2 of 240 people lack a covariate and are left out" in done.err
    counts = json.loads((files / "r" / "metrics.json").read_text())
    assert counts["people"] == counts["cohort"]["people_used"] == 238
    assert counts["cohort"]["people_missing_covariate"] == 2
    done = run(*words, "--covariate-columns", "age,sit")
    assert "there is no covariate 'sit'; did you mean 'site'?" in done.err


def test_people_and_variants_are_chosen_by_lists_as_plink_takes_them(run, cohort, files):
    fam = pd.read_csv(cohort / "cohort.fam", sep=r"\s+", header=None, dtype=str)
    bim = pd.read_csv(cohort / "cohort.bim", sep="\t", header=None, dtype=str)
    fam.iloc[:200, :2].to_csv(files / "keep", sep=" ", header=False, index=False)
    fam.iloc[:20, 1].to_csv(files / "remove", header=["#IID"], index=False)
    bim.iloc[:100, 1].to_csv(files / "extract", header=False, index=False)
    (files / "exclude").write_text(" ".join(bim.iloc[:10, 1]))
    lists = [
        word for name in ("keep", "remove", "extract", "exclude") for word in (f"--{name}", files / name)
    ]
    done = run(*rank_words(cohort, files / "r", *lists, "--chr", "1-3,X"))
    assert done.code == 0, done.err
    counts = json.loads((files / "r" / "metrics.json").read_text())
    assert counts["people"] == counts["cohort"]["people_used"] == 180
    assert counts["cohort"]["people_not_asked_for"] == 60
    ranking = pd.read_csv(files / "r" / "ranking.tsv", sep="\t")
    assert set(ranking["variant_id"]) <= set(bim.iloc[10:100, 1])
    assert len(ranking) == counts["snps"] == counts["cohort"]["variants_kept"] > 60
    if shutil.which("plink2") is None:
        return
    # plink2's own cut of the files gives the same association.
    cut = ["plink2", "--bfile", cohort / "cohort", *lists, "--make-bed", "--out", files / "cut"]
    subprocess.run([*map(str, cut)], check=True, capture_output=True)
    words = rank_words(cohort, files / "cut_r")
    words[words.index("--genotypes") + 1] = files / "cut.bed"
    assert run(*words).code == 0
    assert (files / "cut_r" / "ranking.tsv").read_text() == (files / "r" / "ranking.tsv").read_text()


@pytest.mark.parametrize(
    ("option", "text", "told"),
    [
        ("--keep", "nobody nobody\n", "leaves nobody (--keep)"),
        ("--keep", "#FID IID\n0\n", "'0' has no IID beside it"),
        ("--extract", "rs0\n", "leaves no variant (--extract)"),
        ("--chr", "7", "--chr: no variant is on 7; the cohort has 1"),
        ("--chr", "3-1", "--chr: '3-1' is no range"),
        ("--remove", None, "no such file"),
    ],
)
def test_lists_that_leave_nothing_are_one_line(run, cohort, tmp_path, option, text, told):
    given = text if option == "--chr" else tmp_path / "list"
    if text is not None and option != "--chr":
        given.write_text(text)
    done = run(*rank_words(cohort, tmp_path / "r", option, given))
    assert done.code == 2
    assert told in done.err.splitlines()[-1]


def test_jobs_and_retraining_take_the_same_lists(run, cohort, files):
    fam = pd.read_csv(cohort / "cohort.fam", sep=r"\s+", header=None, dtype=str)
    lists = files / "lists"
    lists.mkdir()
    fam.iloc[:200, :2].to_csv(lists / "keep", sep=" ", header=False, index=False)
    site = files / "site.yaml"
    site.write_text("scheduler: slurm\ncontainer: {runtime: apptainer, image: /images/x.sif}\n")
    words = ["submit", "small_cpu", "--data", cohort, "--cluster", site, "--dry-run", "--keep"]
    shown = run(*words, lists / "keep")
    assert shown.code == 0, shown.err
    assert f"--bind {lists}" in shown.out
    assert "no such file" in run(*words, lists / "none").err
    predicting = ["--data", cohort, "--model", "m@champion"]
    refused = run("submit", "production", *predicting, "--extract", lists / "keep")
    assert refused.err == "error: --extract: is for training; leave it out beside --model\n"
    shown = run(
        "submit", "production", *predicting, "--cluster", site, "--dry-run", "--remove", lists / "keep"
    )
    assert f"--bind {lists}" in shown.out
    table = cohort / "phenotypes.tsv"
    for options, told in (
        (("--trait", "trait"), "--trait: there is no table; give --phenotypes too"),
        (
            ("--phenotypes", table, "--trait", "hight"),
            f"{table}: there is no column 'hight' for --trait; did you mean 'trait'",
        ),
        (("--keep", lists / "none"), f"{lists / 'none'}: no such file; check the path"),
    ):
        refused = run("submit", "production", *predicting, "--cluster", "local", *options)
        assert (refused.code, told in refused.err) == (2, True), refused.err
    words = ["retrain", "--name", "m", "--data", cohort, "--keep", lists / "keep", "--chr", "1"]
    done = run(*words, "--out", files / "run", *FAST_WORDS)
    assert done.code == 0, done.err
    counts = json.loads((files / "run" / "metrics.json").read_text())["cohort"]
    assert (counts["people_used"], counts["people_not_asked_for"]) == (200, 40)
    again = run(*words, *FAST_WORDS, "--json")
    assert json.loads(again.out)["reason"] == "nothing changed"


def test_a_list_belongs_to_what_a_run_is(run, cohort, files):
    fam = pd.read_csv(cohort / "cohort.fam", sep=r"\s+", header=None, dtype=str)
    fam.iloc[:230, :2].to_csv(files / "keep", sep="\t", header=False, index=False)
    words = train_words(cohort, files / "run", "--name", "m", "--json", "--keep", files / "keep")
    assert run(*words).code == 0
    assert "nothing to do" in run(*words).err
    fam.iloc[:220, :2].to_csv(files / "keep", sep="\t", header=False, index=False)
    again = run(*words)
    assert again.code == 2
    assert "choose another --out" in again.err
    refused = run("rank", "--model", "m", "--out", files / "r", "--chr", "1")
    assert "--chr: a trained network has its own variants and covariates" in refused.err


@pytest.mark.parametrize("command", ["rank", "predict"])
def test_threads_are_as_many_as_asked_for(command):
    code = (
        f"import sys; sys.argv = ['snpdeconv', '{command}', '--out', 'x', '--threads', '1'];"
        "import os, atexit; from snpdeconv.cli import main;"
        "atexit.register(lambda: print(os.environ['OMP_NUM_THREADS'], len(os.sched_getaffinity(0)))); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize("pasted", ["FID_IID", "IID_IID", "0_IID"])
def test_names_that_plink_pastes_together_are_explained(run, cohort, tmp_path, pasted):
    """PLINK 1.9 writes FID_IID into a VCF, so that no ID is in common with a table."""
    held_out = load_cohort(cohort / "holdout" / "cohort.bed", cache_dir=tmp_path / "cache")
    plain = held_out.samples
    first = {"FID_IID": plain.fid, "IID_IID": plain.iid, "0_IID": ["0"] * len(plain)}[pasted]
    names = [f"{a}_{b}" for a, b in zip(first, plain.iid, strict=True)]
    vcf = write_vcf(
        tmp_path / "c", held_out.genotypes.codes(), variants=held_out.variants, samples=Samples.build(names)
    )
    words = rank_words(cohort / "holdout", tmp_path / "r")
    words[words.index("--genotypes") + 1] = vcf
    refused = run(*words)
    assert refused.code == 2
    told = refused.err.splitlines()[-1]
    assert "no sample ID in common" in told
    assert f"IDs such as '{names[0]}' are FID_IID" in told
    assert "id-paste=iid" in told
    table = pd.read_csv(cohort / "holdout" / "phenotypes.tsv", sep="\t", dtype=str)
    table.assign(IID=names).to_csv(tmp_path / "both.tsv", sep="\t", index=False)
    words[words.index("--phenotypes") + 1] = tmp_path / "both.tsv"
    refused = run(*words, "--keep", cohort / "holdout" / "phenotypes.tsv")
    assert "leaves nobody (--keep); IDs such as" in refused.err
    assert run(*words).code == 0
