"""One folder for each submission, under ``jobs`` in the home: what was asked, and what became of it.

Holds ``job.json``, ``settings.yaml``, ``inputs.json``, ``outcome.json``, ``starts.jsonl`` and ``log/``. The
submitting command and the job write it; knows no scheduler.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shlex
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from snpdeconv.errors import ConfigError, DamagedFile, InputError, has_control, nearest
from snpdeconv.files import (
    RECORD_LIMIT,
    parse_record,
    private_folder,
    read_record,
    read_whole,
    write_json,
)
from snpdeconv.tracking.home import home

logger = logging.getLogger(__name__)

Kind = Literal["train", "predict", "rank", "register", "retrain", "search"]
End = Literal["done", "failed", "cancelled"]
_LATEST = 1e11  # seconds since 1970: what is later is no date of the calendar's


@dataclass(frozen=True)
class Outcome:
    """How a job, or an element of an array, ended."""

    end: End
    reason: str = ""  # of a failure, in one line
    result: dict[str, Any] = field(default_factory=dict)  # what the work came to
    time: float = 0.0  # seconds since 1970


@dataclass(frozen=True)
class Record:
    """One submission.

    Attributes:
        id: Its name, and that of its folder.
        model: The model's name, or NAME/version.
        out: The run's folder, or that of the predictions.
        site: The cluster's name.
        command: What the user typed.
        submitted: Seconds since 1970.
        host: Where it was submitted.
        num_tasks: Processes of the job, or of each element.
        epochs: That its training may take; 0 without one, and in records of earlier versions.
        elements: Of an array, what each works on; empty for a single job.
        scheduler_id: SLURM's number, or the process of this machine.
        process_created: When that process was started, which tells it from a later one of that number.
        after: IDs of the submissions that it waits for.
        pid_namespace: Where numbers of processes mean the same: containers of one host have several.
        cluster: SLURM's own name of the cluster.
        job_name: By which SLURM knows it, if its number was never heard; "" in records of earlier versions.
    """

    id: str
    kind: Kind
    preset: str
    model: str
    out: str
    site: str
    scheduler: Literal["slurm", "local"]
    command: str
    submitted: float
    host: str
    partition: str = ""
    num_tasks: int = 1
    elements: tuple[str, ...] = ()
    scheduler_id: str = ""
    process_created: float = 0.0
    after: tuple[str, ...] = ()
    pid_namespace: str = ""
    cluster: str = ""
    job_name: str = ""
    epochs: int = 0

    @property
    def folder(self) -> Path:
        """Where the record is."""
        return jobs_dir() / self.id

    @property
    def log_folder(self) -> Path:
        """Where the job's output goes."""
        return self.folder / "log"

    def log_path(self, *, element: int | None = None, rank: int = 0, kind: str = "") -> Path:
        """The output of one process, or what the batch script leaves of a kind: exit or norequeue."""
        job = self.scheduler_id
        if self.elements and self.scheduler == "slurm":
            job += f"_{element or 0}"
        return self.log_folder / (f"{job}.{kind}" if kind else f"{job}_{rank}_log.out")

    @property
    def places(self) -> tuple[int | None, ...]:
        """The elements of an array; None alone for a single job."""
        return tuple(range(len(self.elements))) or (None,)

    def outcome(self, element: int | None = None) -> Outcome | None:
        """How it ended, as far as is written."""
        return read_outcome(self.folder, element)

    def starts(self) -> Counter[int | None]:
        """How often each element of the job has begun or gone on."""
        return Counter(start.element for start in _starts(self.folder / "starts.jsonl"))

    def num_starts(self) -> int:
        """How often the job has begun or gone on; of an array, the element with the most."""
        return max(self.starts().values(), default=0)


@dataclass(frozen=True)
class _Start:
    element: int | None
    time: float = 0.0
    host: str = ""


def jobs_dir() -> Path:
    """The folder of all records."""
    return home() / "jobs"


def new_record(record: Record) -> Record:
    """Makes the folder of a submission, under a name that no other has; it begins with the record's `id`."""
    stem = f"{record.id}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        named = replace(
            record,
            id=stem if number == 1 else f"{stem}-{number}",
            host=socket.gethostname(),
            pid_namespace=pid_namespace(),
        )
        try:
            (private_folder(jobs_dir()) / named.id).mkdir(mode=0o700)
        except FileExistsError:
            continue
        named.log_folder.mkdir(mode=0o700)
        return named
    raise AssertionError(stem)


def save(record: Record) -> None:
    """Writes what was asked; refuses a line break, by which no table of jobs and no script could show it."""
    for text in _texts(record):
        if has_control(text):
            raise ConfigError(
                "holds a line break or another control character",
                where=repr(text),
                hint="rename it",
            )
    write_json(record.folder / "job.json", asdict(record))


def discard(record: Record) -> None:
    """Removes the record of a submission that did not come about."""
    shutil.rmtree(record.folder)


def all_records() -> list[Record]:
    """Every submission of the home, oldest first."""
    found = []
    for path in jobs_dir().glob("*/job.json"):
        try:
            found.append(read_job(path.parent))
        except FileNotFoundError:
            continue  # it is being removed
        except InputError as error:
            logger.warning("%s", error)
    return sorted(found, key=lambda record: (record.submitted, record.id))


def read_job(folder: Path) -> Record:
    """The record in a folder; FileNotFoundError if it holds none."""
    path, hint = folder / "job.json", _forget(folder)
    record = read_record(path, Record, hint=hint)
    if (
        record.id != folder.name
        or not re.fullmatch(r"[0-9]*", record.scheduler_id)
        or not 0 <= record.submitted < _LATEST
        or any(has_control(text) for text in _texts(record))
    ):
        raise DamagedFile("is damaged (it names another job, or none)", where=path, hint=hint)
    return record


def _texts(record: Record) -> tuple[str, ...]:
    """What is shown, and is no command that the user typed."""
    return (record.id, record.out, record.site, record.model, *record.elements, *record.after)


def going_on(record: Record) -> str:
    """The command that goes on with a training, in the folder that it has."""
    if record.kind not in ("train", "retrain") or not record.command or has_control(record.command):
        return "submit it again"
    out = "" if re.search(r" --out[ =]", record.command) else f" --out {shlex.quote(record.out)}"
    return f"go on with: {record.command}{out}"


def pid_namespace() -> str:
    """Where the numbers of processes that this one sees are valid; "" where the system does not tell."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _forget(folder: Path) -> str:
    return f"`rm -r {shlex.quote(str(folder))}` forgets the job"


def find_record(name: str | None) -> Record:
    """The submission that a user means: by its ID, the start of it, SLURM's number; None for the newest."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        if name and "/" not in name:
            return read_job(jobs_dir() / name)
    records = all_records()
    if not records:
        raise InputError("nothing was submitted yet", where=jobs_dir(), hint="see `snpdeconv submit --help`")
    if name is None:
        return records[-1]
    exact = [r for r in records if name in (r.id, r.scheduler_id)]
    found = exact[-1:] or [record for record in records if record.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    ids = [record.id for record in found or records]
    problem = f"there are {len(found)} jobs '{name}...'" if found else f"there is no job '{name}'"
    hint = f"one of {', '.join(ids)}" if found else nearest(name, ids[-10:])
    raise InputError(problem, where="job", hint=hint)


def outcome_path(folder: Path, element: int | None) -> Path:
    """Where the end of a job, or of an element of an array, is written."""
    return folder / ("outcome.json" if element is None else f"outcome-{element}.json")


def read_outcome(folder: Path, element: int | None) -> Outcome | None:
    """How a job ended, as far as is written; a damaged file is a failure of its own."""
    try:
        return _read_outcome(folder, element)
    except FileNotFoundError:
        return None
    except InputError as error:
        return Outcome("failed", f"it ended, and how is lost: {error}")


def _read_outcome(folder: Path, element: int | None) -> Outcome:
    return read_record(outcome_path(folder, element), Outcome, hint=_forget(folder))


def write_outcome(folder: Path, element: int | None, outcome: Outcome) -> None:
    """Writes how a job ended; a failure that stands is kept: what comes after is its consequence."""
    before = None
    with contextlib.suppress(FileNotFoundError, InputError):
        before = _read_outcome(folder, element)
    if before is None or before.end != "failed":
        write_json(outcome_path(folder, element), asdict(replace(outcome, time=time.time())))


def begin(folder: Path, element: int | None) -> None:
    """Notes that a job starts, or goes on; how it ended before no longer holds."""
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        outcome_path(folder, element).unlink()
    start = {"time": time.time(), "host": socket.gethostname(), "element": element}
    with (folder / "starts.jsonl").open("a") as stream:
        stream.write(json.dumps(start) + "\n")


def _starts(path: Path) -> Iterator[_Start]:
    """What is whole of the list of starts: a power cut may leave a torn line."""
    try:
        lines = read_whole(path, limit=RECORD_LIMIT, hint=_forget(path.parent)).splitlines()
    except (FileNotFoundError, InputError):
        return
    for line in lines:
        with contextlib.suppress(DamagedFile):
            yield parse_record(line, _Start, where=path, hint="")
