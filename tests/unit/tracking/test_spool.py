from __future__ import annotations

import json
import os
import resource
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snpdeconv.errors import DamagedFile
from snpdeconv.tracking.spool import KEEP_DONE_DAYS, Sent, Spool, peek

KEY = "0123456789abcdef0123456789abcdef"


def held(root: Path, key: str = KEY) -> Spool:
    spool = Spool(root, key)
    assert spool.acquire()
    return spool


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_events_come_back_with_offsets_to_go_on_from(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("tags", {"tags": {"a": "ä\n"}}, time_ms=5)
    spool.append("metrics", {"step": 3, "values": {"loss": 0.1}}, time_ms=6)
    first, second = spool.read()
    assert (first.kind, first.time_ms, first.data) == ("tags", 5, {"tags": {"a": "ä\n"}})
    assert list(spool.read(first.end)) == [second]
    assert second.end == spool.size == spool.events_path.stat().st_size
    spool.release()


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6),
    cut=st.floats(0, 1),
)
def test_a_spool_cut_anywhere_keeps_its_whole_lines_and_takes_new_ones(
    values: list[float], cut: float
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = held(Path(folder))
        ends = []
        for step, value in enumerate(values):
            spool.append("metrics", {"step": step, "values": {"m": value}}, time_ms=step)
            ends.append(spool.size)
        spool.release()
        size = int(cut * ends[-1])
        os.truncate(spool.events_path, size)
        num_whole = sum(end <= size for end in ends)
        assert [event.data["values"]["m"] for event in Spool(Path(folder), KEY).read()] == values[:num_whole]

        again = held(Path(folder))
        again.append("metrics", {"step": 99, "values": {"m": 0.5}}, time_ms=99)
        assert [event.data["values"]["m"] for event in again.read()] == [*values[:num_whole], 0.5]
        again.release()


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("tags", {"tags": {}})
    spool.release()
    with spool.events_path.open("ab") as stream:
        stream.write(b"x" * 200_000)
    again = held(tmp_path)
    assert [event.kind for event in again.read()] == ["tags"]
    again.release()


def test_a_damaged_line_does_not_hide_the_next(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("tags", {"tags": {}})
    spool.release()
    with spool.events_path.open("ab") as stream:
        stream.write(b"\0\0\0\0\n[1]\n")
    again = held(tmp_path)
    again.append("status", {"status": "FAILED"})
    assert [event.kind for event in again.read()] == ["tags", "unreadable", "unreadable", "status"]
    again.release()


CREATED = {
    "uri": "", "host": "here", "pid": 1, "experiment": "e", "name": "run", "params": {}, "tags": {}
}  # fmt: skip


def test_history_adds_up(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("create", {**CREATED, "host": "a"}, time_ms=1000)
    spool.append("metrics", {"step": 7, "values": {"loss": 1.0, "acc": 0.5}}, time_ms=2000)
    spool.append("metrics", {"step": 5, "values": {"loss": 2.0}}, time_ms=3000)
    spool.append("status", {"status": "KILLED"}, time_ms=4000)
    history = peek(spool.events_path)
    assert (history.created["name"], history.created_ms, history.last_ms) == ("run", 1000, 4000)
    assert (history.status, history.last_step) == ("KILLED", {"loss": 7, "acc": 7})
    spool.append("open", {"host": "b", "pid": 2, "uri": ""})
    assert spool.history().status is None
    assert spool.history().opened["host"] == "b"
    spool.release()


def test_what_was_sent_is_remembered_for_one_store_only(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("tags", {"tags": {"a": "1"}})
    sent = Sent("http://a", run_id="r", offset=spool.size, rejected=1)
    spool.commit(sent)
    assert spool.sent("http://a") == sent
    assert spool.sent("http://b") == Sent("http://b")
    for offset in (spool.size + 1, spool.size - 1, -1):  # no line ends there
        spool.commit(replace(sent, offset=offset))
        assert spool.sent("http://a") == Sent("http://a")
    (spool.folder / "sent.json").write_text("")  # as a power cut leaves it
    assert spool.sent("http://a") == Sent("http://a")
    spool.release()


def test_a_full_disk_leaves_the_spool_whole(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("tags", {"tags": {"a": "1"}})
    with files_limited_to(spool.size + 20), pytest.raises(OSError):
        spool.append("tags", {"tags": {"b": "2"}})
    spool.append("tags", {"tags": {"c": "3"}})
    assert [event.data["tags"] for event in spool.read()] == [{"a": "1"}, {"c": "3"}]
    spool.release()


def test_a_done_spool_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("tags", {"tags": {}})
    spool.archive()
    assert not spool.folder.exists()
    again = held(tmp_path)
    assert len(list(again.read())) == 1
    again.archive()

    long_ago = time.time() - (KEEP_DONE_DAYS + 1) * 86_400
    os.utime(tmp_path / "done" / KEY / "events.jsonl", (long_ago, long_ago))
    other = held(tmp_path, "f" * 32)
    other.archive()
    assert [path.name for path in (tmp_path / "done").iterdir()] == ["f" * 32]
    assert [path.name for path in (tmp_path / "locks").iterdir()] == ["f" * 32]


def test_refused_events_are_kept_beside_the_spool(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("tags", {"tags": {"a": "1"}}, time_ms=9)
    (event,) = spool.read()
    spool.reject(event, reason="why")
    line = json.loads((spool.folder / "rejected.jsonl").read_text())
    assert line == {"reason": "why", "kind": "tags", "time_ms": 9, "tags": {"a": "1"}}
    spool.release()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("create", {"name": "run"}),
        ("open", {"uri": "", "host": 5, "pid": 1}),
        ("metrics", {"step": 10**30, "values": {"loss": 1.0}}),
        ("metrics", {"step": 1, "values": {"loss": "high"}}),
        ("metrics", {"step": 1, "values": [1]}),
        ("tags", {"tags": "a"}),
        ("artifact", {"path": None, "folder": ""}),
        ("register", {"name": "x", "path": "/x", "digest": "../..", "tags": {}, "champion_if_none": True}),
        ("status", {"status": "SOLD"}),
        ("nonsense", {}),
    ],
)
def test_an_altered_line_passes_for_no_event(tmp_path: Path, kind: str, data: dict[str, object]) -> None:
    spool = held(tmp_path)
    spool.append("create", CREATED)
    spool.append(kind, data)
    spool.append("status", {"status": "FINISHED"})
    assert [event.kind for event in spool.read()] == ["create", "unreadable", "status"]
    assert spool.history().status == "FINISHED"
    spool.release()


def test_a_line_without_an_end_and_a_pipe_are_no_trap(tmp_path: Path) -> None:
    spool = held(tmp_path)
    spool.append("create", CREATED)
    spool.release()
    with spool.events_path.open("ab") as file:
        file.truncate(spool.size + 100 * 2**20)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + spool.events_path.read_bytes()[: spool.size])
    tracemalloc.start()
    events = [event.kind for event in spool.read()]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (events[0], events[-1], set(events[1:-1])) == ("create", "create", {"unreadable"})
    assert peak < 100 * 2**20
    spool.events_path.unlink()
    os.mkfifo(spool.events_path)
    with pytest.raises(DamagedFile, match="no regular file"):
        list(spool.read())
    with pytest.raises(DamagedFile, match="no regular file"):
        spool.acquire()
    spool.events_path.unlink()
    assert spool.acquire()  # the lock was given back
    spool.release()
