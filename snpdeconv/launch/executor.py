"""From a job and a request to SLURM, or to a process of this machine: one way, by submitit.

Owns the sbatch script, the containers in it and the environment of the job.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env
from submitit.local.local import LocalJob

from snpdeconv.errors import ConfigError, ResourceError
from snpdeconv.launch import containers
from snpdeconv.launch.request import Request
from snpdeconv.launch.site import Site
from snpdeconv.tracking.home import home

logger = logging.getLogger(__name__)

# submitit's controller gives up after six starts; the countdown in the job is what counts here.
_CONTROLLER = "import sys; from submitit.local.local import Controller; Controller(sys.argv[1]).run(10**6)"


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
        words = [sys.executable, "-P", "-c", _CONTROLLER, str(self.folder)]
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
    executor = _slurm(plan)
    if num_elements > 1:
        executor.parameters["map_count"] = num_elements
    return executor._make_submission_file_text(executor._submitit_command_str, "").rstrip() + "\n"


def submit_to_slurm(jobs: Sequence[Any], plan: Plan) -> str:
    """Queues a job, or several as an array.

    Args:
        jobs: Callables that submitit can carry.
        plan: How each runs.

    Returns:
        SLURM's number.

    Raises:
        ConfigError: The container's image lacks a place to mount what the job needs.
        ResourceError: SLURM does not take it.
    """
    containers.check_mount_points(plan.site.container, needs=_shown(plan))
    executor = _slurm(plan)
    try:
        # submitit prints what sbatch says as well as raising it.
        with _without_job(), contextlib.redirect_stderr(io.StringIO()):
            if len(jobs) == 1:
                return str(executor.submit(jobs[0]).job_id)
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        raise ResourceError(
            f"SLURM does not take the job ({lines[-1].removeprefix('sbatch: ').removeprefix('error: ')})",
            where=f"cluster {plan.site.name}",
            mend="compare the script of --dry-run with what the site asks for",
        ) from error
    return str(submitted[0].job_id).partition("_")[0]


def withdraw(number: str) -> None:
    """Takes a job out of SLURM's queue whose successors could not be queued."""
    subprocess.run(["scancel", number], check=False, capture_output=True, timeout=30)


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
            mend="--set resources.nodes=1, or name a --cluster",
        )
    executor = _Detached(plan.folder, max_num_timeout=plan.site.max_requeues, python=_python(plan))
    executor.update_parameters(
        tasks_per_node=request.tasks_per_node,
        gpus_per_node=request.gpus_per_node,
        timeout_min=request.timeout_min,
        signal_delay_s=request.signal_delay_s,
        setup=[*plan.site.setup, *_exports(plan)],
    )
    with _without_job():
        return int(executor.submit(job).job_id)


@contextlib.contextmanager
def _without_job() -> Iterator[None]:
    """Hides the job that this process may run in: one that it submits would take over its limits."""
    configuration = os.environ.get("SLURM_CONF")
    with clean_env():
        if configuration is not None:
            os.environ["SLURM_CONF"] = configuration
        yield


def slurm_answers() -> bool:
    """Whether there is a SLURM to submit to."""
    if shutil.which("sbatch") is None:
        return False
    try:
        return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _slurm(plan: Plan) -> _Slurm:
    request, site = plan.request, plan.site
    executor = _Slurm(plan.folder, max_num_timeout=site.max_requeues, python=_python(plan))
    further: dict[str, str | bool] = {"requeue": True, **site.sbatch}
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
        "setup": [*site.setup, *_exports(plan)],
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
    if site.container.runtime != "none":
        parameters["teardown"] = _requeue_lines(plan.folder)
    # A line break in what becomes a comment for sbatch would begin a command.
    for value in (*_texts({k: v for k, v in parameters.items() if k != "setup"}), str(plan.folder)):
        if not value.isprintable():
            raise ConfigError(
                "holds a line break or another character that is not printable",
                where=repr(value),
                mend="leave it out of paths, names and options of a job",
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


def _requeue_lines(folder: Path) -> list[str]:
    """The end of a batch script whose job cannot call SLURM: it requeues the job when that asks for it."""
    asked = f"{shlex.quote(str(folder))}/$SLURM_JOB_ID.requeue"
    return [
        "code=$?",
        f'if [ -e {asked} ]; then rm {asked}; scontrol requeue "$SLURM_JOB_ID"; fi',
        "exit $code",
    ]
