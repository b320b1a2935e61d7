"""A run killed by SIGKILL at any moment and started again ends as if nothing had happened, bit for bit."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SETTINGS = (
    "training.epochs=4", "training.batch_size=16", "training.checkpoint_every_steps=3", "model.width=16",
    "model.channels=6,6", "tracking.log_every_steps=1", "interpretation.gradient_steps=4",
    "interpretation.max_samples=60", "interpretation.num_permutations=1",
)  # fmt: skip
COMPARED = (
    "ranking.tsv",
    "credible_sets.tsv",
    "pairs.tsv",
    "blocks.tsv",
    "metrics.json",
    "test_predictions.tsv",
    "model/model.safetensors",
    "model/config.json",
)


def command(cohort: Path, out: Path) -> list[str]:
    words = [
        sys.executable, "-c", "from snpdeconv.cli import main; main()", "train",
        "--genotypes", str(cohort / "cohort.bed"), "--phenotypes", str(cohort / "phenotypes.tsv"),
        "--trait", "trait", "--name", "killed", "--out", str(out), "--json",
    ]  # fmt: skip
    return words + [word for setting in SETTINGS for word in ("--set", setting)]


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"SNPDECONV_HOME": str(home), "OMP_NUM_THREADS": "1"}


def digests(out: Path) -> dict[str, str]:
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in COMPARED}


def reached(moment: str, out: Path, home: Path) -> bool:
    """Whether a run has come as far as a moment's name says."""
    if moment == "first checkpoint":
        return any((out / "checkpoints").glob("last-*")) if (out / "checkpoints").is_dir() else False
    if moment == "third epoch":
        spools = list((home / "spool").glob("*/events.jsonl"))
        return any(
            '"val/loss"' in line and '"step": 33' in line  # eleven steps an epoch
            for s in spools
            for line in s.read_text().splitlines()
        )
    return (out / moment).exists()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(cohort, tmp_path):
    import mlflow

    whole = tmp_path / "whole"
    subprocess.run(
        command(cohort, whole), env=environment(tmp_path / "home0"), check=True, capture_output=True
    )
    expected = digests(whole)

    out, home = tmp_path / "killed", tmp_path / "home1"
    kills = 0
    for moment in (
        "run.json", "checkpoints/linear.safetensors", "first checkpoint", "third epoch", "model/config.json",
        "plots/training.png",
    ):  # fmt: skip
        process = subprocess.Popen(
            command(cohort, out), env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 300
        while process.poll() is None and not reached(moment, out, home) and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        _, told = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), told.decode()
    assert kills >= 4
    done = subprocess.run(
        command(cohort, out), env=environment(home), check=True, capture_output=True, text=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert digests(out) == expected

    # One run, one version, and each step once.
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    assert result["version"] == 1
    (experiment,) = (e for e in client.search_experiments() if e.name == "snpdeconv")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    for metric in ("train/loss", "val/loss"):
        history = points(home, metric)
        assert history == points(tmp_path / "home0", metric)
        assert len({step for step, _ in history}) == len(history) >= 4


def points(home: Path, metric: str) -> list[tuple[int, float]]:
    """Step and value of all points of a metric of the home's only run."""
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "snpdeconv")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def has_spoken(home):
    return any(b"\n" in path.read_bytes() for path in (home / "spool").glob("*/events.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["run.json", "model/config.json"])
def test_sigterm_outside_of_the_loop_ends_the_run_promptly(cohort, tmp_path, moment):
    """In the fitted part and in the ranking: no minute until SIGKILL, and nothing that stays RUNNING."""
    import mlflow

    out, home = tmp_path / "out", tmp_path / "home"
    process = subprocess.Popen(
        command(cohort, out), env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not ((out / moment).exists() and has_spoken(home)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started = time.monotonic()
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert time.monotonic() - started < 20
    assert process.returncode == 143, told.decode()
    assert "Traceback" not in told.decode()

    def status() -> str:
        client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
        (experiment,) = (e for e in client.search_experiments() if e.name == "snpdeconv")
        (run,) = client.search_runs([experiment.experiment_id])
        return run.info.status

    sync = [sys.executable, "-c", "from snpdeconv.cli import main; main()", "sync"]
    subprocess.run(sync, env=environment(home), check=True, capture_output=True)
    assert status() == "KILLED"
    subprocess.run(command(cohort, out), env=environment(home), check=True, capture_output=True)
    assert status() == "FINISHED"
