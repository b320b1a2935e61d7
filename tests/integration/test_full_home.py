"""A home whose disk fills while a run trains: nothing is called done before it is."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Ran, train_words

from snpdeconv.tracking.registry import list_models, resolve
from snpdeconv.tracking.ship import sync
from snpdeconv.tracking.spool import Spool


def test_a_model_that_could_not_be_told_of_is_registered_by_the_same_command(
    run: Callable[..., Ran], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = Spool.append

    def full(self: Spool, kind: str, data: dict[str, Any], **more: Any) -> None:
        if kind not in ("create", "open"):
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, kind, data, **more)

    words = train_words(cohort, tmp_path / "run", "--name", "height")
    monkeypatch.setattr(Spool, "append", full)
    ended = run(*words)
    assert ended.code == 2
    line = ended.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "cannot be written; free some disk space and give the same command again" in line
    assert (tmp_path / "run" / "model").is_dir()
    monkeypatch.setattr(Spool, "append", append)
    (report,) = sync().spools
    assert report.outcome == "incomplete"
    assert "were lost, as its disk was full" in report.note
    assert list_models() == []
    assert run(*words).code == 0
    assert resolve("height@champion").version == 1
    assert "nothing to do" in run(*words).err


def test_a_complete_run_whose_model_is_not_registered_registers_it(
    run: Callable[..., Ran], cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = train_words(cohort, tmp_path / "run", "--name", "height")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    ended = run(*words)
    assert (ended.code, "not registered yet" in ended.out) == (0, True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    again = run(*words)
    assert (again.code, "height version 1" in again.out) == (0, True), again
