"""The spool: all that a run says, as JSON lines on disk, and how far the store has it; and locks for it.

One process writes a spool at a time. Knows nothing of MLflow: what an event means is the sender's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from snpdeconv.errors import DamagedFile, InputError, ResourceError
from snpdeconv.files import private_folder, read_record, read_whole

_held: set[Path] = set()
_held_guard = threading.Lock()
_Count = Annotated[int, Field(ge=0, lt=2**63)]  # what a database holds
_Texts = dict[str, str]
_TIME = TypeAdapter[int](_Count)
KEEP_DONE_DAYS = 30
_LONGEST_LINE = 16 * 2**20
_EVENTS = "events.jsonl"
_LOST = "lost"


class FileLock:
    """An exclusive lock that the system drops when its process ends, however it ends.

    A POSIX record lock: forked data-loader workers do not inherit it (they would keep an flock after
    their parent was killed), and network file systems carry it between hosts. Such a lock does not
    tell threads apart, hence the table of what this process holds.
    """

    def __init__(self, path: Path, *, mode: int = 0o600) -> None:
        self.path = path.parent.resolve() / path.name  # one name, however the folder is spelled
        self._mode = mode
        self._descriptor: int | None = None

    def acquire(self, *, wait_s: float = 0.0) -> bool:
        """Tries for `wait_s` seconds; returns whether the lock is ours now."""
        deadline = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    def _try(self) -> bool:
        with _held_guard:
            # Opening and closing the file while this process holds the lock would drop it.
            if self.path in _held:
                return False
            private_folder(self.path.parent)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, self._mode)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                raise
            _held.add(self.path)
            self._descriptor = descriptor
            return True

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives the lock back."""
        assert self._descriptor is not None
        with _held_guard:
            os.close(self._descriptor)
            _held.discard(self.path)
            self._descriptor = None


@contextmanager
def locked(path: Path, *, wait_s: float = 120.0) -> Iterator[None]:
    """Holds the lock on `path` for the block; a ResourceError if another process held it all the while."""
    lock = FileLock(path)
    if not lock.acquire(wait_s=wait_s):
        raise ResourceError(
            f"still locked by another process after {wait_s:g} s", where=path, hint="see which job hangs"
        )
    with lock:
        yield


# The form of each kind of event: what a damaged or altered line cannot pass for.
class _Opened(TypedDict):
    uri: str
    host: str
    pid: _Count


class _Created(_Opened):
    experiment: str
    name: str
    params: _Texts
    tags: _Texts


class _Metrics(TypedDict):
    step: _Count
    values: dict[str, FiniteFloat]


class _Tags(TypedDict):
    tags: _Texts


class _Place(TypedDict):
    path: str
    from_home: NotRequired[str]


class _Artifact(_Place):
    folder: str


class _Register(_Place):
    name: str
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tags: _Texts
    champion_if_none: bool


class _Status(TypedDict):
    status: Literal["FINISHED", "FAILED", "KILLED"]


_FORMS: dict[str, TypeAdapter[Any]] = {
    "create": TypeAdapter(_Created),
    "open": TypeAdapter(_Opened),
    "metrics": TypeAdapter(_Metrics),
    "tags": TypeAdapter(_Tags),
    "artifact": TypeAdapter(_Artifact),
    "register": TypeAdapter(_Register),
    "status": TypeAdapter(_Status),
}


@dataclass(frozen=True)
class Event:
    """One line of a spool.

    Attributes:
        kind: create, open, metrics, tags, artifact, register or status; unreadable for a damaged line.
        time_ms: When it was said, milliseconds since 1970.
        data: The rest of the line.
        end: Offset in bytes of the line's end in the file.
    """

    kind: str
    time_ms: int
    data: dict[str, Any]
    end: int


@dataclass(frozen=True)
class Sent:
    """How far the store at `uri` has a spool.

    Attributes:
        run_id: MLflow's name of the run; None until the store gave one.
        offset: All events that end here or before have been sent.
        rejected: How many of them the store refused for good.
    """

    uri: str
    run_id: str | None = None
    offset: int = 0
    rejected: int = 0


@dataclass
class History:
    """What the events of a spool add up to.

    Attributes:
        created: Data of the first event, which makes the run; empty if there is none.
        created_ms: When it was written.
        opened: uri, host and pid of the process that wrote last.
        last_ms: When the last event was written.
        status: The run's last status; None while it runs or after it died without a word.
        last_step: The largest step written of each metric.
    """

    created: dict[str, Any] = field(default_factory=dict)
    created_ms: int = 0
    opened: dict[str, Any] = field(default_factory=dict)
    last_ms: int = 0
    status: str | None = None
    last_step: dict[str, int] = field(default_factory=dict)


class Spool:
    """The folder of one run's events, held by this process until `release` or `archive`."""

    def __init__(self, root: Path, key: str) -> None:
        self.root = root
        self.key = key
        self.folder = root / key
        self.events_path = self.folder / _EVENTS
        self.size = 0
        self._lock = FileLock(root / "locks" / key)
        self._write_guard = threading.Lock()
        self._descriptor = -1

    def acquire(self, *, wait_s: float = 0.0) -> bool:
        """Takes the spool for this process, and cuts off a line torn by a kill.

        False if another process holds it for all of `wait_s` seconds.
        """
        if not self._lock.acquire(wait_s=wait_s):
            return False
        done = self.root / "done" / self.key
        if done.is_dir() and not self.folder.exists():
            done.rename(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK
        try:
            self._descriptor = os.open(self.events_path, flags, 0o600)
            _require_regular(self._descriptor, self.events_path)
        except BaseException:
            self._lock.release()
            raise
        self.size = _whole_lines(self.events_path)
        os.ftruncate(self._descriptor, self.size)
        return True

    def append(self, kind: str, data: dict[str, Any], *, time_ms: int | None = None) -> None:
        """Writes one event through to the operating system; after an OSError the spool is as before."""
        stamp = time.time_ns() // 1_000_000 if time_ms is None else time_ms
        line = json.dumps({"kind": kind, "time_ms": stamp, **data}, allow_nan=False).encode() + b"\n"
        with self._write_guard:
            try:
                written = os.write(self._descriptor, line)
                if written < len(line):
                    raise OSError(errno.ENOSPC, "no space left on the device")
            except OSError:
                os.ftruncate(self._descriptor, self.size)
                raise
            self.size += len(line)

    def note_lost(self, number: int) -> None:
        """Writes how many events a full disk has kept out, over the number before: that takes no room."""
        descriptor = os.open(self.folder / _LOST, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, b"%020d" % number, 0)
        finally:
            os.close(descriptor)

    def lost(self) -> int:
        """How many events a full disk has kept out for good."""
        try:
            return int(read_whole(self.folder / _LOST, limit=100, hint="")[:20])
        except (FileNotFoundError, InputError, ValueError):
            return 0

    def read(self, offset: int = 0) -> Iterator[Event]:
        """Yields the whole lines from `offset` on; a line still being written is left for later."""
        return read_events(self.events_path, offset)

    def history(self) -> History:
        """Reads all events once and adds them up."""
        return _add_up(self.read())

    def sent(self, uri: str) -> Sent:
        """How far the store at `uri` has this spool; from the start if it was another store."""
        try:
            state = read_record(self.folder / "sent.json", Sent, hint="it is written anew")
        except (FileNotFoundError, InputError):
            # Never written, or emptied by a power cut: sending all again changes nothing in the store.
            return Sent(uri)
        return state if state.uri == uri and self._is_end_of_line(state.offset) else Sent(uri)

    def _is_end_of_line(self, offset: int) -> bool:
        if offset <= 0:
            return offset == 0
        with self.events_path.open("rb") as stream:
            stream.seek(offset - 1)
            return stream.read(1) == b"\n"

    def commit(self, sent: Sent) -> None:
        """Notes how far the store has the spool, all or nothing."""
        _write_whole(self.folder / "sent.json", json.dumps(asdict(sent)))

    def reject(self, event: Event, *, reason: str) -> None:
        """Keeps an event that the store refused for good beside the spool."""
        with (self.folder / "rejected.jsonl").open("a") as stream:
            line = {"reason": reason, "kind": event.kind, "time_ms": event.time_ms, **event.data}
            stream.write(json.dumps(line) + "\n")

    def release(self) -> None:
        """Lets other processes have the spool."""
        os.close(self._descriptor)
        self._lock.release()

    def archive(self) -> None:
        """Releases a spool that is sent whole, out of the way of `sync`; old ones are deleted.

        It is kept for a while: a run opened again needs to know the steps it has.
        """
        done = self.root / "done"
        done.mkdir(exist_ok=True)
        self.folder.rename(done / self.key)
        oldest = time.time() - KEEP_DONE_DAYS * 86_400
        for folder in list(done.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another process was quicker
                if (folder / _EVENTS).stat().st_mtime < oldest:
                    shutil.rmtree(folder)
                    (self.root / "locks" / folder.name).unlink()
        self.release()


def read_events(path: Path, offset: int = 0) -> Iterator[Event]:
    """Yields the events of a spool's file from a line's start on, without holding the spool."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
        _require_regular(stream.fileno(), path)
        stream.seek(offset)
        while line := stream.readline(_LONGEST_LINE):
            if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                return
            offset += len(line)
            yield _parse(line, offset)


def peek(path: Path) -> History:
    """What a spool's file adds up to, without holding the spool."""
    return _add_up(read_events(path))


def _require_regular(descriptor: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise DamagedFile("is no regular file", where=path, hint="remove the folder that it is in")


def _parse(line: bytes, end: int) -> Event:
    """An event whose data have the form of its kind; what is damaged may be anything."""
    try:
        data = json.loads(line)
        kind, time_ms = str(data.pop("kind")), int(data.pop("time_ms"))
        _TIME.validate_python(time_ms, strict=True)
        _FORMS[kind].validate_python(data, strict=True)
        return Event(kind, time_ms, data, end)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return Event("unreadable", 0, {"line": line[:1000].decode(errors="replace")}, end)


def _add_up(events: Iterator[Event]) -> History:
    history = History()
    for event in events:
        history.last_ms = event.time_ms or history.last_ms
        if event.kind == "create" and not history.created:
            history.created, history.created_ms = event.data, event.time_ms
        if event.kind in ("create", "open"):
            history.opened = event.data
            history.status = None
        elif event.kind == "status":
            history.status = str(event.data["status"])
        elif event.kind == "metrics":
            for name in event.data["values"]:
                history.last_step[name] = max(event.data["step"], history.last_step.get(name, -1))
    return history


def _whole_lines(path: Path) -> int:
    """The size in bytes of the file up to the end of its last whole line."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        while size > 0:
            start = max(0, size - 65_536)
            stream.seek(start)
            newline = stream.read(size - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            size = start
    return 0


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.rename(path)
