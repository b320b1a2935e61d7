from __future__ import annotations

import logging
import math
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpdeconv.errors import InputError, ResourceError
from snpdeconv.tracking import run as run_module
from snpdeconv.tracking.connection import connect
from snpdeconv.tracking.home import tracking_uri
from snpdeconv.tracking.registry import get_run_info
from snpdeconv.tracking.run import SystemSampler, TrackedRun, _clean
from snpdeconv.tracking.ship import sync
from snpdeconv.tracking.spool import Spool


def open_run(key: str | None = None, **more: object) -> TrackedRun:
    facts = {"experiment": "height", "name": "first", "system_every_s": None} | more
    return TrackedRun.open(key, **facts)  # type: ignore[arg-type]


def steps(run_id: str | None, name: str) -> list[tuple[int, float]]:
    assert run_id is not None
    return [(point.step, point.value) for point in connect(tracking_uri()).get_metric_history(run_id, name)]


@pytest.fixture
def dead_server(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return uri


def test_a_run_from_start_to_end(tracking_home: Path, model_folder: Path) -> None:
    run = open_run(params={"lr": 1e-4, "long": "x" * 9000}, tags={"data": "sha"})
    assert run.run_id is None
    run.log_metrics(0, {"loss": 1.5, "val/auroc@10[0]": 0.5})
    run.log_metrics(1, {"loss": 1.25})
    run.log_artifact(model_folder / "config.json", folder="plots")
    run.log_artifact(model_folder, folder="all")
    run.register("height", model_folder, tags={"trait": "height"})
    run.set_tags({"late": 3})
    run.finish()
    assert run.close(timeout_s=60)
    assert run.problems == ()
    assert run.run_id is not None
    info = get_run_info(run.run_id)
    assert (info.name, info.status) == ("first", "FINISHED")
    assert info.params == {"lr": "0.0001", "long": "x" * 6000}
    assert info.tags.items() >= {"data": "sha", "late": "3", "snpdeconv.key": run.key}.items()
    assert socket.gethostname() not in info.tags.values()
    assert info.metrics == {"loss": 1.25, "val/auroc_10_0_": 0.5}
    ref = run.registered["height"]
    assert (ref.name, ref.version, ref.run_id) == ("height", 1, run.run_id)
    assert info.download("all/config.json", into=tracking_home / "got").read_text().startswith("{")
    assert not (tracking_home / "spool" / run.key).exists()
    assert (tracking_home / "artifacts" / run.run_id).is_dir()
    with pytest.raises(InputError, match=r"all/confg.json: .* did you mean 'all/config.json'\?"):
        info.download("all/confg.json", into=tracking_home)
    with pytest.raises(InputError, match="has none there"):
        info.download("plotz/x", into=tracking_home)
    with pytest.raises(InputError, match="there is no run 'abc'"):
        get_run_info("abc")


def test_a_reopened_run_has_each_step_once_and_runs_again(tracking_home: Path) -> None:
    run = open_run(params={"lr": 1})
    for step in range(10):
        run.log_metrics(step, {"loss": float(step)})
    run.finish("KILLED")
    assert run.close(timeout_s=60)

    again = open_run(run.key, params={"lr": 2})
    for step in range(6, 13):
        again.log_metrics(step, {"loss": float(step), "new": 0.0})
    assert again.flush(timeout_s=60)
    assert again.run_id == run.run_id
    assert get_run_info(str(run.run_id)).status == "RUNNING"
    assert get_run_info(str(run.run_id)).params == {"lr": "1"}
    again.finish()
    assert again.close(timeout_s=60)
    assert steps(run.run_id, "loss") == [(step, float(step)) for step in range(13)]
    assert [step for step, _ in steps(run.run_id, "new")] == list(range(6, 13))
    assert get_run_info(str(run.run_id)).status == "FINISHED"


def test_a_lost_home_finds_its_run_by_key(tracking_home: Path) -> None:
    run = open_run(params={"lr": 1})
    run.log_metrics(0, {"loss": 1.0})
    assert run.close(timeout_s=60)
    (tracking_home / "spool" / run.key).rename(tracking_home / "lost")
    again = open_run(run.key, params={"lr": 2, "more": 3})
    assert again.flush(timeout_s=60)
    assert again.run_id == run.run_id
    assert get_run_info(str(run.run_id)).params == {"lr": "1", "more": "3"}
    again.close(timeout_s=60)


WORKER = """
import sys, time
from snpdeconv.tracking.run import TrackedRun
run = TrackedRun.open(sys.argv[1], experiment="height", name="killed", system_every_s=None)
step = int(sys.argv[2])
while True:
    run.log_metrics(step, {"loss": step / 2})
    step += 1
    print(step, flush=True)
    time.sleep(0.002)
"""


def test_a_killed_process_loses_no_step_and_its_run_is_marked(tracking_home: Path) -> None:
    key, reached = "a" * 32, 0
    for _ in range(2):
        start = str(max(0, reached - 20))
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, key, start], stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        while reached < int(start) + 60:
            reached = int(worker.stdout.readline())
        (report,) = sync().spools
        assert (report.outcome, report.note) == (
            "skipped",
            f"process {worker.pid} on {socket.gethostname()} sends it",
        )
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        reached = max([reached, *map(int, worker.stdout.read().split())])
        worker.stdout.close()
    (report,) = sync().spools
    assert (report.outcome, report.name, report.problems) == ("sent", "killed", ())
    assert "KILLED" in report.note
    client = connect(tracking_uri())
    experiment = client.get_experiment_by_name("height")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "KILLED"
    got = steps(run.info.run_id, "loss")
    # The last point may have been written without its step having been printed.
    assert got[:reached] == [(step, step / 2) for step in range(reached)]
    assert len(got) <= reached + 1
    assert sync().spools == ()


def test_one_process_at_a_time_speaks_for_a_run(tracking_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run()
    acquire = Spool.acquire
    monkeypatch.setattr(Spool, "acquire", lambda self, *, wait_s: acquire(self, wait_s=0.1))
    with pytest.raises(ResourceError, match="another process still writes"):
        open_run(run.key)
    assert run.close(timeout_s=60)


def test_a_dead_server_costs_a_warning_and_no_time(
    dead_server: str, no_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="snpdeconv"):
        run = open_run()
        took_s = []
        for step in range(500):
            start = time.perf_counter()
            run.log_metrics(step, {"loss": 1.0, "lr": 0.1})
            took_s.append(time.perf_counter() - start)
            time.sleep(0.002)
        start = time.perf_counter()
        assert not run.flush(timeout_s=60)
        assert time.perf_counter() - start < 20
        assert not run.close(timeout_s=60)
    # A call that waited for the server would take longer; a busy machine may stall a few.
    assert sorted(took_s)[490] < 0.05
    assert run.run_id is None
    down, kept = [record.getMessage() for record in caplog.records]
    assert f"the tracking store {dead_server} does not answer" in down
    assert "`snpdeconv sync` sends them" in down
    assert str(no_home / "spool" / run.key) in kept


def test_results_kept_from_a_dead_store_reach_it_once_it_works(
    no_home: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = no_home / "elsewhere" / "runs.db"
    store.parent.mkdir()
    store.write_bytes(b"no database " * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    with caplog.at_level(logging.INFO, logger="snpdeconv"):
        run = open_run()
        run.log_metrics(0, {"loss": 1.0})
        assert not run.flush(timeout_s=60)
        store.write_bytes(empty_store.read_bytes())
        run.log_metrics(1, {"loss": 2.0})
        assert run.flush(timeout_s=60)
    assert steps(run.run_id, "loss") == [(0, 1.0), (1, 2.0)]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    run.finish("FAILED")
    assert run.close(timeout_s=60)


def test_values_that_are_no_numbers_are_counted(
    tracking_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = open_run()
    with caplog.at_level(logging.WARNING, logger="snpdeconv"):
        run.log_metrics(0, {"loss": math.nan, "acc": 0.5})
        run.log_metrics(1, {"loss": math.inf})
    assert [record.getMessage() for record in caplog.records] == [
        "loss is nan at step 0: such points are not tracked"
    ]
    run.finish()
    assert run.close(timeout_s=60)
    info = get_run_info(str(run.run_id))
    assert info.tags["snpdeconv.non_finite_points"] == "2"
    assert info.metrics == {"acc": 0.5}


def test_a_full_disk_does_not_stop_training(tracking_home: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = open_run()
    assert run.flush(timeout_s=60)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    caplog.set_level(logging.INFO, logger="snpdeconv")
    caplog.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        run.log_metrics(0, {"loss": 1.0})
        run.log_metrics(1, {"loss": 1.0})
        with pytest.raises(ResourceError, match="free some disk space"):
            open_run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run.log_metrics(2, {"loss": 1.0})
    assert run.close(timeout_s=60)
    assert steps(run.run_id, "loss") == [(0, 1.0), (1, 1.0), (2, 1.0)]
    assert "results wait in memory" in caplog.records[0].getMessage()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_what_a_full_disk_kept_out_is_counted_though_nothing_can_be_written(tracking_home: Path) -> None:
    run = open_run()
    assert run.flush(timeout_s=60)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, before[1]))
    try:
        for step in range(5):
            run.log_metrics(step, {"loss": 1.0})
        assert not run.close(timeout_s=5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (report,) = sync().spools
    assert report.outcome == "incomplete"
    assert "5 of what it said were lost" in report.note


def test_a_model_name_that_cannot_be_asked_for_is_refused(tracking_home: Path, model_folder: Path) -> None:
    run = open_run()
    for name in ("a/b", "a:1", "a@champion", "", " "):
        with pytest.raises(InputError, match="cannot name a model"):
            run.register(name, model_folder)
    assert run.close(timeout_s=60)


@given(name=st.text(max_size=300))
def test_cleaned_names_are_names_that_mlflow_takes(name: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    _validate_metric_name(_clean(name))
    assert len(_clean(name)) <= 250


def test_clean_leaves_good_names_alone() -> None:
    assert _clean("val/auroc-1.5: x_y") == "val/auroc-1.5: x_y"


def test_memory_and_cpu_are_sampled(tracking_home: Path) -> None:
    run = open_run(system_every_s=0.05)
    time.sleep(0.3)
    run.finish()
    assert run.close(timeout_s=60)
    info = get_run_info(str(run.run_id))
    assert 0.01 < info.metrics["system/rss_gib"] < 100
    assert info.metrics["system/cpu_percent"] >= 0
    # Steps are seconds since the run began: one point a second stays.
    assert len(steps(run.run_id, "system/rss_gib")) >= 1


def test_gpu_memory_is_read_only_where_torch_uses_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = SystemSampler(lambda sample: None, every_s=60)
    monkeypatch.delitem(sys.modules, "torch.cuda", raising=False)
    assert set(sampler.sample()) == {"system/rss_gib", "system/cpu_percent"}
    gpu = SimpleNamespace(
        is_initialized=lambda: True, memory_allocated=lambda: 2**30, memory_reserved=lambda: 2**31
    )
    monkeypatch.setitem(sys.modules, "torch.cuda", gpu)
    sample = sampler.sample()
    assert (sample["system/gpu_allocated_gib"], sample["system/gpu_reserved_gib"]) == (1.0, 2.0)
    sampler.stop()


def test_module_names_no_mlflow() -> None:
    assert "mlflow" not in vars(run_module)
