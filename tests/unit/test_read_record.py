"""The one reader of our JSON files: what is not as it was written is told in one line, whatever it is."""

from __future__ import annotations

import os
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from snpdeconv.errors import DamagedFile, InputError
from snpdeconv.files import parse_record, read_record, read_whole, write_json


@dataclass(frozen=True)
class Inner:
    end: Literal["done", "failed"]
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outer:
    name: str
    number: float
    parts: tuple[str, ...] = ()
    inner: Inner | None = None


def read(path: Path) -> Outer:
    return read_record(path, Outer, hint="remove it")


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"name": "a", "number": 1, "parts": ["x"], "inner": {"end": "done"}, "later": 5})
    assert read(path) == Outer("a", 1.0, ("x",), Inner("done"))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is empty"),
        (b"\0" * 100, "is damaged"),
        (b'{"name": "a", "number": 1', "EOF while parsing"),
        (b"\xff\xfe{}", "is damaged"),
        (b"null", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"name": "a"}', "number: Field required"),
        (b'{"name": 5, "number": 1}', "name: Input should be a valid string"),
        (b'{"name": "a", "number": "1"}', "number: Input should be a valid number"),
        (b'{"name": "a", "number": true}', "number: Input should be a valid number"),
        (b'{"name": "a", "number": NaN}', "is damaged"),
        (b'{"name": "a", "number": 1e999}', "is damaged"),
        (b'{"name": "a", "number": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"name": "a", "number": 1, "parts": "xyz"}', "parts: Input should be a valid array"),
        (b'{"name": "a", "number": 1, "inner": {"end": "lost"}}', "inner.end: Input should be"),
        (b'{"name": "\\ud800", "number": 1}', "is damaged"),
        (b"[" * 100_000, "recursion limit"),
    ],
)  # fmt: skip
def test_damage_is_one_line_with_file_and_mend(tmp_path, data, problem):
    path = tmp_path / "record.json"
    path.write_bytes(data)
    with pytest.raises(DamagedFile) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert problem in text
    assert text.endswith("; remove it")
    assert len(text) < 400 + len(str(path))
    assert "\n" not in text


def test_a_line_of_many_is_read_alike():
    assert parse_record(b'{"end": "failed"}', Inner, where="line 3", hint="cut it off") == Inner("failed")
    with pytest.raises(DamagedFile, match=r"^line 3: is damaged .*; cut it off$"):
        parse_record(b'{"end": 5}', Inner, where="line 3", hint="cut it off")


def test_what_is_missing_is_the_callers_to_judge(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none.json", tmp_path / "file" / "record.json"):
        with pytest.raises(FileNotFoundError):
            read(path)


def test_pipes_devices_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, what in [
        (tmp_path / "pipe", "is a pipe or a device, not a file"),
        (tmp_path / "zero", "is a pipe or a device, not a file"),
        (tmp_path, "is a folder, not a file"),
        (tmp_path / "loop", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=what):
            read(path)


def test_no_more_than_the_limit_is_taken_in(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2**30)
    tracemalloc.start()
    try:
        with pytest.raises(DamagedFile, match="holds more than 1000 bytes"):
            read_whole(path, limit=1000, hint="remove it")
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    path.write_bytes(b"x" * 1000)
    assert read_whole(path, limit=1000, hint="") == b"x" * 1000
