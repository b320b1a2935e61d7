"""From a job and a request to SLURM, or to a process of this machine: one way, by submitit.

Owns the sbatch script, the containers in it and the environment of the job.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import DelayedSubmission
from submitit.helpers import clean_env
from submitit.local.local import LocalJob

from snpdeconv.errors import ConfigError, ResourceError, has_control
from snpdeconv.launch import site as containers
from snpdeconv.launch.scheduler import run_slurm, slurm_environment, what_slurm_says
from snpdeconv.launch.site import Request, Site
from snpdeconv.tracking.home import home

logger = logging.getLogger(__name__)


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The end of a batch script whose job cannot call SLURM: it requeues the job when that asks for it.
_REQUEUE = (
    'if [ -e "$job.requeue" ]; then',
    '  rm "$job.requeue"',
    '  scontrol requeue "$SLURM_JOB_ID" || touch "$job.norequeue"',
    "fi",
)
_ENTRY = "-P -u -m snpdeconv.launch.entry"
"""Without -P a module of the working folder would take the place of ours."""


class _Slurm(SlurmExecutor):
    """submitit's, also where there is no SLURM: to show the script."""

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} {_ENTRY} {shlex.quote(str(self.folder))}"

    @classmethod
    def affinity(cls) -> int:
        return 2


class _Detached(LocalExecutor):
    """submitit's, with a controller that outlives the terminal and keeps none of its streams open."""

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} {_ENTRY} {shlex.quote(str(self.folder))}"

    def _submit_command(self, command: str) -> LocalJob[Any]:
        given = self.parameters
        environment = os.environ | {
            "SUBMITIT_EXECUTOR": "local",
            "SUBMITIT_LOCAL_COMMAND": command,
            "SUBMITIT_LOCAL_NTASKS": str(given["tasks_per_node"]),
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * given["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(given["signal_delay_s"]),
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "CUDA_VISIBLE_DEVICES": _local_gpus(given["gpus_per_node"]),
        }
        words = [sys.executable, "-P", "-m", "snpdeconv.launch.controller", str(self.folder)]
        script = " && ".join([*given["setup"], f"exec {shlex.join(words)}"])
        process = subprocess.Popen(
            ["/bin/bash", "-c", script],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        tasks = list(range(given["tasks_per_node"]))
        return LocalJob(folder=self.folder, job_id=str(process.pid), process=process, tasks=tasks)


def _local_gpus(count: int) -> str:
    """The first `count` of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(count))) if visible is None else visible.split(",")
    return ",".join(names[:count])


@dataclass(frozen=True)
class Plan:
    """How a job, or each element of an array, is to run.

    Attributes:
        name: For people: `job_name` of it is what the scheduler gets.
        request: What it asks for; on this machine the memory is not looked at.
        site: Where it goes.
        folder: Where its output goes.
        needs: Files and folders that it reads or writes: a container gets to see them.
        after: SLURM's numbers of the jobs that must have ended well before.
    """

    name: str
    request: Request
    site: Site
    folder: Path
    needs: tuple[Path, ...] = ()
    after: tuple[str, ...] = ()


def job_name(name: str) -> str:
    """A name as schedulers, scripts and paths take it; it may come from a trait or from a server."""
    return re.sub(r"[^\w.+-]", "-", name)


def sbatch_script(plan: Plan, *, num_elements: int = 1) -> str:
    """What `submit_to_slurm` hands to sbatch; needs no SLURM.

    Args:
        plan: How the job runs.
        num_elements: Of an array; 1 for a single job.
    """
    executor = _slurm(plan, is_array=num_elements > 1)
    if num_elements > 1:
        executor.parameters["map_count"] = num_elements
    return executor._make_submission_file_text(executor._submitit_command_str, "").rstrip() + "\n"


class Unanswered(ResourceError):
    """SLURM may have taken a job, and has not said so: its record stays, and finds it by its name."""


def submit_to_slurm(jobs: Sequence[Any], plan: Plan) -> str:
    """Queues a job, or several as an array.

    Args:
        jobs: Callables that submitit can carry.
        plan: How each runs.

    Returns:
        SLURM's number; "" if it has timed out, so that the queue must tell.

    Raises:
        ConfigError: The container's image lacks a place to mount what the job needs.
        ResourceError: SLURM does not take it.
        Unanswered: The user would not wait for the answer.
        KeyboardInterrupt: The user would not have it; it is withdrawn.
    """
    containers.check_mount_points(plan.site.container, needs=_shown(plan))
    for place, job in enumerate(jobs):
        payload = DelayedSubmission(job)
        payload.set_timeout(plan.request.timeout_min, plan.site.max_requeues)
        payload.dump(plan.folder / f"{place}.pkl")
    script = plan.folder / "sbatch.sh"
    script.write_text(sbatch_script(plan, num_elements=len(jobs)))
    answer, interrupted = _ask_sbatch([str(script)])
    number = re.search(r"^(?:Submitted batch job )?(\d+)", answer.stdout, re.MULTILINE)
    if answer.returncode == 0 and number is not None:
        if interrupted:
            withdraw(number[1])
            raise KeyboardInterrupt
        return number[1]
    if interrupted or re.search(r"timed out|Zero Bytes", answer.stderr):
        return ""
    raise ResourceError(
        f"SLURM does not take the job ({what_slurm_says(answer)})",
        where=f"cluster {plan.site.name}",
        hint="compare the script of --dry-run with what the site asks for",
    )


def _ask_sbatch(words: list[str]) -> tuple[subprocess.CompletedProcess[str], bool]:
    """Runs sbatch to its end, in a group of its own: a Ctrl-C waits for its answer, a second one does not.

    Returns:
        Its answer, and whether the user pressed Ctrl-C.

    Raises:
        Unanswered: At the second Ctrl-C.
    """
    came: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise Unanswered("SLURM was not waited for", hint="`snpdeconv status` tells if it took the job")
        logger.warning("waiting for SLURM's answer, to withdraw the job; Ctrl-C again leaves at once")

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, hold) for number in _INTERRUPTS} if main else {}
    try:
        process = subprocess.Popen(
            ["sbatch", "--parsable", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=slurm_environment(),
            start_new_session=True,
        )
        out, err = process.communicate()
        return subprocess.CompletedProcess(words, process.returncode, out, err), bool(came)
    except OSError as error:
        return subprocess.CompletedProcess(words, 127, "", f"sbatch: {error.strerror}"), bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def withdraw(number: str) -> None:
    """Takes a job out of SLURM's queue."""
    run_slurm(["scancel", number])


def submit_here(job: Any, plan: Plan) -> int:
    """Starts a job on this machine, in processes of its own.

    Args:
        job: A callable that submitit can carry.
        plan: How it runs.

    Returns:
        The number of the process that looks after it.

    Raises:
        ConfigError: It asks for several machines, or the container's image lacks a place to mount what the
            job needs.
    """
    containers.check_mount_points(plan.site.container, needs=_shown(plan))
    request = plan.request
    if request.nodes > 1:
        raise ConfigError(
            f"the job asks for {request.nodes} nodes, and there is no SLURM here",
            where="resources.nodes",
            hint="--set resources.nodes=1, or name a --cluster",
        )
    executor = _Detached(plan.folder, max_num_timeout=plan.site.max_requeues, python=_python(plan))
    executor.update_parameters(
        tasks_per_node=request.tasks_per_node,
        gpus_per_node=request.gpus_per_node,
        timeout_min=request.timeout_min,
        signal_delay_s=request.signal_delay_s,
        setup=[*plan.site.setup, *_exports(plan)],
    )
    with clean_env():  # of the job that this process may run in
        return int(executor.submit(job).job_id)


def slurm_answers() -> bool:
    """Whether there is a SLURM to submit to."""
    if shutil.which("sbatch") is None:
        return False
    return run_slurm(["scontrol", "ping"]).returncode == 0


def _slurm(plan: Plan, *, is_array: bool) -> _Slurm:
    request, site = plan.request, plan.site
    executor = _Slurm(plan.folder, max_num_timeout=site.max_requeues, python=_python(plan))
    further: dict[str, str | bool] = {"requeue": True, **site.sbatch}
    if further.pop("no-requeue", False):
        further = {"no-requeue": True, **further}
        further.pop("requeue")
    further = {option: value for option, value in further.items() if value is not False}
    if plan.after:
        further |= {"dependency": "afterok:" + ":".join(plan.after), "kill-on-invalid-dep": "yes"}
    parameters: dict[str, Any] = {
        "job_name": job_name(plan.name),
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_task,
        "mem": f"{request.mem_gib}G",
        "time": request.timeout_min,
        "signal_delay_s": request.signal_delay_s,
        "partition": site.partition_for(gpus_per_node=request.gpus_per_node),
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "stderr_to_stdout": True,
        "setup": [*site.setup, *_exports(plan), *_own_lines(plan.folder, is_array=is_array)],
        "srun_args": [
            # srun takes the CPUs of a task not from sbatch (since SLURM 22.05).
            f"--cpus-per-task={request.cpus_per_task}",
            # Without it a rank that fails would leave the others waiting for it.
            "--kill-on-bad-exit=1",
            *containers.srun_options(plan.site.container, needs=_shown(plan), variables=_variables(plan)),
        ],
        "additional_parameters": further,
        "wckey": None,
        **_gpus(plan),
    }
    parameters["teardown"] = [
        "code=$?",
        'echo "$code" >"$job.exit"',
        *(_REQUEUE if site.container.runtime != "none" else ()),
        'exit "$code"',
    ]
    # A line break in what becomes a comment for sbatch would begin a command.
    for value in (*_texts({k: v for k, v in parameters.items() if k != "setup"}), str(plan.folder)):
        if has_control(value):
            raise ConfigError(
                "holds a line break or another control character",
                where=repr(value),
                hint="leave it out of paths, names and options of a job",
            )
    if set(str(plan.folder)) & set("%\\"):
        raise ConfigError(
            "holds a % or a backslash, which mean something else to SLURM in the paths of logs",
            where=plan.folder,
            hint="set SNPDECONV_HOME to a folder without it",
        )
    executor.update_parameters(**parameters)
    return executor


def _texts(value: Any) -> Iterator[str]:
    """All text in nested values."""
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, str):
        yield value


def _gpus(plan: Plan) -> dict[str, Any]:
    request, site = plan.request, plan.site
    if not request.gpus_per_node or site.gpu_request == "none":
        return {}
    kind = "" if site.gpu_type is None else f"{site.gpu_type}:"
    if site.gpu_request == "gres":
        return {"gres": f"gpu:{kind}{request.gpus_per_node}"}
    count = 1 if site.gpu_request == "gpus_per_task" else request.gpus_per_node
    return {site.gpu_request: f"{kind}{count}" if kind else count}


def _exports(plan: Plan) -> list[str]:
    """The job's environment, said in the script: not every site passes on that of the submitting shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in _variables(plan).items()]


def _variables(plan: Plan) -> dict[str, str]:
    variables = {
        "SNPDECONV_HOME": str(home()),
        "OMP_NUM_THREADS": str(plan.request.cpus_per_task),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONSAFEPATH": "1",  # of what the job starts in its turn
    }
    uri = plan.site.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    # An address with a password in it is left to the environment: others may read the script.
    if uri and "@" not in uri:
        variables["MLFLOW_TRACKING_URI"] = uri
    if plan.site.container.runtime != "none":
        variables |= containers.variables_inside(home())
    return variables | dict(plan.site.environment)


def _python(plan: Plan) -> str:
    """The words before ``-m submitit...``: the interpreter, in the container where there is one."""
    container = plan.site.container
    if container.runtime == "none":
        return shlex.quote(sys.executable)
    gpus = plan.request.gpus_per_node > 0
    return containers.interpreter(container, needs=_shown(plan), variables=_variables(plan), with_gpus=gpus)


def _shown(plan: Plan) -> list[Path]:
    """What the job reads or writes."""
    return [home(), plan.folder, *plan.needs]


def _own_lines(folder: Path, *, is_array: bool) -> list[str]:
    """Gives a job what it is to do under its number, which may not have been heard when it was submitted."""
    number, place = "$SLURM_JOB_ID", "0"
    if is_array:
        number, place = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "$SLURM_ARRAY_TASK_ID"
    where = shlex.quote(str(folder))
    return [
        f'job={where}/"{number}"',
        'rm -f "$job.exit"',
        f'[ -e "${{job}}_submitted.pkl" ] || cp -p {where}/"{place}.pkl" "${{job}}_submitted.pkl"',
    ]
