"""What commands leave beside their results and in MLflow, and what of a person stays in a run's folder."""

import hashlib
import json
import shutil
import socket
import sys

import mlflow
import pandas as pd
import pytest
import yaml
from command_line import train_words
from typer.testing import CliRunner

from snpdeconv.config import load_config
from snpdeconv.errors import ResourceError
from snpdeconv.pipelines import train as training
from snpdeconv.pipelines.run_folder import Inputs, hold
from snpdeconv.tracking.registry import download, resolve

ID = "QzSample{}xW"


@pytest.fixture(scope="module")
def named(cohort, tmp_path_factory):
    """The cohort with IDs that stand for nothing else, wherever they are found."""
    folder = tmp_path_factory.mktemp("named") / "data"
    shutil.copytree(cohort, folder)
    for fam in folder.rglob("*.fam"):
        rows = [line.split() for line in fam.read_text().splitlines()]
        fam.write_text(
            "".join(" ".join([f"F{ID.format(r[1])}", ID.format(r[1]), *r[2:]]) + "\n" for r in rows)
        )
    table = pd.read_csv(folder / "phenotypes.tsv", sep="\t", dtype={"#FID": str, "IID": str})
    table["IID"] = table["IID"].map(ID.format)
    table["#FID"] = "F" + table["IID"]
    table.to_csv(folder / "phenotypes.tsv", sep="\t", index=False)
    table[["#FID", "IID"]].assign(age=range(len(table))).to_csv(folder / "age.tsv", sep="\t", index=False)
    return folder


def facts(path):
    return json.loads(path.read_text())


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def runs(home):
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    found = client.search_runs([one.experiment_id for one in client.search_experiments()])
    return {run.data.tags["snpdeconv.kind"]: run for run in found}


@pytest.fixture(scope="module")
def finished(named, used_home, tmp_path_factory):
    """A cohort trained on, ranked with the model, and predicted; the home lies beside the results."""
    from snpdeconv.cli import app

    base = tmp_path_factory.mktemp("finished")
    age = ("--covariates", named / "age.tsv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        patch.setenv("SNPDECONV_HOME", str(used_home(base / "home")))
        for words in (
            train_words(named, base / "run", "--name", "height", *age, "--set", "model.linear=ridge"),
            ["rank", "--model", "height", "--method", "marginal", "--out", "ranking"],
            [
                "predict",
                "--model",
                "height",
                "--genotypes",
                named / "cohort.bed",
                *age,
                "--out",
                "tables/all.tsv",
            ],
        ):
            command = list(map(str, words))
            patch.setattr(sys, "argv", ["snpdeconv", *command])
            ran = CliRunner().invoke(app, command, catch_exceptions=False)
            assert ran.exit_code == 0, ran.output
    return base


@pytest.fixture
def done(finished, monkeypatch):
    """Those results, with their home as this process's."""
    monkeypatch.setenv("SNPDECONV_HOME", str(finished / "home"))
    return finished


def test_every_result_says_what_it_was_made_from(done, named):
    reference = resolve("height@champion")
    model = {"name": "height", "version": 1, "run_id": reference.run_id, "sha256": reference.sha256}
    tracked = runs(done / "home")

    trained = facts(done / "run" / "provenance.json")
    assert trained["command"].startswith(f"snpdeconv train --genotypes {named}/cohort.bed")
    assert (trained["outcome"], trained["trait"], trained["covariates"]) == ("done", "trait", ["age"])
    for name, file in (("phenotypes", "phenotypes.tsv"), ("covariates", "age.tsv")):
        assert trained["inputs"][name] == {"path": str(named / file), "sha256": sha256(named / file)}
    assert trained["settings"]["training"]["epochs"] == 2
    assert (trained["mlflow_run"], trained["version"]) == (reference.run_id, 1)
    assert trained["started"] <= trained["ended"]
    assert all(trained[name] for name in ("snpdeconv", "code", "host"))
    assert "240 people" in (done / "run" / "log.txt").read_text()

    ranked = facts(done / "ranking" / "provenance.json")
    assert ranked["model"] == model
    assert ranked["method"] == ranked["settings"]["interpretation"]["rank_by"] == "marginal"
    assert (
        yaml.safe_load((done / "ranking" / "settings.yaml").read_text())["interpretation"]["rank_by"]
        == "marginal"
    )
    assert ranked["results"]["ranking"]["sha256"] == sha256(done / "ranking" / "ranking.tsv")
    assert ranked["inputs"]["phenotypes"] == trained["inputs"]["phenotypes"]

    predicted = facts(done / "tables" / "all.provenance.json")
    assert predicted["model"] == model
    assert predicted["results"]["predictions"]["sha256"] == sha256(done / "tables" / "all.tsv")
    assert predicted["working_folder"] == str(done)
    assert "height is height version 1" in (done / "tables" / "all.log").read_text()

    for kind, sidecar in (("rank", ranked), ("predict", predicted)):
        tags = tracked[kind].data.tags
        assert tracked[kind].info.run_id == sidecar["mlflow_run"]
        assert tracked[kind].info.status == "FINISHED"
        assert (tags["snpdeconv.model"], tags["snpdeconv.model_version"]) == ("height", "1")
        assert tags["snpdeconv.model_run_id"] == reference.run_id
        assert tags["snpdeconv.data"] == sidecar["inputs"]["genotypes"]["sha256"]
    assert tracked["predict"].data.metrics["people"] == 240


def test_nothing_of_a_person_a_folder_or_a_machine_reaches_mlflow(done, named, tmp_path):
    home = done / "home"
    told = [(home / "mlflow.db").read_bytes()]
    told += [path.read_bytes() for path in (home / "artifacts").rglob("*") if path.is_file()]
    bundle = download(resolve("height"), cache_dir=tmp_path / "got")
    told += [path.read_bytes() for path in bundle.iterdir()]
    everything = b"\0".join(told)
    assert (done / "run" / "test_predictions.tsv").read_text().count(
        "Qz"
    ) > 30  # they stand where they should
    assert b"QzSample" not in everything
    assert str(named).encode() not in everything
    # The only addresses are the embedded store's own, of artifacts and of the experiment that MLflow makes.
    addresses, default = str(home / "artifacts").encode(), f"{done}/mlruns/0".encode()
    rest = everything.replace(addresses, b"").replace(default, b"")
    place = rest.find(str(done).encode())
    assert place == -1, rest[place - 90 : place + 90]
    for run in runs(home).values():
        assert socket.gethostname() not in run.data.tags.values()
    assert {path.name for path in bundle.iterdir()} >= {"held_out.json"}


def test_predictions_and_places_are_told_if_asked_for(run, named, home, tmp_path):
    asked = ("--set", "tracking.log_predictions=true", "--set", "tracking.log_places=true")
    ran = run(*train_words(named, tmp_path / "run", "--set", "model.linear=ridge", *asked))
    assert ran.code == 0, ran.err
    client, trained = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db"), runs(home)["train"]
    assert "test_predictions.tsv" in {one.path for one in client.list_artifacts(trained.info.run_id)}
    assert trained.data.tags["snpdeconv.folder"] == str(tmp_path / "run")


def test_another_home_does_not_know_the_cohort_of_a_model(run, done, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{done}/home/mlflow.db")
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "other"))
    ran = run("rank", "--model", "height", "--out", tmp_path / "elsewhere")
    assert ran.code == 2
    assert "the cohort that the model was trained on is not known in this home; give a cohort with" in ran.err
    assert not (tmp_path / "elsewhere").exists()


def test_a_store_that_is_away_gets_the_run_of_a_ranking_later(run, named, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    words = [
        "--genotypes",
        named / "cohort.bed",
        "--phenotypes",
        named / "phenotypes.tsv",
        "--trait",
        "trait",
    ]
    ran = run("rank", *words, "--method", "marginal", "--out", tmp_path / "out",
              "--set", "tracking.flush_timeout_s=0")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "`snpdeconv sync` sends" in ran.err
    assert facts(tmp_path / "out" / "provenance.json")["mlflow_run"] is None


def test_two_rankings_do_not_share_a_folder(run, named, tmp_path):
    (tmp_path / "out").mkdir()
    words = [
        "--genotypes",
        named / "cohort.bed",
        "--phenotypes",
        named / "phenotypes.tsv",
        "--trait",
        "trait",
    ]
    with hold(tmp_path / "out"):
        ran = run("rank", *words, "--method", "marginal", "--out", tmp_path / "out")
    assert ran.code == 2
    assert "out: another process works in this folder; wait for it or choose another --out" in ran.err


def test_simulated_and_imported_cohorts_say_how_they_were_made(run, tmp_path):
    folder, store = tmp_path / "made", tmp_path / "store"
    assert run("simulate", folder, "--samples", 40, "--variants", 60, "--causal", 2, "--seed", 7).code == 0
    assert facts(folder / "provenance.json")["settings"]["seed"] == 7
    assert run("import", folder / "cohort.bed", store).code == 0
    made = facts(store / "provenance.json")
    assert made["inputs"]["genotypes"]["sha256"] == sha256(folder / "cohort.bed")
    assert made["results"]["sha256"] == facts(store / "store.json")["digest"]
    for place in (folder, store):
        assert (place / "log.txt").exists()


def test_a_command_that_fails_before_it_has_results_leaves_nothing(run, named, tmp_path):
    ran = run(*train_words(named, tmp_path / "run", "--covariates", named / "cohort.bim"))
    assert ran.code == 2
    assert not (tmp_path / "run").exists()


def test_one_that_fails_later_says_so(run, named, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise ResourceError("no space", where="/secret/place/model.safetensors")

    monkeypatch.setattr(training, "save_bundle", full)
    assert run(*train_words(named, tmp_path / "run", "--set", "model.linear=ridge")).code == 2
    assert facts(tmp_path / "run" / "provenance.json")["outcome"].startswith(
        "failed: /secret/place/model.safe"
    )


def test_a_run_that_goes_on_keeps_the_command_that_began_it(run, named, tmp_path):
    words = train_words(named, tmp_path / "run", "--set", "model.linear=ridge")
    inputs = Inputs.from_paths(
        genotypes=named / "cohort.bed", phenotypes=named / "phenotypes.tsv", trait="trait"
    )
    settings = [word for word in map(str, words) if "=" in word]
    config = load_config("small_cpu", overrides=settings)
    training.train(config, inputs, model_name="trait", out=tmp_path / "run", until="train")
    first = facts(tmp_path / "run" / "provenance.json")
    assert run(*words).code == 0
    both = facts(tmp_path / "run" / "provenance.json")
    assert (both["command"], both["started"]) == (first["command"], first["started"])
    assert both["resumed"][0]["command"].startswith("snpdeconv train")
    assert both["outcome"] == "done"
