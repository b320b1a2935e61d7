"""Whatever a tracking server sends, a command answers in one line, soon, within memory and folders."""

from __future__ import annotations

import gzip
import json
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_server import RUN, Hostile, drip, endless, hostile_server, status

from snpdeconv.errors import UserError
from snpdeconv.tracking import http_limits as limits
from snpdeconv.tracking.registry import (
    download,
    get_run_info,
    list_models,
    promote,
    resolve,
    resolve_run,
    rollback,
)
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.tracking.ship import sync

MODEL = {"config.json": b"{}", "model.safetensors": bytes(1000)}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hostile]:
    """The same limits as ever, in less time."""
    monkeypatch.setattr(limits, "CALL_S", 1.0)
    monkeypatch.setattr(limits, "COMMAND_S", 2.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    with hostile_server() as hostile:
        hostile.hold(MODEL)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", hostile.url)
        yield hostile


def told(call: Callable[[], object], *, within_s: float = 8.0) -> str:
    """The one line that a call ends with."""
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        call()
    assert time.monotonic() - started < within_s
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 1500
    assert "secret" not in text
    return text


def fetch(folder: Path) -> Path:
    return download(resolve("m"), cache_dir=folder / "cache")


def test_a_right_server_is_understood(server: Hostile, tmp_path: Path) -> None:
    folder = fetch(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert [model.name for model in list_models()] == ["m"]
    assert resolve_run(RUN) == resolve("m/1")
    assert get_run_info(RUN).status == "FINISHED"


GARBAGE: list[Any] = [
    b"", b"null", b"[]", b"5", b"{", b'"text"', b"\xff\xfe\x00", b"<html>login</html>", b"[" * 50_000,
    b"9" * 5000,
    {"registered_model": 5}, {"registered_model": {"name": [], "aliases": "x"}},
    {"registered_model": {"name": "m", "aliases": [{"alias": "champion", "version": "x" * 5000}]}},
    {"registered_model": {"name": "m", "aliases": [{"alias": "champion", "version": "-1"}]}},
    {"registered_model": {"name": "m", "aliases": [{"alias": "champion", "version": "١"}]}},
    {"error_code": 5, "message": []}, {"error_code": "X" * 3000, "message": "y\n" * 3000},
]  # fmt: skip


@pytest.mark.parametrize("code", [200, 400, 404, 500])
def test_garbage_is_told(server: Hostile, code: int) -> None:
    for answer in GARBAGE:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        server.answers["*"] = lambda handler, body=body: handler.send(body, status=code)
        for call in (lambda: resolve("m"), lambda: resolve_run(RUN), lambda: rollback("m", to=1)):
            told(call)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "one"}, {"version": "9" * 40}, {"version": "2"}, {"name": "../../m"}, {"name": "other"},
        {"run_id": "../.."}, {"tags": [{"key": "snpdeconv.sha256", "value": "../../../etc"}]},
        {"tags": [{"key": "snpdeconv.sha256", "value": "A" * 64}]}, {"tags": 5},
        {"creation_timestamp": "late"},
    ],
    ids=str,
)  # fmt: skip
def test_a_version_that_cannot_be_is_told(server: Hostile, tmp_path: Path, change: dict[str, Any]) -> None:
    server.answers["model-versions/get"] = {"model_version": server.version(**change)}
    assert "nonsense" in told(lambda: resolve("m/1")) or "does not answer" in told(lambda: resolve("m/1"))
    assert sorted(path.name for path in tmp_path.iterdir()) in (["home"], [])


@pytest.mark.parametrize(
    "source",
    [
        "mlflow-artifacts://127.0.0.2:9/model", "http://127.0.0.2:9/model", "file:///etc", "/etc", "file://x/etc",
        "runs:/x/model", "models:/m/1", "ssh://x/y", "data:x", "mlflow-artifacts:/../../etc", "[", "",
        "mlflow-artifacts://me:pw@127.0.0.2:9/model", "http://[::1/x",
    ],
)  # fmt: skip
def test_files_are_fetched_from_nowhere_else(server: Hostile, tmp_path: Path, source: str) -> None:
    server.answers["model-versions/get"] = {"model_version": server.version(source=source)}
    server.files.pop("SHA256SUMS") if source.startswith("mlflow-artifacts:/..") else None
    if not source.startswith("mlflow-artifacts:/.."):
        told(lambda: fetch(tmp_path))
    assert not list((tmp_path / "cache").rglob("passwd"))
    assert not list((tmp_path / "cache").rglob("config.json"))


@pytest.mark.parametrize(
    "sums",
    [
        b"", b"text\n", b"%s  ../../escaped\n" % (b"0" * 64), b"%s  /tmp/escaped\n" % (b"0" * 64),
        b"%s  a\\..\\b\n" % (b"0" * 64), b"%s  a//b\n" % (b"0" * 64), b"%s  config.json\n" % (b"0" * 64),
        b"".join(b"%s  f%d\n" % (b"0" * 64, i) for i in range(101)), b"\xff" * 100,
        b"%s  gone\n" % (b"0" * 64),
        b"x" * (2 * 2**20),
    ],
    ids=lambda sums: str(sums[:90]),
)  # fmt: skip
def test_a_list_of_files_that_is_none_is_told(server: Hostile, tmp_path: Path, sums: bytes) -> None:
    server.files["SHA256SUMS"] = sums
    told(lambda: fetch(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "cache" in path.parts]
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"{}" + b" " * 10_000, every_s=0.05, head=True),
        drip(b"{}" + b" " * 10_000, every_s=0.05, head=False),
        lambda handler: time.sleep(20),
        lambda handler: [handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n") for _ in iter(int, 1)],
        status(429, Retry_After="100000"),
        status(503, Retry_After="100000"),
        status(503, Retry_After="Fri, 31 Dec 2099 23:59:59 GMT"),
        lambda handler: handler.send(b"", status=302, Location=handler.path),
        lambda handler: handler.connection.close(),
    ],
    ids=["headers", "body", "silence", "continue", "429", "503", "503 date", "redirects", "hangs up"],
)  # fmt: skip
def test_a_slow_server_is_left(server: Hostile, tmp_path: Path, answer: Any) -> None:
    server.answers["*"] = answer
    told(lambda: resolve("m"))
    server.answers = {"config.json": answer}
    told(lambda: fetch(tmp_path), within_s=12)


def test_a_server_that_asks_for_patience_is_tried_again_for_a_while(
    server: Hostile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    server.answers["*"] = status(429, Retry_After="100000")
    told(lambda: resolve("m"))
    assert 2 <= len(server.asked) <= 3


def test_lists_without_an_end_are_left(server: Hostile, monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"model_versions": [server.version()], "next_page_token": "again"}
    server.answers["model-versions/search"] = page
    assert "list without an end" in told(list_models)
    numbers = iter(range(10**9))

    def next_page(handler: Any) -> None:
        handler.send(json.dumps(page | {"next_page_token": str(next(numbers))}).encode())

    server.answers["model-versions/search"] = next_page
    told(list_models)


@pytest.mark.parametrize("chunk", [b" " * 2**16, b"[]," * 2**14, b"\x00" * 2**16])
def test_answers_without_an_end_take_no_memory(server: Hostile, tmp_path: Path, chunk: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    server.answers["*"] = endless(chunk)
    told(lambda: resolve("m"))
    server.answers = {"SHA256SUMS": endless(chunk)}
    assert "more than" in told(lambda: fetch(tmp_path))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500 * 2**10


def test_nothing_compressed_is_unpacked(server: Hostile) -> None:
    bomb = gzip.compress(b" " * 200 * 2**20)
    server.answers["*"] = lambda handler: handler.send(bomb, Content_Encoding="gzip")
    assert "compresses" in told(lambda: resolve("m"))


def test_a_run_elsewhere_gets_neither_files_nor_login(server: Hostile, tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("fine")
    with hostile_server() as other:
        wrong = server.answer("runs/get")
        wrong["run"]["info"]["artifact_uri"] = other.url.replace("http", "mlflow-artifacts") + "/x"
        server.answers["runs/get"] = server.answers["runs/create"] = wrong
        run = TrackedRun.open(experiment="e", name="r", system_every_s=None)
        run.log_artifact(tmp_path / "report.txt")
        run.finish()
        run.close(timeout_s=20)
        assert other.asked == []
    assert any("another host" in problem for problem in run.problems)
    assert "Basic bWU6c2VjcmV0" in server.logins


def test_a_run_whose_files_would_go_anywhere_on_this_machine_is_refused(
    server: Hostile, tmp_path: Path
) -> None:
    (tmp_path / "report.txt").write_text("fine")
    wrong = server.answer("runs/get")
    wrong["run"]["info"]["artifact_uri"] = f"file://{tmp_path}/target"
    server.answers["runs/get"] = server.answers["runs/create"] = wrong
    run = TrackedRun.open(experiment="e", name="r", system_every_s=None)
    run.log_artifact(tmp_path / "report.txt")
    run.finish()
    run.close(timeout_s=20)
    assert not (tmp_path / "target").exists()
    assert any("no run's folder" in problem for problem in run.problems)


@pytest.mark.parametrize(
    "answer", [status(429, Retry_After="9999"), b"[]", drip(b"{}" * 9999, every_s=0.1, head=True)]
)
def test_sync_ends_and_keeps_what_it_cannot_send(server: Hostile, answer: Any) -> None:
    server.answers["*"] = answer
    run = TrackedRun.open(experiment="e", name="r", system_every_s=None)
    run.log_metrics(0, {"loss": 1.0})
    run.finish()
    assert not run.close(timeout_s=3)
    started = time.monotonic()
    report = sync()
    assert time.monotonic() - started < 15
    assert [spool.outcome for spool in report.spools] == ["failed"]
    server.answers.clear()
    server.answers["runs/search"] = {}
    assert [spool.outcome for spool in sync().spools] == ["sent"]


def test_a_promotion_that_the_server_refuses_is_told(server: Hostile) -> None:
    refusal = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such version"}
    server.answers["registered-models/alias"] = lambda handler: handler.send(
        json.dumps(refusal).encode(), status=404
    )
    assert "no such version" in told(lambda: promote("m", version=1, instead_of=1))
