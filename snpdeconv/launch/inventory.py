"""Whether SLURM would take a job: it is asked itself (`sbatch --test-only`), with the very script.

Mistakes that would leave a job pending for good end here, in one line, before anything is queued.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass

from snpdeconv.errors import ConfigError, ResourceError, nearest
from snpdeconv.launch.request import Request
from snpdeconv.launch.scheduler import run_slurm, what_slurm_says
from snpdeconv.launch.site import Site

logger = logging.getLogger(__name__)

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
    """Refuses what SLURM would refuse, or would let wait for ever.

    Args:
        script: What sbatch will get.
        request: What it asks for.
        site: Where.

    Returns:
        The partition, or the list of them, that the job goes to.

    Raises:
        ConfigError: SLURM does not take it, or its time is longer than the partition allows.
        ResourceError: SLURM does not answer.
    """
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
            mend="submit from a login node, or use --cluster local",
        )
    unknown = [name for name in names if name and not any(group.partition == name for group in groups)]
    if unknown and groups:
        raise ConfigError(
            f"SLURM would not take the job ({said})",
            where=where,
            mend=f"--partition: {nearest(unknown[0], {group.partition for group in groups})}",
        )
    if any(group.state.startswith(_OUT_OF_SERVICE) for group in here):
        # Nodes that are away count as none in a trial; the queue itself takes the job, or refuses it.
        logger.warning("%s: %s, with some of the nodes out of service; the job may wait", where, said)
        return ",".join(names)
    there = "; ".join(sorted({group.what for group in here}))
    raise ConfigError(
        f"SLURM would not take the job ({said})",
        where=where,
        mend=f"it asks for {_asked(request, site)}" + (f"; nodes there have {there}" if there else ""),
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
            mend=f"--set resources.timeout_min={max(known)}; a training goes on by itself in the next turn",
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
