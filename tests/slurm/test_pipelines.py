"""Work in several jobs, and retraining, on a real cluster."""

import json

import numpy as np
import pandas as pd
import pytest
from command_line import FAST
from conftest import LIMIT_S, await_state, only_run, points, words

from snpdeconv.config import load_config
from snpdeconv.launch.records import all_records, find_record
from snpdeconv.tracking.registry import list_models

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(4 * LIMIT_S)]


def test_train_rank_register_one_after_the_other(clusters, cohort, home, run):
    settings = (*FAST, "resources.nodes=1", "resources.gpus_per_node=2", "resources.timeout_min=60")
    submitted = run("submit", "large_multi_gpu", "--data", cohort, "--name", "staged", "--cluster", "test",
                    "--stages", "--out", "run", *words(*settings))  # fmt: skip
    assert submitted.code == 0, submitted.err
    train, rank, register = records = all_records()
    assert [record.kind for record in records] == ["train", "rank", "register"]
    assert [record.num_tasks for record in records] == [2, 1, 1]
    assert [record.partition for record in records] == ["gpu", "gpu", "cpu"]
    assert rank.after == (train.id,)
    assert register.after == (rank.id,)
    await_state(train, "done")
    assert (clusters / "run" / "model" / "model.safetensors").exists()
    assert not list_models()
    await_state(rank, "done")
    assert (clusters / "run" / "ranking.tsv").exists()
    await_state(register, "done")
    results = [record.outcome().result for record in records]
    assert len({result["run_id"] for result in results}) == 1
    assert [result["version"] for result in results] == [None, None, 1]
    assert only_run(home).info.run_id == results[0]["run_id"]
    for metric in ("train/epoch_loss", "test/r2", "marginal/lambda_gc"):
        steps = [step for step, _ in points(home, metric)]
        assert steps, metric
        assert len(set(steps)) == len(steps), metric
    ends = [record.outcome().time for record in records]
    starts = [json.loads((r.folder / "starts.jsonl").read_text())["time"] for r in records]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


def test_of_stages_none_follows_one_that_fails(clusters, cohort, home, run, tmp_path):
    table = pd.read_csv(cohort / "phenotypes.tsv", sep="\t")
    table["trait"] = 1.0
    table.to_csv(tmp_path / "flat.tsv", sep="\t", index=False)
    submitted = run("submit", "small_cpu", "--data", cohort, "--phenotypes", tmp_path / "flat.tsv",
                    "--cluster", "test", "--stages", "--out", "run", *words(*FAST))  # fmt: skip
    assert submitted.code == 0, submitted.err
    train, rank, register = all_records()
    assert "flat.tsv" in await_state(train, "failed").reason
    for record in (rank, register):
        assert await_state(record, "cancelled", "failed").starts == 0


def test_retraining_promotes_the_better_and_refuses_the_other(clusters, cohort, home, run, tmp_path):
    table = pd.read_csv(cohort / "phenotypes.tsv", sep="\t")
    table["trait"] = 0.15 * table["trait"] + np.random.default_rng(1).normal(size=len(table))
    table.to_csv(tmp_path / "noisy.tsv", sep="\t", index=False)

    def retrain(phenotypes, *settings, cluster=("--cluster", "test", "--wait")):
        ran = run("retrain", "--name", "height", "--genotypes", cohort / "cohort.bed",
                  "--phenotypes", phenotypes, "--trait", "trait", *cluster,
                  *words(*FAST, "model.linear=ridge", *settings))  # fmt: skip
        assert ran.code == 0, ran.err

    def champion():
        (model,) = list_models()
        return model.aliases["champion"]

    retrain(tmp_path / "noisy.tsv", "resources.device=cpu", cluster=())  # the site's device
    retrain(cohort / "phenotypes.tsv")
    better = find_record(None)
    assert (better.kind, better.num_starts()) == ("retrain", 1)
    assert better.outcome().result["reason"] == "changed: data"
    assert better.outcome().result["promoted"]
    assert champion() == 2
    retrain(cohort / "phenotypes.tsv", "training.seed=2")
    refused = find_record(None).outcome().result
    assert (refused["retrained"], refused["promoted"]) == (True, False)
    assert refused["low"] <= 0 <= refused["high"]
    assert champion() == 2


def test_a_search_finds_settings_in_an_array(clusters, cohort, home, run, tmp_path):
    (tmp_path / "space.yaml").write_text(
        "training.learning_rate: {low: 1e-4, high: 1e-2, log: true}\nmodel.width: [16, 32]\n"
    )
    submitted = run("submit", "small_cpu", "--search", 3, "--space", tmp_path / "space.yaml",
                    "--data", cohort, "--name", "height", "--cluster", "test", "--out", "search", "--wait",
                    *words(*FAST))  # fmt: skip
    assert submitted.code == 0, submitted.err
    record = find_record(None)
    now = await_state(record, "done")
    results = [record.outcome(element).result for element in range(3)]
    assert len({result["settings"]["training.learning_rate"] for result in results}) == 3
    best = max(results, key=lambda result: result["value"])
    assert now.progress.metrics == {"best val/r2": best["value"]}
    found = load_config(str(clusters / "search" / "settings.yaml"))
    assert found.training.learning_rate == best["settings"]["training.learning_rate"]
    assert found.model.width == best["settings"]["model.width"]
    assert not list_models()
