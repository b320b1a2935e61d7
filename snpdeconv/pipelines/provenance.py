"""What a command leaves beside its results: a log, and provenance.json, which says what they were made from.

The run in MLflow is the third trace. It says the same without anything of a person, a folder or a machine,
unless the settings ask for that.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snpdeconv.config import Config, TrackingConfig
from snpdeconv.errors import ResourceError, UserError
from snpdeconv.files import private_folder, read_record, sha256_of, write_json
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.tracking.home import home
from snpdeconv.tracking.registry import ModelRef, version_tags
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.training.preemption import Preempted, PreemptionSignal
from snpdeconv.version import __version__, code_version

if TYPE_CHECKING:
    from snpdeconv.genetics.cohort import Cohort

logger = logging.getLogger(__name__)

LOG, PROVENANCE = "log.txt", "provenance.json"
_HINT = "delete it: the results do not need it"
# What a server may take for the last words of a run that has to go.
_HURRY_S = 5.0
_job: str | None = None
_command: str | None = None
_active: Trace | None = None


class _LogFile(logging.FileHandler):
    """A full disk ends the log, not the work."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


class Trace:
    """The log and the provenance of one command. Made by `tracing`.

    Lines are held back until the results have a place: what fails before leaves nothing behind.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {
            "command": _command or shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "working_folder": _working_folder(),
            "host": socket.gethostname(),
            "snpdeconv": __version__,
            "code": code_version(),
            "started": _now(),
        }
        self._path: Path | None = None
        self._handler: logging.Handler = logging.handlers.MemoryHandler(sys.maxsize, flushLevel=sys.maxsize)
        _package().addHandler(self._handler)

    def keep(self, folder: Path, *, stem: str | None = None, resumed: bool = False, **facts: Any) -> None:
        """Opens the log, with all lines so far, and writes what is known; called again, adds facts.

        `stem` begins the names of log and provenance in a folder that holds other results. With `resumed`,
        what an earlier start of the same work has left is added to.
        """
        if self._path is None:
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / (PROVENANCE if stem is None else f"{stem}.{PROVENANCE}")
            if resumed and self._path.exists():
                earlier = read_record(self._path, dict[str, Any], hint=_HINT)
                self._facts = {**earlier, "resumed": [*earlier.get("resumed", []), self._facts]}
                for ended in ("ended", "outcome"):
                    self._facts.pop(ended, None)
            log = folder / (LOG if stem is None else f"{stem}.log")
            self._log_to(_LogFile(log, mode="a" if resumed else "w", encoding="utf-8"))
        self._facts |= facts
        write_json(self._path, self._facts)

    def add(self, **facts: Any) -> None:
        """Adds to what was written, where anything was."""
        if self._path is not None:
            self.keep(self._path.parent, **facts)

    def end(self, outcome: str) -> None:
        """Says how the command ended, where it has left anything."""
        with contextlib.suppress(OSError):  # the disk may be full, and that is told already
            self.add(ended=_now(), outcome=outcome)
        _package().removeHandler(self._handler)
        self._handler.close()

    def _log_to(self, file: logging.FileHandler) -> None:
        file.setFormatter(logging.Formatter("%(asctime)s  %(levelname)s  %(message)s"))
        held = self._handler
        assert isinstance(held, logging.handlers.MemoryHandler)
        for record in held.buffer:
            file.handle(record)
        _package().removeHandler(held)
        _package().addHandler(file)
        self._handler = file


@contextlib.contextmanager
def tracing() -> Iterator[Trace]:
    """The trace of the command that runs; one within another is the same."""
    global _active
    if _active is not None:
        yield _active
        return
    trace = _active = Trace()
    outcome = "done"
    try:
        yield trace
    except (KeyboardInterrupt, SystemExit, Preempted) as stop:
        outcome = f"interrupted ({stop})" if str(stop) else "interrupted"
        raise
    except BaseException as error:
        outcome = f"failed: {error if isinstance(error, UserError) else repr(error)}"
        logger.debug(outcome)
        raise
    finally:
        _active = None
        trace.end(outcome)


def set_job(job: str, *, command: str) -> None:
    """Says in a job which it is (the ID that elements of an array share), and what the user typed there."""
    global _job, _command
    _job, _command = job, command


def input_facts(inputs: Inputs, cohort: Cohort) -> dict[str, Any]:
    """The files that results are made from, each with its digest, and the columns."""
    digests = {"genotypes": cohort.digest, **inputs.table_digests()}
    files = {name: {"path": getattr(inputs, name), "sha256": digest} for name, digest in digests.items()}
    return {"inputs": files, "trait": inputs.trait, "groups": inputs.groups}


def file_facts(path: Path) -> dict[str, str]:
    """A file with its digest."""
    return {"path": str(path.absolute()), "sha256": sha256_of(path)}


def model_facts(reference: ModelRef) -> dict[str, Any]:
    """The model version that was used."""
    facts = asdict(reference)
    return {name: facts[name] for name in ("name", "version", "run_id", "sha256")}


def run_tags(config: Config, kind: str, *, folder: Path, **facts: object) -> dict[str, str]:
    """What MLflow is told of a run: digests and names; where it ran only if `tracking.log_places` says so."""
    tags = {
        "kind": kind,
        "version": __version__,
        "code": code_version(),
        "settings": config.digest(),
        **facts,
    }
    tags["job"] = _job
    if "SLURM_JOB_ID" in os.environ:
        tags["slurm_job"] = os.environ["SLURM_JOB_ID"]
    if config.tracking.log_places:
        tags |= {"folder": str(folder), "host": socket.gethostname()}
    return {f"snpdeconv.{name}": str(value) for name, value in tags.items() if value is not None}


def model_tags(reference: ModelRef) -> dict[str, object]:
    """The model version that a run used, for `run_tags`."""
    facts = model_facts(reference)
    return {"model": facts.pop("name"), **{f"model_{name}": value for name, value in facts.items()}}


@contextlib.contextmanager
def tracked_run(
    tracking: TrackingConfig,
    *,
    name: str,
    params: Mapping[str, object],
    tags: Mapping[str, object],
    key: str | None = None,
    stop: PreemptionSignal | None = None,
) -> Iterator[TrackedRun]:
    """A run in MLflow, resumed by its `key`; however the work ends, its status says so."""
    run = TrackedRun.open(
        key=key,
        experiment=tracking.experiment,
        name=f"{name} {time.strftime('%Y-%m-%d %H:%M')}",
        params=params,
        tags=tags,
    )
    try:
        yield run
    except Preempted:
        # The run is not over: the same command resumes it. After SIGTERM nobody may ever give it.
        if stop is not None and stop.terminated:
            run.finish("KILLED")
        raise
    except KeyboardInterrupt:
        run.finish("KILLED")
        raise
    except UserError as error:
        run.fail(str(error))
        raise
    except Exception as error:
        run.fail(repr(error))
        raise
    finally:
        run.close(**({"timeout_s": _HURRY_S} if stop is not None and stop.terminated else {}))


def finish_run(run: TrackedRun, tracking: TrackingConfig) -> None:
    """Ends a run, and says what the tracking store does not have of it."""
    run.finish("FINISHED")
    if unsaid := run.unsaid:
        raise ResourceError(
            f"{unsaid} results of the run, the last ones, cannot be written",
            where=home(),
            hint="free some disk space and give the same command again: it registers the model",
        )
    shipped = run.flush(timeout_s=tracking.flush_timeout_s)
    for problem in run.problems:
        logger.warning("the tracking store has refused for good: %s", problem)
    if not shipped:
        logger.warning("results are kept in the spool; `snpdeconv sync` sends them and registers the model")


def remember_inputs(key: str, inputs: Inputs) -> None:
    """Keeps in the home, and nowhere else, where the files of a run lie."""
    write_json(private_folder(home() / "runs") / f"{key}.json", asdict(inputs))


def remembered_inputs(reference: ModelRef) -> Inputs | None:
    """Where the files lie that a model was trained on; None where another home trained it."""
    key = version_tags(reference.name, reference.version).get("snpdeconv.key", "")
    path = home() / "runs" / f"{key}.json"
    if not re.fullmatch(r"[0-9a-f]{32}", key) or not path.exists():
        return None
    return read_record(path, Inputs, hint="delete it, and name the cohort")


def _package() -> logging.Logger:
    return logging.getLogger("snpdeconv")


def _working_folder() -> str:
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
