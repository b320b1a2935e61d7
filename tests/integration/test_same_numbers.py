"""One run, told in the terminal, the log, metrics.json and MLflow: the same name has the same number."""

import json
import re

import mlflow
import numpy as np
import pandas as pd
import pytest
from command_line import train_words

QUICK = [
    "--set", "model.linear=ridge", "--set", "interpretation.pairs=false", "--set", "training.epochs=5",
    "--set", "training.learning_rate=0.02", "--set", "training.patience=4",
]  # fmt: skip


@pytest.fixture
def covariates(cohort, tmp_path):
    """Age, which the trait does not depend on, and a score that it does."""
    table = pd.read_csv(cohort / "phenotypes.tsv", sep="\t", dtype={"IID": str})
    rng = np.random.default_rng(4)
    table["age"] = rng.integers(20, 70, size=len(table))
    table["site"] = np.array(["a", "b", "c"])[np.arange(len(table)) % 3]
    table["score"] = table["trait"] + rng.normal(size=len(table))
    table.drop(columns="trait").to_csv(tmp_path / "covariates.tsv", sep="\t", index=False)
    return tmp_path / "covariates.tsv"


def test_log_terminal_metrics_file_and_mlflow_say_the_same(run, cohort, covariates, home, tmp_path):
    done = run(*train_words(cohort, tmp_path / "run", "--covariates", covariates, *QUICK))
    assert done.code == 0, done.err
    told = json.loads((tmp_path / "run" / "metrics.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = [one for one in client.search_experiments() if one.name == "snpdeconv"]
    (tracked,) = client.search_runs([experiment.experiment_id])
    shown = tracked.data.metrics

    # Curves end in the epoch whose weights were kept, which is not always the last one.
    kept = told["best_epoch"]
    epochs = {m.step: m.value for m in client.get_metric_history(tracked.info.run_id, "epoch")}
    assert list(epochs.values()) == [*range(told["epochs"] + 1), kept]
    assert kept < told["epochs"]
    assert shown["epoch"] == shown["best_epoch"] == kept
    assert shown["epochs"] == told["epochs"]
    for name, value in told["validation"].items():
        assert shown[f"val/{name}"] == value
        history = client.get_metric_history(tracked.info.run_id, f"val/{name}")
        assert {epochs[m.step]: m.value for m in history[:-1]}[kept] == value
    assert f"epoch {kept} kept: validation loss {told['validation']['loss']:.4g}" in done.err
    logged = re.findall(r"epoch (\d+): training loss \S+, validation loss (\S+),", done.err)
    assert [int(epoch) for epoch, _ in logged] == list(range(1, told["epochs"] + 1))
    curve = [m.value for m in client.get_metric_history(tracked.info.run_id, "val/loss")][1:-1]
    assert [loss for _, loss in logged] == [f"{value:.4g}" for value in curve]

    # Test people: value and bounds, of the model, its parts, and what each adds.
    for group in ("test", "test_of_linear_part", "network_adds", "test_of_covariates", "genotypes_add"):
        for metric, interval in told[group].items():
            for part, value in interval.items():
                name = f"{group}/{metric}" if part == "value" else f"{group}/{metric}_{part}"
                assert shown[name] == value, name
    difference = told["test"]["r2"]["value"] - told["test_of_linear_part"]["r2"]["value"]
    assert told["network_adds"]["r2"]["value"] == pytest.approx(difference)
    incremental = told["test"]["r2"]["value"] - told["test_of_covariates"]["r2"]["value"]
    assert told["genotypes_add"]["r2"]["value"] == pytest.approx(incremental)
    assert told["genotypes_add"]["r2"]["low"] < incremental < told["genotypes_add"]["r2"]["high"]
    for line in (
        rf"^r2 +{told['test']['r2']['value']:.3f} ",
        rf"^the network adds to its linear part: r2 +{re.escape(f'{difference:+.3f}')} ",
        rf"^genotypes add to the covariates: r2 +{re.escape(f'{incremental:+.3f}')} ",
    ):
        assert re.search(line, done.out, flags=re.MULTILINE), (line, done.out)

    assert shown["marginal/lambda_gc"] == told["lambda_gc"]
    inflation = f"genomic inflation λ_GC of plain association: {told['lambda_gc']:.3f} (1 is none)"
    assert re.findall("genomic inflation λ_GC.*", done.err) == [inflation]
    assert "3 covariates in 4 columns: age (number); site (indicators against a of b, c); score (number)" in (
        done.err
    )
    # Attention starts from the fitted part; what training made of it stands beside it.
    ranking = pd.read_csv(tmp_path / "run" / "ranking.tsv", sep="\t")
    start = ranking["attention"] / 2 ** ranking["attention_learned"]
    assert start.sum() == pytest.approx(1, abs=1e-3)
    moved = (ranking["attention"] - start).abs().sum() / 2
    assert told["attention_moved"] == shown["attention_moved"] == pytest.approx(moved, abs=1e-3)
    assert moved > 0
    assert f"attention started from the fitted part; training has moved {100 * moved:.1f} % of it" in done.err
    assert shown["integrated_gradients/completeness_gap"] == told["completeness_gap"]
    assert told["single_effects"]
    for name, value in told["single_effects"].items():
        assert shown[f"single_effects/{name}"] == value
    for name, count in told["cohort"].items():
        assert tracked.data.tags[f"snpdeconv.data.{name}"] == str(count)
