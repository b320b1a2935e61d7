"""What runs inside a job: a frozen description that submitit carries there and calls on every rank.

Only paths travel. Whatever a job has done is found again on disk, so that a preempted, timed-out, requeued or
restarted one is the same case.
"""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from submitit.core.job_environment import JobEnvironment
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from snpdeconv.config import Config, validate
from snpdeconv.console import configure_logging
from snpdeconv.errors import UserError
from snpdeconv.files import read_record
from snpdeconv.launch.leaving import TimeUp
from snpdeconv.launch.records import Outcome, begin, going_on, read_job, read_outcome, write_outcome
from snpdeconv.launch.rendezvous import join_ranks
from snpdeconv.pipelines.provenance import set_job
from snpdeconv.pipelines.stages import Stage
from snpdeconv.startup import loading
from snpdeconv.training.preemption import Preempted, Terminated
from snpdeconv.yaml_text import read_yaml_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job(ABC):
    """What every job knows.

    Attributes:
        record: Folder of its record.
        settings: Its frozen settings, a YAML file.
        notice_s: How long before its end it is told.
        in_container: Whether its processes run in a container.
        element: Its place in an array.
    """

    record: str
    settings: str
    notice_s: float
    in_container: bool
    element: int | None = None

    def __call__(self) -> None:
        """Does the work, on every rank, and writes how it ended."""
        configure_logging()
        environment = JobEnvironment()
        folder = Path(self.record)
        with contextlib.suppress(FileNotFoundError, UserError):  # the work does not need its record
            set_job(folder.name, command=read_job(folder).command)
        first = environment.global_rank == 0
        if first:
            begin(folder, self.element)

        def fail(reason: str) -> None:
            write_outcome(folder, self.element, Outcome("failed", reason))

        def give_up(reason: str) -> None:
            fail(f"{reason}; {going_on(read_job(folder))}")

        with TimeUp(notice_s=self.notice_s, in_container=self.in_container, gave_up=give_up) as time_up:
            try:
                join_ranks(environment, folder / "log")
                result = self.work(read_settings(Path(self.settings)))
            except Preempted as stop:
                logger.warning("%s", stop)
                time_up.leave()
            except Terminated:
                time_up.leave()
            except UserError as error:
                # Trying again would come to the same end.
                logger.error("%s", error)
                fail(str(error))
                raise SystemExit(2) from error
            except UncompletedJobError:
                time_up.tell_it_gave_up()
                raise
            except Exception as error:
                fail(f"{type(error).__name__}: {' '.join(str(error).split())[:500]} (see the log)")
                raise
            else:
                if first:
                    write_outcome(folder, self.element, Outcome("done", result=result))

    @abstractmethod
    def work(self, config: Config) -> dict[str, Any]:
        """The work itself; gives what is worth keeping of its result."""

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts after a requeue: the same again."""
        return DelayedSubmission(self)


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """Trains, ranks and registers.

    Attributes:
        inputs: The run's input files, a JSON file.
        model_name: Name in the registry.
        out: The run's folder.
        until: The last stage to do: train, rank or register.
    """

    inputs: str
    model_name: str
    out: str
    until: Stage = "register"

    def work(self, config: Config) -> dict[str, Any]:
        """Does what is not done yet."""
        with loading():
            from snpdeconv.pipelines.inputs import Inputs
            from snpdeconv.pipelines.train import train

        inputs = read_record(Path(self.inputs), Inputs, mend="submit it again")
        result = train(config, inputs, model_name=self.model_name, out=Path(self.out), until=self.until)
        return {} if result is None else asdict(result)


@dataclass(frozen=True, kw_only=True)
class RetrainJob(Job):
    """Trains a challenger if something changed, and promotes it if it is better.

    Attributes:
        inputs: The run's input files, a JSON file.
        model_name: Name in the registry.
        out: Folder of the training.
        force: Whether to train although nothing changed.
    """

    inputs: str
    model_name: str
    out: str
    force: bool = False

    def work(self, config: Config) -> dict[str, Any]:
        """Retrains, or goes on with it."""
        with loading():
            from snpdeconv.pipelines.inputs import Inputs
            from snpdeconv.pipelines.retrain import retrain

        inputs = read_record(Path(self.inputs), Inputs, mend="submit it again")
        decision = retrain(config, inputs, model_name=self.model_name, out=Path(self.out), force=self.force)
        return {} if decision is None else asdict(decision)


@dataclass(frozen=True, kw_only=True)
class PredictJob(Job):
    """Predicts one cohort.

    Attributes:
        model: NAME/version.
        genotypes: The cohort.
        covariates: Table of covariates, where the model takes one.
        out: Table to write.
        phenotypes: Table of the trait as it is known.
        trait: Its column.
        keep: List of the only people wanted.
        remove: List of people not wanted.
    """

    model: str
    genotypes: str
    covariates: str | None
    out: str
    phenotypes: str | None = None
    trait: str | None = None
    keep: str | None = None
    remove: str | None = None

    def work(self, config: Config) -> dict[str, Any]:
        """Predicts; a table that is there is written anew."""
        with loading():
            from snpdeconv.pipelines.predict import predict

        tables = {name: getattr(self, name) for name in ("covariates", "phenotypes", "keep", "remove")}
        return asdict(
            predict(
                config,
                model=self.model,
                genotypes=self.genotypes,
                out=Path(self.out),
                trait=self.trait,
                **{name: Path(path) for name, path in tables.items() if path is not None},
            )
        )


@dataclass(frozen=True)
class InTurn:
    """An array on one machine: its jobs one after the other, each with an outcome of its own."""

    jobs: tuple[Job, ...]

    def __call__(self) -> None:
        """Does all of them; those that fail are told at the end."""
        failed = [job.element for job in self.jobs if not _succeeds(job)]
        if failed:
            raise SystemExit(2)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit starts after a restart: those that are not done."""
        return DelayedSubmission(self)


def _succeeds(job: Job) -> bool:
    before = read_outcome(Path(job.record), job.element)
    if before is not None and before.end == "done":
        return True
    try:
        job()
    except SystemExit as end:
        if end.code != 2:
            raise  # told to end
        return False
    except Exception:
        logger.exception("this one failed; the others go on")
        return False
    return True


def read_settings(path: Path) -> Config:
    """The settings that were frozen at submission, the preset's name among them."""
    return validate(read_yaml_file(path), where=str(path))
