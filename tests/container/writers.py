"""Eight jobs that log to one server at once, and the proof that the server has all they said."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

NUM_JOBS = 8
NUM_STEPS = 300

JOB = """
import sys, time
from pathlib import Path
from snpdeconv.tracking.run import TrackedRun
name, folder = sys.argv[1], Path(sys.argv[2])
folder.mkdir()
(folder / "weights").write_text(name)
run = TrackedRun.open(experiment="eight", name=name, params={"job": name}, system_every_s=None)
for step in range(int(sys.argv[3])):
    run.log_metrics(step, {"train/loss": step + int(name) / 8, "val/loss": -step, "lr": 0.1})
    time.sleep(0.005)
run.log_artifact(folder / "weights")
run.register("shared", folder)
run.finish()
assert run.close(timeout_s=240), run.problems
assert not run.problems, run.problems
"""


def log_at_once(folder: Path, environment: dict[str, str], *, one_home: bool) -> float:
    """Runs the jobs and returns how many seconds they took.

    Args:
        folder: Where their homes and files are made.
        environment: Leads them to the server.
        one_home: Whether they share a home, as one user's jobs do, or have one each.
    """
    started = time.monotonic()
    jobs = []
    for i in range(NUM_JOBS):
        home = folder / ("home" if one_home else f"home-{i}")
        words = [sys.executable, "-c", JOB, str(i), str(folder / f"job-{i}"), str(NUM_STEPS)]
        jobs.append(
            subprocess.Popen(words, env=environment | {"SNPDECONV_HOME": str(home)}, stderr=subprocess.PIPE)
        )
    try:
        errors = [job.communicate(timeout=280)[1].decode() for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == [0] * NUM_JOBS, errors
    return time.monotonic() - started


def assert_nothing_lost(uri: str) -> None:
    """Asks the server for every run, point, file and version; MLflow's login is in the environment."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("eight")
    assert experiment is not None
    runs = {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == [str(i) for i in range(NUM_JOBS)]
    for name, run in runs.items():
        assert (run.info.status, run.data.params) == ("FINISHED", {"job": name})
        expected = {
            "train/loss": [(step, step + int(name) / 8) for step in range(NUM_STEPS)],
            "val/loss": [(step, -step) for step in range(NUM_STEPS)],
            "lr": [(step, 0.1) for step in range(NUM_STEPS)],
        }
        history = {metric: client.get_metric_history(run.info.run_id, metric) for metric in expected}
        assert {metric: [(p.step, p.value) for p in points] for metric, points in history.items()} == expected
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files == {"weights", "model"}
    versions = client.search_model_versions("name = 'shared'")
    assert sorted(int(version.version) for version in versions) == list(range(1, NUM_JOBS + 1))
    assert {version.run_id for version in versions} == {run.info.run_id for run in runs.values()}
    assert set(client.get_registered_model("shared").aliases) == {"champion", "challenger"}
