"""What SLURM, or the process table of this machine, says of a job, and whether SLURM would take one.

Answers of squeue, sacct, sinfo and ``sbatch --test-only``. Knows no records' outcomes and no runs.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import psutil

from snpdeconv.errors import ConfigError, ResourceError, nearest
from snpdeconv.launch.records import Record, pid_namespace
from snpdeconv.launch.site import Request, Site

logger = logging.getLogger(__name__)


State = Literal["waiting", "running", "stopping", "ended", "gone", "unknown"]
_TIMEOUT_S = 30.0
# How long a submission may be on its way before it counts as lost.
_ARRIVES_S = 300.0
# What changes the answers of SLURM's commands: formats, defaults, other clusters, a job around this process.
_SUPERVISORS = (
    "snpdeconv.launch.local_supervisor",
    "snpdeconv.launch.controller",
)  # now, and of a job from before
_OF_SLURM = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SINFO|SQUEUE|SACCT|SCANCEL|SCONTROL|SPRIO)_")
_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT")
_WAITING = (
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
)
_RUNNING = ("RUNNING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
FOR_MEMORY = "killed for memory; raise resources.mem_gib"
REASONS = {
    "OUT_OF_MEMORY": FOR_MEMORY,
    "TIMEOUT": "ended at its time limit before it could save; raise resources.signal_delay_s",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
    "PREEMPTED": "taken away for another job, and not queued again",
}


@dataclass(frozen=True)
class SlurmState:
    """What is known of a job, or of an element of an array."""

    state: State  # stopping: its processes end; gone: not known any longer; unknown: nobody to ask here
    word: str = ""  # the scheduler's own
    reason: str = ""  # why it waits, or how it ended, where the scheduler says so
    name: str = ""  # the job's

    @property
    def was_cancelled(self) -> bool:
        """Whether a user or an administrator ended it."""
        return self.word.startswith("CANCELLED")


def query_states(records: Iterable[Record]) -> tuple[list[Record], dict[str, dict[int | None, SlurmState]]]:
    """What the schedulers say, by record ID and element (None is a single job); SLURM is asked once for all.

    The records come back with the numbers of jobs whose submission was cut off before it heard them.
    """
    records = list(records)
    on_slurm = [record for record in records if record.scheduler == "slurm"]
    queue = _queue() if on_slurm else {}
    if queue is None:
        silent = SlurmState("unknown", reason="SLURM does not answer here")
        return records, {r.id: {None: silent if r in on_slurm else _process(r)} for r in records}
    on_slurm = [_numbered(record, queue) for record in on_slurm]
    gone = [record for record in on_slurm if not any(_belongs(key, record) for key in queue)]
    accounts = _accounting(gone) if gone else {}
    on_slurm = [_numbered(record, accounts or {}) for record in on_slurm]
    told = queue | (accounts or {})
    numbered = {record.id: record for record in on_slurm}
    records = [numbered.get(record.id, record) for record in records]
    return records, {
        record.id: (
            _of_record(record, told, accounts_answer=accounts is not None)
            if record.id in numbered
            else {None: _process(record)}
        )
        for record in records
    }


def parse_queue(text: str) -> dict[str, SlurmState]:
    """Jobs by number (``12`` or ``12_3``) in an answer of squeue with job, state, reason and name."""
    told = {}
    for line in text.splitlines():
        if line.count("|") < 3:
            continue  # a site's own words
        number, word, reason, name = line.strip().split("|", 3)
        state = _state(word)
        told[number] = SlurmState(
            state, word, _end(word) if state == "ended" else reason.replace("None", ""), name
        )
    return told


def parse_accounting(text: str) -> dict[str, SlurmState]:
    """Jobs by number in an answer of sacct with JobID, State, ExitCode and JobName."""
    told: dict[str, SlurmState] = {}
    for line in text.splitlines():
        if line.count("|") < 3:
            continue
        number, word, code, name = line.strip().split("|", 3)
        state = _state(word.partition(" ")[0])
        one = SlurmState(state, word, _end(word, code=code) if state == "ended" else "", name)
        told |= dict.fromkeys(_elements(number), one)
    return told


def _elements(number: str) -> list[str]:
    """The jobs of one line of sacct: those of an array that never began stand as ``12_[3-5,8%2]``."""
    array, _, places = number.partition("_[")
    if not places:
        return [number]
    ends = [part.partition("-") for part in places.rstrip("]").partition("%")[0].split(",")]
    try:
        return [f"{array}_{n}" for low, _, high in ends for n in range(int(low), int(high or low) + 1)]
    except ValueError:
        return [number]


def _state(word: str) -> State:
    if word in _WAITING:
        return "waiting"
    if word in _RUNNING:
        return "running"
    return "stopping" if word == "COMPLETING" else "ended"


def _end(word: str, *, code: str = "") -> str:
    """In words, how a job ended; ``CANCELLED by 0`` names the user."""
    first = word.partition(" ")[0]
    if first == "COMPLETED":
        return ""
    if first == "CANCELLED":
        return word.lower()
    status, _, number = code.partition(":")
    how = (
        f", killed by signal {number}" if number not in ("", "0") else f", exit code {status}" if code else ""
    )
    return REASONS.get(first, first.lower() + how)


def slurm_environment() -> dict[str, str]:
    """The environment for SLURM's commands: what a user's profile says to them is left out.

    A format, a default or another cluster would change what they answer, and the variables of a job that this
    process runs in would become the limits of one that it submits.
    """
    return {k: v for k, v in os.environ.items() if k in _KEPT or not _OF_SLURM.match(k)}


def run_slurm(words: Sequence[str], *, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a command of SLURM in a clean environment; one that is not there, or hangs, has failed."""
    try:
        return subprocess.run(
            words,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",  # a user's other jobs may be named in any encoding
            timeout=_TIMEOUT_S,
            env=slurm_environment(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(words, 127, "", str(error))


def what_slurm_says(answer: subprocess.CompletedProcess[str]) -> str:
    """The last line of its complaint."""
    lines = [line.strip() for line in (answer.stderr or answer.stdout).splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {answer.returncode}"
    return last.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("allocation failure: ")


def cluster_name() -> str:
    """SLURM's own name of this cluster; "" if it does not answer."""
    answer = run_slurm(["scontrol", "show", "config"]).stdout
    found = re.search(r"^ClusterName\s*=\s*(\S+)", answer, re.MULTILINE)
    return found[1] if found else ""


def find_number(record: Record) -> str:
    """SLURM's number of a job that it holds by this record's name; "" if there is none."""
    return _numbered(record, _queue() or {}).scheduler_id


def _queue() -> dict[str, SlurmState] | None:
    """All jobs of this user that SLURM still holds, also lately ended ones; None without an answer."""
    # The number of the user: a name comes from the environment, and need not be this user's.
    words = ["squeue", "--noheader", "--all", "--array", "--states=all", f"--user={os.geteuid()}"]
    answer = run_slurm([*words, "--format=%i|%T|%r|%j"])
    if answer.returncode:
        _warn_once(f"squeue does not answer ({_said(answer)}): the states of jobs on SLURM are not known")
        return None
    return parse_queue(answer.stdout)


def _accounting(records: Sequence[Record]) -> dict[str, SlurmState] | None:
    """From the accounting; empty where the site has none, None where it does not answer."""
    words = ["sacct", "--noheader", "--parsable2", "--allocations"]
    words.append("--format=JobID,State,ExitCode,JobName")
    asked = []
    if numbers := [record.scheduler_id for record in records if record.scheduler_id]:
        asked.append([f"--jobs={','.join(numbers)}"])
    for record in records:
        if not record.scheduler_id and record.job_name:
            since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.submitted - 60))
            asked.append([f"--name={record.job_name}", f"--starttime={since}", f"--user={os.geteuid()}"])
    told: dict[str, SlurmState] = {}
    for options in asked:
        answer = run_slurm([*words, *options])
        if answer.returncode == 127 or "accounting storage is disabled" in answer.stderr:
            return {}
        if answer.returncode:
            _warn_once(f"sacct does not answer ({_said(answer)}): how jobs ended is not known")
            return None
        told |= parse_accounting(answer.stdout)
    return told


def _said(answer: subprocess.CompletedProcess[str]) -> str:
    return " ".join(answer.stderr.split())[:200] or f"exit code {answer.returncode}"


@functools.cache
def _warn_once(message: str) -> None:
    """What is asked again and again is told the first time."""
    logger.warning("%s", message)


def _numbered(record: Record, told: Mapping[str, SlurmState]) -> Record:
    """The record with its job's number, also if the answer to its submission was never heard."""
    if record.scheduler_id or not record.job_name:
        return record
    numbers = (number for number, one in told.items() if one.name == record.job_name)
    return replace(record, scheduler_id=next(numbers, "").partition("_")[0])


def _belongs(number: str, record: Record) -> bool:
    return bool(record.scheduler_id) and number.partition("_")[0] == record.scheduler_id


def _of_record(
    record: Record, told: Mapping[str, SlurmState], *, accounts_answer: bool
) -> dict[int | None, SlurmState]:
    otherwise = SlurmState("gone")
    known = any(_belongs(number, record) for number in told)
    if not known and record.cluster and (here := cluster_name()) != record.cluster:
        elsewhere = f"a job of SLURM's cluster {record.cluster}; here is {here or 'none'}"
        otherwise = SlurmState("unknown", reason=elsewhere)
    elif not accounts_answer:
        otherwise = SlurmState("unknown", reason="SLURM's accounting does not answer")
    elif not record.scheduler_id and time.time() - record.submitted < _ARRIVES_S:
        otherwise = SlurmState("unknown", reason="SLURM has not answered its submission yet")
    numbers = {
        place: record.scheduler_id if place is None else f"{record.scheduler_id}_{place}"
        for place in record.places
    }
    return {place: told.get(number, otherwise) for place, number in numbers.items()}


def _process(record: Record) -> SlurmState:
    if not is_here(record):
        where = record.host if record.host != socket.gethostname() else "another container of this host"
        return SlurmState("unknown", reason=f"a process of {where}: unknown here")
    if not record.scheduler_id and time.time() - record.submitted < _ARRIVES_S:
        return SlurmState("unknown", reason="it is being started")
    return SlurmState("running", "RUNNING") if find_process(record) else SlurmState("ended")


def is_here(record: Record) -> bool:
    """Whether this process sees those of the machine, or the container, that a job was started on."""
    return record.host == socket.gethostname() and record.pid_namespace in ("", pid_namespace())


def _looks_after(process: psutil.Process, record: Record) -> bool:
    words = process.cmdline()
    return any(module in words for module in _SUPERVISORS) and str(record.log_folder) in words


def find_process(record: Record) -> psutil.Process | None:
    """The process that looks after a job of this machine; None when it has ended."""
    try:
        process = psutil.Process(int(record.scheduler_id))
        # The time of its start moves with the clock that it is counted back from, when that is set.
        is_same = abs(process.create_time() - record.process_created) < 1.0 or _looks_after(process, record)
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, ValueError, OverflowError):
        return None


_OUT_OF_SERVICE = ("down", "drain", "drng", "fail", "maint", "unk", "inval", "boot", "reboot", "resv", "plnd")
_CONTROLLER_IS_AWAY = re.compile(r"unable to contact|timed out|zero bytes|connection", re.IGNORECASE)


@dataclass(frozen=True)
class _Nodes:
    """Nodes of one partition that are alike, as sinfo tells of them."""

    partition: str
    is_default: bool
    limit: str
    what: str
    state: str


def check_script(script: str, *, request: Request, site: Site) -> str:
    """Refuses what SLURM would refuse, or would let wait for ever; gives the partition, or a list of them."""
    where = f"cluster {site.name}"
    answer = run_slurm(["sbatch", "--test-only"], text=script)
    groups = _inventory()
    names = (site.partition_for(gpus_per_node=request.gpus_per_node) or "").split(",")
    here = [group for group in groups if group.partition in names or (names == [""] and group.is_default)]
    if answer.returncode == 0:
        _check_time(here, request=request, where=where)
        chosen = re.search(r" in partition (\S+)", answer.stderr)
        return ",".join(names) or (chosen[1] if chosen else "")
    said = what_slurm_says(answer)
    if answer.returncode == 127 or _CONTROLLER_IS_AWAY.search(said):
        raise ResourceError(
            f"SLURM does not answer ({said})",
            where=where,
            hint="submit from a login node, or use --cluster local",
        )
    unknown = [name for name in names if name and not any(group.partition == name for group in groups)]
    if unknown and groups:
        raise ConfigError(
            f"SLURM would not take the job ({said})",
            where=where,
            hint=f"--partition: {nearest(unknown[0], {group.partition for group in groups})}",
        )
    if any(group.state.startswith(_OUT_OF_SERVICE) for group in here):
        # Nodes that are away count as none in a trial; the queue itself takes the job, or refuses it.
        logger.warning("%s: %s, with some of the nodes out of service; the job may wait", where, said)
        return ",".join(names)
    there = "; ".join(sorted({group.what for group in here}))
    raise ConfigError(
        f"SLURM would not take the job ({said})",
        where=where,
        hint=f"it asks for {_asked(request, site)}" + (f"; nodes there have {there}" if there else ""),
    )


def _asked(request: Request, site: Site) -> str:
    words = [
        f"{request.nodes} nodes of {request.tasks_per_node * request.cpus_per_task} CPUs",
        f"{request.mem_gib} GiB",
        *([f"{request.gpus_per_node} GPUs"] if request.gpus_per_node and site.gpu_request != "none" else []),
        f"{request.timeout_min} min",
    ]
    named = {"account": site.account, "qos": site.qos, "constraint": site.constraint}
    return ", ".join([*words, *(f"{key} {value}" for key, value in named.items() if value)])


def _check_time(here: list[_Nodes], *, request: Request, where: str) -> None:
    """SLURM takes a job that is longer than its partition allows, and lets it wait for ever."""
    limits = [minutes(group.limit) for group in here]
    known = [limit for limit in limits if limit is not None]
    if known and len(known) == len(limits) and request.timeout_min > max(known):
        names = ",".join(sorted({group.partition for group in here}))
        raise ConfigError(
            f"the job may take {request.timeout_min} min, and partition '{names}' allows {max(known)}",
            where=where,
            hint=f"--set resources.timeout_min={max(known)}; a training goes on by itself in the next turn",
        )


def minutes(limit: str) -> int | None:
    """A time limit as SLURM writes it (``1-02:00:00``, ``30:00``, ``infinite``) in minutes; None for none."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return None
    days, hours, mins, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + mins + (seconds > 0)


def _inventory() -> list[_Nodes]:
    """What sinfo tells, hidden partitions included; nothing if it does not answer."""
    words = ["sinfo", "--noheader", "--exact", "--all", "--format=%P|%l|%t|%c CPUs, %m MB, %G"]
    groups = []
    for line in run_slurm(words).stdout.splitlines():
        if line.count("|") == 3:
            name, limit, state, what = line.split("|")
            what = what.removesuffix(", (null)")
            groups.append(_Nodes(name.removesuffix("*"), name.endswith("*"), limit, what, state))
    return groups
