"""One folder for each submission, under ``jobs`` in the home: what was asked, and what became of it.

Holds ``job.json``, ``settings.yaml``, ``inputs.json``, ``outcome.json``, ``starts.jsonl`` and ``log/``. The
submitting command and the job write it; knows no scheduler.
"""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from snpdeconv.errors import InputError, nearest
from snpdeconv.files import private_folder, write_json
from snpdeconv.tracking.home import home

Kind = Literal["train", "predict", "rank", "register", "retrain", "search"]
End = Literal["done", "failed", "cancelled"]


@dataclass(frozen=True)
class Outcome:
    """How a job, or an element of an array, ended.

    Attributes:
        end: done, failed or cancelled.
        reason: Of a failure, in one line.
        result: What the work came to.
        time: Seconds since 1970.
    """

    end: End
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0


@dataclass(frozen=True)
class Record:
    """One submission.

    Attributes:
        id: Its name, and that of its folder.
        kind: What it does.
        preset: The preset's name.
        model: The model's name, or NAME/version.
        out: The run's folder, or that of the predictions.
        site: The cluster's name.
        scheduler: slurm or local.
        command: What the user typed.
        submitted: Seconds since 1970.
        host: Where it was submitted.
        partition: Where it waits or runs, on SLURM.
        num_tasks: Processes of the job, or of each element.
        elements: Of an array, what each works on; empty for a single job.
        scheduler_id: SLURM's number, or the process of this machine.
        process_created: When that process was started, which tells it from a later one of that number.
        after: IDs of the submissions that it waits for.
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

    @property
    def folder(self) -> Path:
        """Where the record is."""
        return jobs_dir() / self.id

    @property
    def log_folder(self) -> Path:
        """Where the job's output goes."""
        return self.folder / "log"

    def log_path(self, *, element: int | None = None, rank: int = 0) -> Path:
        """The output of one process."""
        job = self.scheduler_id
        if self.elements and self.scheduler == "slurm":
            job += f"_{element or 0}"
        return self.log_folder / f"{job}_{rank}_log.out"

    def outcome(self, element: int | None = None) -> Outcome | None:
        """How it ended, as far as is written."""
        return read_outcome(self.folder, element)

    def num_starts(self) -> int:
        """How often the job has begun or gone on; of an array, the element with the most."""
        starts = [json.loads(line)["element"] for line in _lines(self.folder / "starts.jsonl")]
        return max(Counter(starts).values(), default=0)


def jobs_dir() -> Path:
    """The folder of all records."""
    return home() / "jobs"


def new_record(record: Record) -> Record:
    """Makes the folder of a submission, under a name that no other has.

    Args:
        record: Its `id` is what to begin the name with.
    """
    stem = f"{record.id}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        named = replace(record, id=stem if number == 1 else f"{stem}-{number}", host=socket.gethostname())
        try:
            (private_folder(jobs_dir()) / named.id).mkdir(mode=0o700)
        except FileExistsError:
            continue
        named.log_folder.mkdir(mode=0o700)
        return named
    raise AssertionError(stem)


def save(record: Record) -> None:
    """Writes what was asked."""
    write_json(record.folder / "job.json", asdict(record))


def discard(record: Record) -> None:
    """Removes the record of a submission that did not come about."""
    shutil.rmtree(record.folder)


def all_records() -> list[Record]:
    """Every submission of the home, oldest first."""
    found = [_read(path) for path in jobs_dir().glob("*/job.json")]
    return sorted(found, key=lambda record: (record.submitted, record.id))


def find_record(name: str | None) -> Record:
    """The submission that a user means: by its ID, the start of it, SLURM's number; None for the newest.

    Raises:
        InputError: There is none, or several.
    """
    records = all_records()
    if not records:
        raise InputError("nothing was submitted yet", where=jobs_dir(), mend="see `snpdeconv submit --help`")
    if name is None:
        return records[-1]
    exact = [r for r in records if name in (r.id, r.scheduler_id)]
    found = exact[-1:] or [record for record in records if record.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    ids = [record.id for record in found or records]
    problem = f"there are {len(found)} jobs '{name}...'" if found else f"there is no job '{name}'"
    mend = f"one of {', '.join(ids)}" if found else nearest(name, ids[-10:])
    raise InputError(problem, where="job", mend=mend)


def outcome_path(folder: Path, element: int | None) -> Path:
    """Where the end of a job, or of an element of an array, is written."""
    return folder / ("outcome.json" if element is None else f"outcome-{element}.json")


def read_outcome(folder: Path, element: int | None) -> Outcome | None:
    """How a job ended, as far as is written."""
    try:
        return Outcome(**json.loads(outcome_path(folder, element).read_text()))
    except FileNotFoundError:
        return None


def write_outcome(folder: Path, element: int | None, outcome: Outcome) -> None:
    """Writes how a job ended; a failure that stands is kept: what comes after is its consequence."""
    before = read_outcome(folder, element)
    if before is None or before.end != "failed":
        write_json(outcome_path(folder, element), asdict(replace(outcome, time=time.time())))


def begin(folder: Path, element: int | None) -> None:
    """Notes that a job starts, or goes on; how it ended before no longer holds."""
    outcome_path(folder, element).unlink(missing_ok=True)
    start = {"time": time.time(), "host": socket.gethostname(), "element": element}
    with (folder / "starts.jsonl").open("a") as stream:
        stream.write(json.dumps(start) + "\n")


def _read(path: Path) -> Record:
    facts = json.loads(path.read_text())
    for name in ("elements", "after"):
        facts[name] = tuple(facts[name])
    return Record(**facts)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
