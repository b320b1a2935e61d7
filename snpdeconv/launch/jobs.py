"""What runs inside a job: a frozen description that submitit carries there and calls on every rank.

Around the work of each kind of job: how its ranks find each other, and how it leaves at its time limit or on
preemption. Only paths travel. Whatever a job has done is found again on disk, so that a preempted, timed-out,
requeued or restarted one is the same case.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil
from submitit.core.job_environment import JobEnvironment, SignalHandler
from submitit.core.utils import DelayedSubmission, UncompletedJobError

from snpdeconv.config import Config, Stage, read_yaml_file, validate
from snpdeconv.console import configure_logging, gc_paused
from snpdeconv.errors import ResourceError, UserError
from snpdeconv.files import read_record, write_json
from snpdeconv.launch.records import Outcome, begin, going_on, read_job, read_outcome, write_outcome
from snpdeconv.pipelines.provenance import set_job
from snpdeconv.training.preemption import Preempted, Terminated

logger = logging.getLogger(__name__)


REFUSED = "its time was up, and SLURM does not queue it again (requeue is off for it, or at this site)"
# After SIGTERM alone SLURM decides what becomes of the job, and kills it when it has. A process that left by
# itself during the grace time of a preemption would count as ended, and not be queued again.
_SLURM_DECIDES_S = 900.0
# What is left of the notice when work that never asks for news is cut off.
_MARGIN_SHARE = 0.3


class TimeLimitHandler:
    """Waits for signals beside the work; use as a context, in the main thread, inside a submitit job.

    The work itself should listen as `training.preemption` does and raise when it has saved. Work that does
    not is cut off before the notice of `notice_s` seconds runs out: all that matters is on disk at any time.
    In a container the job sees nothing of SLURM, and its batch script must requeue it.
    """

    def __init__(self, *, notice_s: float, in_container: bool, gave_up: Callable[[str], None]) -> None:
        self._notice_s = notice_s
        self._gave_up = gave_up
        handler = getattr(signal.getsignal(signal.SIGUSR2), "__self__", None)
        assert isinstance(handler, SignalHandler), "not inside a submitit job"
        self._handler = handler
        self._on_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        self._is_first = handler.env.global_rank == 0
        if in_container:
            handler.env._requeue = self._ask_batch_script  # type: ignore[method-assign]
        self._told = threading.Event()
        self._left = threading.Event()

    def __enter__(self) -> TimeLimitHandler:
        if not self._on_slurm:
            # Nobody kills a process of this machine that was asked to end.
            signal.signal(signal.SIGTERM, _end)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Python writes each signal's number there at once, whatever the main thread is doing.
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="time-up", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._write)

    def leave(self) -> None:
        """Ends this process after the work has saved; it never returns, and raises SystemExit.

        After SIGUSR2 (time limit, or preemption with notice) the first rank queues the job again. After
        SIGTERM alone it is SLURM that ends the job, or queues it again.
        """
        self._left.set()
        if self._told.is_set():
            self._requeue()
        if self._on_slurm:
            logger.info("saved; what becomes of the job is for SLURM to say")
            deadline = time.monotonic() + _SLURM_DECIDES_S
            while time.monotonic() < deadline:
                time.sleep(0.2)
                if self._told.is_set():
                    self._requeue()
        sys.exit(128 + signal.SIGTERM)

    def _requeue(self) -> None:
        """Puts the job back into the queue from the first rank, and exits; others wait for their end."""
        if not self._is_first:
            # Leaving earlier with an error could end the first rank before it has queued the job again.
            time.sleep(60.0 if self._on_slurm else 0.0)
            sys.exit(0)
        try:
            self._handler.checkpoint_and_try_requeue(signal.SIGUSR2)
        except UncompletedJobError:
            self.tell_it_gave_up()
            sys.exit(1)
        except (OSError, subprocess.SubprocessError) as error:
            logger.error("saved; %s (%s)", REFUSED, error)
            self._gave_up(f"saved; {REFUSED}")
            sys.exit(1)

    def tell_it_gave_up(self) -> None:
        """Says why the job is not queued again."""
        reason = (
            "it reached its time limit too often without coming to an end; "
            "raise resources.timeout_min, or max_requeues of the cluster"
        )
        logger.error(reason)
        self._gave_up(reason)

    def _watch(self) -> None:
        while number := os.read(self._read, 1):
            if number[0] == signal.SIGUSR2 and not self._told.is_set():
                self._told.set()
                threading.Thread(target=self._cut_off, name="cut-off", daemon=True).start()
        os.close(self._read)

    def _cut_off(self) -> None:
        if self._left.wait(self._notice_s * (1 - _MARGIN_SHARE)):
            return
        logger.warning("this part of the work cannot stop half-way; it will be done again after the restart")
        try:
            self._requeue()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            logging.shutdown()
            os._exit(code % 256)

    def _ask_batch_script(self, countdown: int) -> None:
        folder = Path(os.environ["SUBMITIT_FOLDER"])
        (folder / f"{self._handler.env.job_id}.requeue").touch()
        logger.info("the batch script queues the job again (%d time limits left)", countdown)


def _end(number: int, frame: FrameType | None) -> Any:
    sys.exit(128 + number)


_FIRST_PORT = 20_000
_NUM_PORTS = 12_000
"""Below the ports that systems give away by themselves."""
_PATIENCE_S = 300.0
_LOOPBACK = "127.0.0.1"
# Held to the end of the process: the port is nobody else's until training listens there.
_reserved: list[socket.socket] = []


@dataclass(frozen=True)
class _Place:
    address: str
    port: int


def join_ranks(environment: JobEnvironment, folder: Path) -> None:
    """Says where this process stands among those of the job; a site's own MASTER_ADDR and MASTER_PORT stay.

    All ranks must see the folder.
    """
    if environment.num_tasks == 1:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)  # of the shell that submitted: this rank would wait for others
        return
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not (address and port):
        place = _meeting_place(environment, folder)
        address, port = address or place.address, port or str(place.port)
    os.environ.update(
        MASTER_ADDR=address,
        MASTER_PORT=port,
        RANK=str(environment.global_rank),
        WORLD_SIZE=str(environment.num_tasks),
        # Where each process is shown its own GPU only, that one is number 0.
        LOCAL_RANK=str(environment.local_rank % len(visible) if visible else environment.local_rank),
        LOCAL_WORLD_SIZE=str(environment.num_tasks // environment.num_nodes),
    )
    # gloo would look up the name of its own node, and settle on the loopback where nobody knows it.
    own = _own_address(address)
    for interface, addresses in psutil.net_if_addrs().items():
        if any(one.address == own for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            break


def _meeting_place(environment: JobEnvironment, folder: Path) -> _Place:
    starts = os.environ.get("SLURM_RESTART_COUNT") or os.environ.get("SNPDECONV_LOCAL_START") or "0"
    path = folder / f"meeting-{environment.job_id}-{starts}.json"
    if environment.global_rank == 0:
        address = _LOOPBACK
        if environment.num_nodes > 1:
            # The node that SLURM has started the ranks from is reached by all of them.
            address = _own_address(os.environ.get("SLURM_LAUNCH_NODE_IPADDR", socket.gethostname()))
        place = _Place(address, _free_port(environment.job_id))
        write_json(path, asdict(place))
        return place
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            return read_record(path, _Place, hint="start the job again")
        time.sleep(0.1)
    raise ResourceError(
        f"the first rank has not said where it is for {_PATIENCE_S:.0f} s",
        where=path,
        hint="do all nodes see the home (SNPDECONV_HOME)? See the log of rank 0",
    )


def _free_port(job_id: str) -> int:
    """The first free port from one of the job's own on, held from now on."""
    first = zlib.crc32(job_id.encode())
    for n in range(_NUM_PORTS):
        port = _FIRST_PORT + (first + n) % _NUM_PORTS
        held = socket.socket()
        try:
            held.bind(("", port))
        except OSError:
            held.close()
            continue
        # Bound without this, so that no other rank could take it; set now, so that training can.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _reserved.append(held)
        return port
    raise ResourceError("no port is free", where=socket.gethostname(), hint="set MASTER_PORT")


def _own_address(other: str) -> str:
    """The address of this node that reaches another one; that one itself where it cannot be told."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((other, 9))  # sends nothing
        return str(probe.getsockname()[0])
    return other


@dataclass(frozen=True)
class Job(ABC):
    """What every job knows; its record is a folder, its settings are frozen in a YAML file."""

    record: str
    settings: str
    notice_s: float  # before its end
    in_container: bool
    element: int | None = None  # of an array

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

        with TimeLimitHandler(
            notice_s=self.notice_s, in_container=self.in_container, gave_up=give_up
        ) as time_up:
            try:
                join_ranks(environment, folder / "log")
                # As frozen at submission, the preset's name among them.
                result = self.work(validate(read_yaml_file(Path(self.settings)), where=self.settings))
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
    """Trains, ranks and registers, as far as the stage `until`."""

    inputs: str  # a JSON file
    model_name: str
    out: str
    until: Stage = "register"

    def work(self, config: Config) -> dict[str, Any]:
        """Does what is not done yet."""
        with gc_paused():
            from snpdeconv.pipelines.run_folder import Inputs
            from snpdeconv.pipelines.train import train

        inputs = read_record(Path(self.inputs), Inputs, hint="submit it again")
        result = train(config, inputs, model_name=self.model_name, out=Path(self.out), until=self.until)
        return {} if result is None else asdict(result)


@dataclass(frozen=True, kw_only=True)
class RetrainJob(Job):
    """Trains a challenger if something changed, and promotes it if it is better."""

    inputs: str  # a JSON file
    model_name: str
    out: str
    force: bool = False

    def work(self, config: Config) -> dict[str, Any]:
        """Retrains, or goes on with it."""
        with gc_paused():
            from snpdeconv.pipelines.retrain import retrain
            from snpdeconv.pipelines.run_folder import Inputs

        inputs = read_record(Path(self.inputs), Inputs, hint="submit it again")
        decision = retrain(config, inputs, model_name=self.model_name, out=Path(self.out), force=self.force)
        return {} if decision is None else asdict(decision)


@dataclass(frozen=True, kw_only=True)
class PredictJob(Job):
    """Predicts one cohort; `out` is the table to write."""

    model: str  # NAME/version
    genotypes: str
    covariates: str | None
    out: str
    phenotypes: str | None = None
    trait: str | None = None
    keep: str | None = None
    remove: str | None = None

    def work(self, config: Config) -> dict[str, Any]:
        """Predicts; a table that is there is written anew."""
        with gc_paused():
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
class SequentialJobs:
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


InTurn = SequentialJobs  # its name in the pickles of jobs that were queued by 0.1.0


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
