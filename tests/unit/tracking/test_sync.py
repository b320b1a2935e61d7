from __future__ import annotations

from pathlib import Path

import pytest

from snpdeconv.tracking.home import tracking_uri
from snpdeconv.tracking.registry import get_run_info
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.tracking.ship import SyncReport, sync
from snpdeconv.tracking.spool import Spool


def leave(root: Path, key: str, *, uri: str = "", host: str = "gone", when_ms: int = 1000) -> Spool:
    """A spool as a process that was killed leaves it."""
    spool = Spool(root / "spool", key * 32)
    assert spool.acquire()
    facts = {"experiment": "e", "name": f"run {key}", "params": {}, "tags": {}}
    spool.append("create", {"uri": uri, "host": host, "pid": 1} | facts, time_ms=when_ms)
    spool.append("metrics", {"step": 0, "values": {"loss": 1.0}}, time_ms=when_ms + 500)
    spool.release()
    return spool


def outcomes(report: SyncReport) -> dict[str, str]:
    return {spool.key[0]: spool.outcome for spool in report.spools}


def test_nothing_to_send(tracking_home: Path) -> None:
    assert sync() == SyncReport(())
    assert sync().complete


def test_a_run_that_ended_before_its_first_word_is_no_damage(tracking_home: Path) -> None:
    for key, torn in (("a", b""), ("b", b'{"kind": "crea')):
        spool = Spool(tracking_home / "spool", key * 32)
        assert spool.acquire()
        spool.release()
        spool.events_path.write_bytes(torn)
    report = sync()
    assert outcomes(report) == {"a": "skipped", "b": "skipped"}
    assert report.complete


def test_a_run_interrupted_elsewhere_long_ago_is_sent_and_may_come_back(tracking_home: Path) -> None:
    leave(tracking_home, "a")
    (report,) = sync().spools
    assert (report.outcome, report.note) == ("sent", "its process ended without a word: marked KILLED")
    run = TrackedRun.open("a" * 32, experiment="e", name="run a", system_every_s=None)
    assert run.flush(timeout_s=60)
    info = get_run_info(str(run.run_id))
    assert (info.status, info.metrics["loss"]) == ("RUNNING", 1.0)
    assert outcomes(sync()) == {"a": "skipped"}
    run.finish()
    assert run.close(timeout_s=60)
    assert get_run_info(str(run.run_id)).status == "FINISHED"


def test_a_run_on_another_host_that_wrote_a_moment_ago_is_left_alone(tracking_home: Path) -> None:
    import time

    leave(tracking_home, "a", when_ms=int(time.time() * 1000) - 5000)
    report = sync()
    assert outcomes(report) == {"a": "skipped"}
    assert "on gone wrote" in report.spools[0].note
    assert report.complete


def test_runs_of_a_dead_store_do_not_keep_the_others_waiting(
    tracking_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for key in "abc":
        leave(tracking_home, key, uri="http://u:secret@127.0.0.1:9")
    leave(tracking_home, "d", when_ms=5000)
    report = sync()
    assert outcomes(report) == {"a": "failed", "b": "failed", "c": "failed", "d": "sent"}
    assert not report.complete
    notes = [spool.note for spool in report.spools]
    assert notes[0].startswith("http://127.0.0.1:9 does not take it (")
    assert "given up" in notes[2]
    assert "secret" not in "".join(notes)
    again = sync()
    assert outcomes(again) == {"a": "failed", "b": "failed", "c": "failed"}
    # The mark is written once, however often sync has to try.
    kinds = [event.kind for event in Spool(tracking_home / "spool", "a" * 32).read()]
    assert kinds == ["create", "metrics", "status"]


def test_artifacts_that_are_gone_are_told_and_nothing_else_is_lost(
    tracking_home: Path, tmp_path: Path
) -> None:
    spool = leave(tracking_home, "a")
    assert spool.acquire()
    spool.append("artifact", {"path": str(tmp_path / "gone.png"), "folder": ""})
    spool.append("metrics", {"step": 1, "values": {"loss": 2.0}})
    spool.append("status", {"status": "FINISHED"})
    spool.release()
    (report,) = sync().spools
    assert (report.outcome, report.note) == ("incomplete", "1 of what it said could not be sent, for good")
    assert report.problems == (f"{tmp_path}/gone.png: is gone and was not sent",)
    run_id = Spool(tracking_home / "spool" / "done", "a" * 32).sent(tracking_uri()).run_id
    info = get_run_info(str(run_id))
    assert (info.status, info.metrics["loss"]) == ("FINISHED", 2.0)


def test_a_spool_without_a_run_is_told(tracking_home: Path) -> None:
    spool = Spool(tracking_home / "spool", "a" * 32)
    assert spool.acquire()
    spool.append("metrics", {"step": 1, "values": {"loss": 2.0}})
    spool.release()
    report = sync()
    assert outcomes(report) == {"a": "failed"}
    assert "the run is unknown" in report.spools[0].note
