"""How a job gets to SLURM or to a process of this machine: its sbatch script, environment and container.

submitit carries the job and starts it again; the script, and the process that looks after a local job, are
ours. `Plan` has all that the script depends on, so that a dry run prints the one that would be queued.
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from submitit.core.utils import JobPaths
from submitit.helpers import DelayedSubmission, clean_env

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
_MOST_AT_ONCE = 256
"""Elements of an array that run at the same time."""


@dataclass(frozen=True)
class Plan:
    """How a job, or each element of an array, is to run.

    Attributes:
        name: What the scheduler calls it, through `job_name`.
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

    @property
    def mounted(self) -> list[Path]:
        """All that the job reads or writes."""
        return [home(), self.folder, *self.needs]


def job_name(name: str) -> str:
    """A name as schedulers, scripts and paths take it; it may come from a trait or from a server."""
    return re.sub(r"[^\w.+-]", "-", name)


def sbatch_script(plan: Plan, *, num_elements: int = 1) -> str:
    """What `submit_to_slurm` hands to sbatch; needs no SLURM."""
    request, site = plan.request, plan.site
    number, place, log = "$SLURM_JOB_ID", "0", f"{plan.folder}/%j_%t_log.out"
    options: dict[str, Any] = {
        "job_name": job_name(plan.name),
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus_per_task,
        "mem": f"{request.mem_gib}G",
        "time": request.timeout_min,
        "signal": f"USR2@{request.signal_delay_s}",
        "partition": site.partition_for(gpus_per_node=request.gpus_per_node),
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "open-mode": "append",
        "requeue": True,
        **_gpus(plan),
    }
    if num_elements > 1:
        number, place = "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "$SLURM_ARRAY_TASK_ID"
        log = f"{plan.folder}/%A_%a_%t_log.out"
        options["array"] = f"0-{num_elements - 1}%{min(num_elements, _MOST_AT_ONCE)}"
    options["output"] = log.replace("%t", "0")
    given = {option: value for option, value in site.sbatch.items() if value is not False}
    if "no-requeue" in given:
        given["no-requeue"] = True
        del options["requeue"]
    options |= given
    if plan.after:
        options |= {"dependency": "afterok:" + ":".join(plan.after), "kill-on-invalid-dep": "yes"}
    options = {option: value for option, value in options.items() if value is not None and value is not False}
    srun = [
        *("srun", "--unbuffered", "--output", log),
        # srun takes the CPUs of a task not from sbatch (since SLURM 22.05).
        f"--cpus-per-task={request.cpus_per_task}",
        # Without it a rank that fails would leave the others waiting for it.
        "--kill-on-bad-exit=1",
        *containers.srun_options(site.container, needs=plan.mounted, variables=_variables(plan)),
    ]
    # A line break in what becomes a comment for sbatch would begin a command.
    for value in (str(plan.folder), *options, *options.values(), *srun):
        if isinstance(value, str) and has_control(value):
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
    where = shlex.quote(str(plan.folder))
    lines = [
        "#!/bin/bash",
        *("", "# Parameters", *(_sbatch_line(option, options[option]) for option in sorted(options))),
        *("", "# setup", *site.setup, *_exports(plan)),
        # The job is given what it is to do under its number, which may not have been heard at submission.
        f'job={where}/"{number}"',
        'rm -f "$job.exit"',
        f'[ -e "${{job}}_submitted.pkl" ] || cp -p {where}/"{place}.pkl" "${{job}}_submitted.pkl"',
        *("", "# command", "export SUBMITIT_EXECUTOR=slurm", f"{shlex.join(srun)} {_command(plan)}", ""),
        *("", "# teardown", "code=$?", 'echo "$code" >"$job.exit"'),
        *(_REQUEUE if site.container.runtime != "none" else ()),
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def _sbatch_line(option: str, value: Any) -> str:
    given = "" if value is True else f"={shlex.quote(str(value))}"
    return f"#SBATCH --{option.replace('_', '-')}{given}"


class Unanswered(ResourceError):
    """SLURM may have taken a job, and has not said so: its record stays, and finds it by its name."""


def submit_to_slurm(jobs: Sequence[Any], plan: Plan) -> str:
    """Queues a job, or several as an array; gives SLURM's number, "" if it timed out and the queue must tell.

    Ctrl-C withdraws the job and is raised again; where the user does not wait for that, `Unanswered`.
    """
    containers.check_mount_points(plan.site.container, needs=plan.mounted)
    for place, job in enumerate(jobs):
        _write_job(job, plan, plan.folder / f"{place}.pkl")
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

    Gives its answer, and whether the user pressed Ctrl-C.
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
    """Starts a job on this machine, in processes of its own; gives the number of the one that looks after it.

    That one outlives the terminal, and keeps none of its streams open.
    """
    containers.check_mount_points(plan.site.container, needs=plan.mounted)
    request = plan.request
    if request.nodes > 1:
        raise ConfigError(
            f"the job asks for {request.nodes} nodes, and there is no SLURM here",
            where="resources.nodes",
            hint="--set resources.nodes=1, or name a --cluster",
        )
    limits = [str(60 * request.timeout_min), str(request.signal_delay_s)]
    words = [sys.executable, "-P", "-m", "snpdeconv.launch.local_supervisor", str(plan.folder), *limits, "--"]
    script = [*plan.site.setup, *_exports(plan), f"exec {shlex.join(words)} {_command(plan)}"]
    written = plan.folder / "0.pkl"
    _write_job(job, plan, written)
    with clean_env():  # of the job that this process may run in
        process = subprocess.Popen(
            ["/bin/bash", "-c", " && ".join(script)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": _local_gpus(request.gpus_per_node)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    written.rename(JobPaths(plan.folder, str(process.pid)).submitted_pickle)  # the job waits for it
    return process.pid


def _write_job(job: Any, plan: Plan, path: Path) -> None:
    payload = DelayedSubmission(job)
    payload.set_timeout(plan.request.timeout_min, plan.site.max_requeues)
    payload.dump(path)


def _local_gpus(count: int) -> str:
    """The first `count` of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(count))) if visible is None else visible.split(",")
    return ",".join(names[:count])


def slurm_answers() -> bool:
    """Whether there is a SLURM to submit to."""
    if shutil.which("sbatch") is None:
        return False
    return run_slurm(["scontrol", "ping"]).returncode == 0


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


def _command(plan: Plan) -> str:
    """What each process of the job is, quoted for a shell: in the container where there is one."""
    container, python = plan.site.container, shlex.quote(sys.executable)
    if container.runtime != "none":
        python = containers.interpreter(
            container,
            needs=plan.mounted,
            variables=_variables(plan),
            with_gpus=plan.request.gpus_per_node > 0,
        )
    # Without -P a module of the working folder would take the place of ours.
    return f"{python} -P -u -m snpdeconv.launch.entry {shlex.quote(str(plan.folder))}"
