from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest

from snpdeconv.errors import ConfigError
from snpdeconv.tracking.artifacts import write_checksums
from snpdeconv.tracking.connection import connect, is_refusal, reason
from snpdeconv.tracking.home import tracking_uri
from snpdeconv.tracking.ship import Shipper
from snpdeconv.tracking.spool import Sent, Spool

KEY = "0123456789abcdef0123456789abcdef"
PROCESS = {"uri": "", "host": "here", "pid": 1}


@pytest.fixture
def spool(tracking_home: Path) -> Spool:
    spool = Spool(tracking_home / "spool", KEY)
    assert spool.acquire()
    return spool


def create(spool: Spool, *, num_params: int = 1) -> None:
    params = {f"p{i}": str(i) for i in range(num_params)}
    facts = {"experiment": "height", "name": "first", "params": params, "tags": {"a": "b"}}
    spool.append("create", PROCESS | facts, time_ms=1000)


def runs() -> list[Any]:
    client = connect(tracking_uri())
    experiment = client.get_experiment_by_name("height")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def points(run_id: str, name: str) -> list[tuple[int, int, float]]:
    history = connect(tracking_uri()).get_metric_history(run_id, name)
    return sorted((point.step, point.timestamp, point.value) for point in history)


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the shipper sees it."""


def test_a_kill_between_sending_and_noting_it_doubles_nothing(
    spool: Spool, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(spool, num_params=230)
    for step in range(3):
        spool.append("metrics", {"step": step, "values": {"loss": step / 3}}, time_ms=2000 + step)
    spool.append("tags", {"tags": {"late": "1"}})
    (tmp_path / "report.txt").write_text("fine")
    spool.append("artifact", {"path": str(tmp_path / "report.txt"), "folder": "reports"})
    model = {"name": "height", "path": str(model_folder), "digest": write_checksums(model_folder)}
    spool.append("register", model | {"tags": {"trait": "height"}, "champion_if_none": True})
    spool.append("open", {**PROCESS, "pid": 2})
    spool.append("metrics", {"step": 3, "values": {"loss": 1.0}}, time_ms=9000)
    spool.append("status", {"status": "FINISHED"}, time_ms=9500)

    commit, killed_at = Spool.commit, set()

    def killed_at_first(self: Spool, sent: Sent) -> None:
        if sent.offset not in killed_at:
            killed_at.add(sent.offset)
            raise Killed
        commit(self, sent)

    monkeypatch.setattr(Spool, "commit", killed_at_first)
    while spool.sent(tracking_uri()).offset < spool.size:
        with contextlib.suppress(Killed):
            Shipper(spool, uri=tracking_uri()).ship()
    assert len(killed_at) == 8  # three of the metrics go together
    # And once more from the start, as after a lost note.
    monkeypatch.setattr(Spool, "commit", commit)
    (spool.folder / "sent.json").unlink()
    Shipper(spool, uri=tracking_uri()).ship()

    (run,) = runs()
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", 1000, 9500)
    assert run.data.params == {f"p{i}": str(i) for i in range(230)}
    assert run.data.tags["late"] == "1"
    assert not {"snpdeconv.pid", "snpdeconv.host"} & set(run.data.tags)
    assert points(run.info.run_id, "loss") == [
        (0, 2000, 0.0),
        (1, 2001, 1 / 3),
        (2, 2002, 2 / 3),
        (3, 9000, 1.0),
    ]
    client = connect(tracking_uri())
    (version,) = client.search_model_versions("name = 'height'")
    assert version.tags["trait"] == "height"
    assert [entry.path for entry in client.list_artifacts(run.info.run_id, "reports")] == [
        "reports/report.txt"
    ]


def test_metrics_go_in_calls_of_at_most_a_thousand(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    create(spool)
    for step in range(400):
        values = {f"m{i}": 1.0 for i in range(6)}
        spool.append("metrics", {"step": step, "values": values}, time_ms=step)
    spool.append("metrics", {"step": 400, "values": {f"wide{i}": 1.0 for i in range(1500)}}, time_ms=400)
    from mlflow import MlflowClient

    sizes: list[int] = []
    log_batch = MlflowClient.log_batch

    def counted(self: MlflowClient, run_id: str, **what: Any) -> Any:
        sizes.append(len(what.get("metrics", ())))
        return log_batch(self, run_id, **what)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    Shipper(spool, uri=tracking_uri()).ship()
    assert sum(sizes) == 400 * 6 + 1500
    assert max(sizes) <= 1000
    assert len(sizes) < 12
    (run,) = runs()
    assert len(points(run.info.run_id, "m5")) == 400
    assert run.data.metrics["wide1499"] == 1.0


def test_what_the_store_refuses_for_good_does_not_hold_up_the_rest(
    spool: Spool, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create(spool)
    spool.append("artifact", {"path": str(tmp_path / "gone.txt"), "folder": ""})
    spool.append("metrics", {"step": 0, "values": {"not@allowed": 1.0}})
    model = {"name": "height", "path": str(model_folder), "digest": write_checksums(model_folder)}
    spool.append("register", model | {"tags": {}, "champion_if_none": True})
    (model_folder / "config.json").write_text("changed")
    spool.append("nonsense", {})
    spool.append("metrics", {"step": 1, "values": {"loss": 1.0}}, time_ms=7)
    shipper = Shipper(spool, uri=tracking_uri())
    with caplog.at_level(logging.WARNING):
        shipper.ship()
    assert shipper.sent.offset == spool.size
    assert shipper.sent.rejected == 4
    gone, name, changed, damaged = shipper.problems
    assert f"{tmp_path}/gone.txt: is gone" in gone
    assert "not@allowed" in name
    assert "config.json: has changed" in changed
    assert damaged == "the line is damaged"
    assert len(caplog.records) == 4
    (run,) = runs()
    assert points(run.info.run_id, "loss") == [(1, 7, 1.0)]
    assert len((spool.folder / "rejected.jsonl").read_text().splitlines()) == 4


def delete_for_good(run_id: str) -> None:
    """As `mlflow gc` does."""
    from mlflow.tracking._tracking_service.utils import _get_store

    connect(tracking_uri()).delete_run(run_id)
    _get_store(tracking_uri())._hard_delete_run(run_id)


@pytest.mark.parametrize("for_good", [False, True])
@pytest.mark.parametrize("when", ["in training", "before the model"])
def test_a_run_deleted_in_the_page_comes_back_with_all_it_said(
    spool: Spool, model_folder: Path, when: str, for_good: bool, caplog: pytest.LogCaptureFixture
) -> None:
    create(spool)
    spool.append("metrics", {"step": 0, "values": {"loss": 2.0}}, time_ms=5)
    shipper = Shipper(spool, uri=tracking_uri())
    shipper.ship()
    (run,) = runs()
    if for_good:
        delete_for_good(run.info.run_id)
    else:
        connect(tracking_uri()).delete_run(run.info.run_id)
    if when == "in training":
        spool.append("metrics", {"step": 1, "values": {"loss": 1.0}}, time_ms=7)
    model = {"name": "height", "path": str(model_folder), "digest": write_checksums(model_folder)}
    spool.append("register", model | {"tags": {}, "champion_if_none": True})
    spool.append("status", {"status": "FINISHED"}, time_ms=9)
    shipper.ship()
    assert shipper.problems == []
    assert shipper.sent.rejected == 0
    assert "made anew" in caplog.text if for_good else "restored" in caplog.text
    (alive,) = runs()
    assert (alive.info.run_id == run.info.run_id) is not for_good
    assert alive.info.status == "FINISHED"
    steps = [(0, 5, 2.0)] + [(1, 7, 1.0)] * (when == "in training")
    assert points(alive.info.run_id, "loss") == steps
    assert shipper.registered["height"].run_id == alive.info.run_id
    (version,) = connect(tracking_uri()).search_model_versions("name = 'height'")
    assert version.run_id == alive.info.run_id


def test_a_run_in_the_bin_is_found_again_by_its_key(spool: Spool) -> None:
    create(spool)
    Shipper(spool, uri=tracking_uri()).ship()
    (run,) = runs()
    connect(tracking_uri()).delete_run(run.info.run_id)
    (spool.folder / "sent.json").unlink()
    Shipper(spool, uri=tracking_uri()).ship()
    assert [again.info.run_id for again in runs()] == [run.info.run_id]


def test_no_variable_of_mlflows_makes_points_get_lost(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MLFLOW_ENABLE_ASYNC_LOGGING": "true",
        "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS": "600",
        "MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE": "1",
        "MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH": "3",
        "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": "nothing",
        "MLFLOW_READ_REPLICA_BACKEND_STORE_URI": "sqlite:////nowhere/x.db",
        "MLFLOW_RUN_ID": "0" * 32,
        "MLFLOW_EXPERIMENT_NAME": "another",
        "MLFLOW_TRUNCATE_LONG_VALUES": "false",
    }.items():
        monkeypatch.setenv(name, value)
    create(spool)
    for step in range(2000):
        spool.append("metrics", {"step": step, "values": {"loss": 1.0}}, time_ms=step)
    shipper = Shipper(spool, uri=tracking_uri())
    shipper.ship()
    assert shipper.problems == []
    (run,) = runs()
    assert len(points(run.info.run_id, "loss")) == 2000


@pytest.mark.parametrize("value", ["11", "-1", "2.5", "many", "", "٣"])
def test_a_number_that_mlflow_cannot_work_with_is_refused(
    tracking_home: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", value)
    with pytest.raises(ConfigError, match=r"_MAX_RETRIES: .* from 0 to 10; correct or unset"):
        connect(tracking_uri())


def test_a_registry_apart_from_the_runs_is_refused(
    tracking_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://me:secret@elsewhere")
    with pytest.raises(ConfigError, match=r"^MLFLOW_REGISTRY_URI: .*, not at http://elsewhere; unset it$"):
        connect(tracking_uri())


def test_the_cause_of_a_failure_stands_at_the_end_of_its_line() -> None:
    cause = "Failed to establish a new connection: [Errno 111] Connection refused'))"
    told = reason(Exception(f"request to https://me:secret@host/{'x' * 2000} failed: {cause}\nand more"))
    assert told.startswith("request to https://host/xxx")
    assert told.endswith(cause)
    assert len(told) <= 410


def test_without_a_run_nothing_else_can_be_sent(spool: Spool) -> None:
    spool.append("create", PROCESS | {"experiment": "", "name": "x", "params": {}, "tags": {}})
    spool.append("metrics", {"step": 1, "values": {"loss": 1.0}})
    shipper = Shipper(spool, uri=tracking_uri())
    shipper.ship()
    assert shipper.sent.run_id is None
    assert "experiment" in shipper.problems[0].lower()
    assert shipper.problems[1] == "the run itself could not be made"


@pytest.mark.parametrize("uri", ["foo://x", "localhost:5000", "s3://bucket/x"])
def test_an_address_that_leads_nowhere_loses_nothing(spool: Spool, uri: str) -> None:
    create(spool)
    spool.append("metrics", {"step": 1, "values": {"loss": 1.0}})
    lost = Shipper(spool, uri=uri)
    with pytest.raises(Exception, match=r"(?i)unsupported|scheme"):
        lost.ship()
    assert lost.problems == []
    assert lost.sent.offset == 0
    Shipper(spool, uri=tracking_uri()).ship()
    assert len(runs()) == 1


def test_a_registry_that_cannot_be_addressed_is_no_verdict_on_the_model(
    spool: Spool, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(spool)
    model = {"name": "height", "path": str(model_folder), "digest": write_checksums(model_folder)}
    spool.append("register", model | {"tags": {}, "champion_if_none": True})
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "foo://x")
    shipper = Shipper(spool, uri=tracking_uri())
    with pytest.raises(Exception, match="foo://x"):
        shipper.ship()
    assert shipper.problems == []
    assert shipper.sent.offset < spool.size


def test_a_deleted_experiment_is_restored(spool: Spool) -> None:
    client = connect(tracking_uri())
    client.delete_experiment(client.create_experiment("height"))
    create(spool)
    Shipper(spool, uri=tracking_uri()).ship()
    assert len(runs()) == 1


def test_a_stopped_shipper_leaves_the_rest_for_later(spool: Spool) -> None:
    create(spool)
    shipper = Shipper(spool, uri=tracking_uri())
    shipper.ship(stopped=lambda: True)
    assert shipper.sent.offset == 0


def test_a_proxys_own_answers_are_not_the_stores_verdict() -> None:
    from mlflow.exceptions import MlflowException, RestException, get_error_code
    from requests import HTTPError, Response

    for status in (400, 403, 404, 500, 502):
        assert not is_refusal(MlflowException("page", error_code=get_error_code(status)))
    assert is_refusal(RestException({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no run"}))
    too_large = Response()
    too_large.status_code = 413
    assert is_refusal(HTTPError(response=too_large))
    assert not is_refusal(ConnectionRefusedError())
