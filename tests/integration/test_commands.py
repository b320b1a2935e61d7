"""The commands as a user types them, on files of every format, from simulation to prediction."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_line import train_words
from typer.testing import CliRunner

from snpdeconv.pipelines import rank


@pytest.fixture(scope="module")
def first_run(cohort, used_home, tmp_path_factory):
    """A folder with home and run of a registered model `height`, and the JSON that its training printed."""
    from snpdeconv.cli import app

    base = tmp_path_factory.mktemp("trained")
    words = [str(word) for word in train_words(cohort, base / "run", "--name", "height", "--json")]
    env = {"SNPDECONV_HOME": str(used_home(base / "home"))}
    done = CliRunner().invoke(app, words, env=env, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return base, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def trained(first_run, home):
    """That run, in a copy of its home, so that a test may add to it."""
    base, printed = first_run
    shutil.copytree(base / "home", home, dirs_exist_ok=True)
    return printed


def test_train_writes_ranking_metrics_plots_and_a_registered_champion(trained, cohort):
    folder = Path(trained["paths"]["ranking"]).parent
    assert trained["model"] == "height"
    assert trained["version"] == 1
    assert trained["run_id"]
    ranking = pd.read_csv(trained["paths"]["ranking"], sep="\t")
    assert list(ranking.columns) == [
        "rank", "variant_id", "chrom", "pos", "counted_allele", "other_allele", "block", "score", "pip",
        "effect", "credible_set", "pair_with", "q_value", "marginal", "single_effects", "attention",
        "attention_learned", "integrated_gradients",
    ]  # fmt: skip
    assert ranking["rank"].tolist() == list(range(1, len(ranking) + 1))
    assert ranking["score"].is_monotonic_decreasing
    assert ranking["pip"].is_monotonic_decreasing
    causal = pd.read_csv(cohort / "causal.tsv", sep="\t")
    assert ranking["variant_id"].head(5).isin(causal["variant_id"]).any()
    sets = pd.read_csv(folder / "credible_sets.tsv", sep="\t")
    assert sets["best_snp"].isin(causal["variant_id"]).any()
    assert set(ranking["credible_set"].dropna()) <= set(sets["set"])
    for name in ("pairs", "blocks"):
        assert trained["paths"][name] == str(folder / f"{name}.tsv")
        assert (folder / f"{name}.tsv").stat().st_size > 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["single_effects"]["credible_sets"] == len(sets)
    assert metrics["test"] == trained["test"]
    assert metrics["single_effects"]["pairs_searched"] == metrics["linear_part_searched_pairs"] == 1.0
    linear = metrics["test_of_linear_part"]["r2"]["value"]
    assert linear != metrics["test"]["r2"]["value"]
    assert linear == pytest.approx(metrics["test"]["r2"]["value"], abs=0.2)
    assert metrics["test"]["r2"]["low"] <= metrics["test"]["r2"]["value"] <= metrics["test"]["r2"]["high"]
    for plot in ("association", "pairs", "methods", "training", "predictions"):
        assert (folder / "plots" / f"{plot}.png").stat().st_size > 10_000


def test_predict_scores_people_never_seen(run, trained, cohort, tmp_path):
    out = tmp_path / "predictions.tsv"
    others = cohort / "holdout" / "cohort.bed"
    done = run("predict", "--model", "height@champion", "--genotypes", others, "--out", out, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert result["num_samples"] == 60
    assert result["version"] == 1
    table = pd.read_csv(out, sep="\t")
    assert list(table.columns) == ["#FID", "IID", "prediction", "missing", "typed_weight"]
    truth = pd.read_csv(cohort / "holdout" / "phenotypes.tsv", sep="\t")
    both = table.merge(truth, on="IID")
    assert len(both) == 60
    assert both["prediction"].corr(both["trait"]) > 0.2


def test_rank_by_model_and_by_run_agree_and_follow_the_method(run, trained, tmp_path):
    by_model = run("rank", "--model", "height@champion", "--out", tmp_path / "a", "--json")
    assert by_model.code == 0, by_model.err
    by_run = run("rank", "--run", trained["run_id"], "--method", "marginal", "--out", tmp_path / "b")
    assert by_run.code == 0, by_run.err
    a = pd.read_csv(tmp_path / "a" / "ranking.tsv", sep="\t")
    b = pd.read_csv(tmp_path / "b" / "ranking.tsv", sep="\t")
    trained_ranking = pd.read_csv(trained["paths"]["ranking"], sep="\t")
    assert a["variant_id"].tolist() == trained_ranking["variant_id"].tolist()
    assert b["score"].tolist() == b["marginal"].tolist()
    assert (tmp_path / "a" / "association.png").exists()
    for name in ("credible_sets", "pairs", "blocks"):
        trained_table = Path(trained["paths"][name]).read_text()
        assert (tmp_path / "a" / f"{name}.tsv").read_text() == trained_table


def test_single_effects_and_their_numbers_are_with_the_run(trained, home):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    metrics = client.get_run(trained["run_id"]).data.metrics
    assert metrics["single_effects/credible_sets"] >= 1
    assert 0 < metrics["single_effects/pve_low"] < metrics["single_effects/pve"] < 1
    logged = {artifact.path for artifact in client.list_artifacts(trained["run_id"])}
    assert {"ranking.tsv", "credible_sets.tsv", "pairs.tsv", "blocks.tsv"} <= logged
    assert "plots/pairs.png" in {one.path for one in client.list_artifacts(trained["run_id"], "plots")}


def test_only_what_the_method_needs_is_computed(run, trained, tmp_path, monkeypatch):
    from snpdeconv.pipelines import score

    monkeypatch.setattr(score, "integrated_gradients", None)
    monkeypatch.setattr(score, "attention_scores", None)
    for method in ("single_effects", "marginal"):
        done = run("rank", "--model", "height", "--method", method, "--out", tmp_path / method)
        assert done.code == 0, done.err
    ranking = pd.read_csv(tmp_path / "single_effects" / "ranking.tsv", sep="\t")
    assert list(ranking)[-2:] == ["marginal", "single_effects"]
    monkeypatch.setattr(score, "fine_map", None)
    done = run("rank", "--model", "height", "--method", "marginal", "--out", tmp_path / "single_effects")
    assert done.code == 0, done.err
    assert not (tmp_path / "single_effects" / "credible_sets.tsv").exists()


def test_settings_of_the_ranking_can_be_changed_beside_a_model_and_others_not(run, trained, tmp_path):
    words = ["rank", "--model", "height", "--method", "single_effects", "--out", tmp_path / "r", "--set"]
    assert run(*words, "interpretation.coverage=0.5").code == 0
    assert "coverage: 0.5" in (tmp_path / "r" / "settings.yaml").read_text()
    for setting in ("data.maf_min=0.1", "resources.nodes=2"):
        refused = run(*words, setting)
        assert refused.code == 2
        assert "would change what the model was trained with" in refused.err


def test_the_device_of_the_ranking_is_chosen_beside_a_model(run, trained, tmp_path, monkeypatch):
    asked = []
    choose = rank.choose_device
    monkeypatch.setattr(rank, "choose_device", lambda wanted: asked.append(wanted) or choose("cpu"))
    words = ["rank", "--model", "height", "--method", "integrated_gradients", "--out", tmp_path / "r"]
    assert run(*words).code == 0
    assert run(*words, "--set", "resources.device=cuda").code == 0
    assert asked == ["auto", "cuda"]


def test_rank_on_another_cohort(run, trained, cohort, tmp_path):
    done = run(
        "rank", "--model", "height", "--genotypes", cohort / "holdout" / "cohort.bed",
        "--phenotypes", cohort / "holdout" / "phenotypes.tsv", "--out", tmp_path / "other", "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["num_samples"] == 60


def test_train_again_in_the_same_folder_is_complete_already(run, trained, cohort):
    folder = Path(trained["paths"]["ranking"]).parent
    again = run(*train_words(cohort, folder, "--name", "height", "--json"))
    assert again.code == 0
    assert json.loads(again.out.splitlines()[-1]) == trained


def test_train_refuses_a_folder_of_another_run_or_of_other_files(run, trained, cohort, tmp_path):
    folder = Path(trained["paths"]["ranking"]).parent
    other = run(*train_words(cohort, folder, "--name", "height", "--seed", "2"))
    assert other.code == 2
    assert "holds a run with training.seed = 1, and now it is 2" in other.err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.docx").touch()
    other = run(*train_words(cohort, tmp_path / "full", "--name", "height"))
    assert other.code == 2
    assert "holds other files and no run" in other.err


def test_a_second_model_becomes_challenger_and_the_champion_stays(run, trained, cohort, tmp_path):
    from snpdeconv.tracking.registry import list_models

    done = run(*train_words(cohort, tmp_path / "run2", "--name", "height", "--seed", "2", "--json"))
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["version"] == 2
    (model,) = list_models()
    assert dict(model.aliases) == {"champion": 1, "challenger": 2}


@pytest.mark.parametrize("architecture", ["cnn_transformer", "gnn"])
def test_every_architecture_trains_and_predicts_alike_after_a_round_trip(run, cohort, tmp_path, architecture):
    words = train_words(
        cohort, tmp_path / "run", "--name", "m", "--set", f"model.architecture={architecture}",
        "--set", "model.patch=16", "--set", "data.num_components=2",
    )  # fmt: skip
    assert run(*words).code == 0
    assert (
        run("predict", "--model", "m", "--genotypes", cohort / "cohort.bed", "--out", tmp_path / "p.tsv").code
        == 0
    )
    predicted = pd.read_csv(tmp_path / "p.tsv", sep="\t", dtype={"IID": str}).set_index("IID")["prediction"]
    tested = pd.read_csv(tmp_path / "run" / "test_predictions.tsv", sep="\t", dtype={"IID": str}).set_index(
        "IID"
    )
    np.testing.assert_allclose(predicted[tested.index], tested["prediction"], rtol=1e-4, atol=1e-4)


def test_presets_and_version(run):
    listed = run("presets")
    assert listed.code == 0
    assert "medium_gpu" in listed.out
    assert "epochs: 100" in run("presets", "medium_gpu").out
    assert run("--version").out.startswith("snpdeconv ")
