from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command_line import Ran, train_words

from snpdeconv.tracking.connection import MlflowUi, connect, serve_ui, server_command
from snpdeconv.tracking.home import tracking_uri
from snpdeconv.tracking.registry import download, get_run_info, resolve
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.tracking.ship import sync

START_TIMEOUT_S = 180.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """An MLflow server over one store and one port, which may be killed and started again."""

    folder: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        store = f"sqlite:///{self.folder}/server.db"
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                server_command(port=self.port, artifacts=self.folder / "artifacts"),
                env=os.environ
                | {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        """Ends the server and its workers at once, with no chance to finish anything."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    connect(f"sqlite:///{server.folder}/server.db")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def served_home(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "config.json").write_text("{}")
    (tmp_path / "bundle" / "weights.safetensors").write_bytes(os.urandom(3_000_000))
    return tmp_path / "bundle"


def points(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect(tracking_uri()).get_metric_history(run_id, name)]


def said(home: Path, key: str) -> dict[int, int]:
    """Time of each step of the loss, as the spool has it."""
    lines = (home / "spool" / key / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return {event["step"]: event["time_ms"] for event in events if event["kind"] == "metrics"}


@pytest.mark.slow
def test_a_run_and_its_model_go_through_a_server(served_home: Path, bundle: Path, tmp_path: Path) -> None:
    run = TrackedRun.open(experiment="height", name="served", params={"lr": 1}, system_every_s=None)
    run.log_metrics(0, {"loss": 0.5})
    run.log_artifact(bundle, folder="files")
    run.register("served", bundle, tags={"trait": "height"})
    run.finish()
    assert run.close(timeout_s=120)
    ref = resolve("served@champion")
    assert ref == run.registered["served"]
    assert ref.source.startswith("mlflow-artifacts:/")
    folder = download(ref, cache_dir=tmp_path / "cache")
    assert (folder / "weights.safetensors").read_bytes() == (bundle / "weights.safetensors").read_bytes()
    info = get_run_info(str(run.run_id))
    assert (info.status, info.params, info.metrics) == ("FINISHED", {"lr": "1"}, {"loss": 0.5})
    assert info.download("files/config.json", into=tmp_path / "got").read_text() == "{}"
    assert not (served_home / "mlflow.db").exists()


@pytest.mark.slow
def test_a_server_killed_in_mid_run_costs_no_step_and_no_time(
    server: Server, served_home: Path, bundle: Path
) -> None:
    run = TrackedRun.open(experiment="height", name="orphan", system_every_s=None)
    took_s: list[float] = []

    def train(first: int, last: int) -> None:
        for step in range(first, last):
            start = time.perf_counter()
            run.log_metrics(step, {"loss": step / 7, "lr": 0.1})
            took_s.append(time.perf_counter() - start)
            time.sleep(0.005)

    train(0, 200)
    assert run.flush(timeout_s=60)
    train(200, 300)
    server.kill()
    train(300, 700)
    run.register("orphan", bundle)
    run.finish()
    # Taken now: a spool that was sent whole moves away.
    times = said(served_home, run.key)
    assert not run.close(timeout_s=30)
    # A call that waited for the server would take a second and more; a busy machine may stall a few.
    assert sorted(took_s)[int(0.99 * len(took_s))] < 0.05
    assert max(took_s) < 0.5
    failed = sync()
    assert not failed.complete
    assert "does not take it" in failed.spools[0].note

    server.start()
    report = sync()
    assert [(spool.outcome, spool.problems) for spool in report.spools] == [("sent", ())]
    run_id = str(run.run_id)
    history = connect(tracking_uri()).get_metric_history(run_id, "loss")
    assert [(p.step, p.value, p.timestamp) for p in history] == [(s, s / 7, times[s]) for s in range(700)]
    assert [step for step, _ in points(run_id, "lr")] == list(range(700))
    assert resolve("orphan").run_id == run_id
    assert get_run_info(run_id).status == "FINISHED"


@pytest.mark.slow
def test_a_run_that_began_without_its_server_is_made_by_sync(
    server: Server, served_home: Path, bundle: Path
) -> None:
    server.kill()
    run = TrackedRun.open(experiment="late", name="late", params={"lr": 2}, system_every_s=None)
    run.log_metrics(0, {"loss": 1.0})
    run.register("late", bundle)
    run.finish()
    assert not run.close(timeout_s=30)
    assert run.run_id is None
    server.start()
    assert sync().complete
    ref = resolve("late/1")
    info = get_run_info(str(ref.run_id))
    assert (info.name, info.status, info.metrics) == ("late", "FINISHED", {"loss": 1.0})


@pytest.mark.slow
def test_a_server_that_comes_back_in_time_needs_no_sync(server: Server, served_home: Path) -> None:
    run = TrackedRun.open(experiment="height", name="patient", system_every_s=None)
    run.log_metrics(0, {"loss": 1.0})
    assert run.flush(timeout_s=60)
    server.kill()
    run.log_metrics(1, {"loss": 2.0})
    time.sleep(2.0)
    server.start()
    run.log_metrics(2, {"loss": 3.0})
    run.finish()
    assert run.close(timeout_s=120)
    assert points(str(run.run_id), "loss") == [(0, 1.0), (1, 2.0), (2, 3.0)]


FIRST_USE = """
import sys
from snpdeconv.tracking.run import TrackedRun
run = TrackedRun.open(experiment="shared", name=sys.argv[1], system_every_s=None)
for step in range(50):
    run.log_metrics(step, {"loss": float(step)})
run.finish()
assert run.close(timeout_s=120)
"""


@pytest.mark.slow
def test_eight_processes_may_open_a_fresh_home_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path))
    workers = [
        subprocess.Popen([sys.executable, "-c", FIRST_USE, str(i)], stderr=subprocess.PIPE) for i in range(8)
    ]
    for worker in workers:
        _, errors = worker.communicate()
        assert (worker.returncode, errors) == (0, b"")
    client = connect(tracking_uri())
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    assert experiment.artifact_location == str(tmp_path / "artifacts")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(str(run.info.run_name) for run in runs) == list("01234567")
    for run in runs:
        assert points(run.info.run_id, "loss") == [(step, float(step)) for step in range(50)]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read()


@pytest.mark.slow
def test_the_ui_shows_runs_and_files_of_the_embedded_store(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "home"))
    run = TrackedRun.open(experiment="height", name="shown", system_every_s=None)
    run.log_metrics(0, {"loss": 0.25})
    run.log_artifact(bundle / "config.json", folder="plots")
    run.register("shown", bundle)
    run.finish()
    assert run.close(timeout_s=60)

    ui: MlflowUi = serve_ui(free_port())
    try:
        assert ui.process is not None
        assert b"<html" in get(ui.url)
        query = urllib.parse.urlencode({"run_id": run.run_id, "path": "plots"})
        listed = json.loads(get(f"{ui.url}/ajax-api/2.0/mlflow/artifacts/list?{query}"))
        assert [entry["path"] for entry in listed["files"]] == ["plots/config.json"]
        query = urllib.parse.urlencode({"run_id": run.run_id, "path": "plots/config.json"})
        assert get(f"{ui.url}/get-artifact?{query}") == b"{}"
        by_name = ui.url.replace("127.0.0.1", "localhost")
        assert json.loads(get(f"{by_name}/api/2.0/mlflow/runs/get?run_id={run.run_id}"))["run"]

        # The UI's address serves as tracking address, for new runs and for what is there already.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", ui.url)
        assert (download(resolve("shown"), cache_dir=tmp_path / "cache") / "config.json").read_text() == "{}"
        more = TrackedRun.open(experiment="height", name="more", system_every_s=None)
        more.register("shown", bundle)
        more.finish()
        assert more.close(timeout_s=60)
        assert more.registered["shown"].version == 2
    finally:
        ui.stop()
    assert ui.process.poll() is not None
    with pytest.raises(OSError):
        get(ui.url)
    assert sorted(path.name for path in (tmp_path / "home").iterdir() if "mlruns" in path.name) == []


@pytest.mark.slow
def test_a_training_whose_server_is_killed_loses_nothing(
    tmp_path: Path, served_home: Path, server: Server, cohort: Path, run: Callable[..., Ran]
) -> None:
    """The whole program, as a user meets it: train, the server dies, training ends well, sync."""
    words = [str(word) for word in train_words(cohort, tmp_path / "run", "--name", "bereaved", "--json")]
    words += ["--set", "training.epochs=6", "--set", "tracking.log_every_steps=1"]
    words += ["--set", "tracking.flush_timeout_s=1"]
    training = subprocess.Popen(
        [sys.executable, "-c", "from snpdeconv.cli import main; main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any('"val/loss"' in path.read_text() for path in served_home.glob("spool/*/events.jsonl")):
        assert training.poll() is None, training.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.kill()
    out, err = training.communicate(timeout=200)
    assert training.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["version"] is None
    assert "snpdeconv sync" in err
    (spool,) = (path for path in (served_home / "spool").iterdir() if (path / "events.jsonl").exists())
    lines = [json.loads(line) for line in (spool / "events.jsonl").read_text().splitlines()]
    written = [
        (name, event["step"], value)
        for event in lines
        if event["kind"] == "metrics"
        for name, value in event["values"].items()
    ]

    server.start()
    synced = run("sync")
    assert synced.code == 0, synced.err
    model = resolve("bereaved@champion")
    assert model.run_id is not None
    names = {name for name, _, _ in written}
    assert {"train/loss", "val/loss", "test/r2"} <= names
    stored = [(name, step, value) for name in names for step, value in points(model.run_id, name)]
    assert sorted(stored) == sorted(written)
