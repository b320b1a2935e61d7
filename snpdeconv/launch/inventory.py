"""What SLURM says that it has (`sinfo`), and whether a request can ever run on it.

Mistakes that would leave a job pending for good end here, in one line.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from snpdeconv.errors import ConfigError, nearest
from snpdeconv.launch.request import Request
from snpdeconv.launch.site import Site

logger = logging.getLogger(__name__)

_COMMAND = ("sinfo", "--noheader", "--exact", "--format=%P|%a|%l|%D|%c|%m|%G|%f|%t")
_TIMEOUT_S = 30.0
_OUT_OF_SERVICE = ("down", "drain", "drng", "fail", "maint", "unk", "inval")


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one partition that are alike.

    Attributes:
        partition: Its name.
        is_default: Whether jobs that name no partition go there.
        is_up: Whether the partition starts jobs.
        limit_min: Its longest time limit; None for none.
        count: Number of nodes.
        cpus: Cores of each.
        mem_gib: Memory of each.
        gpus: GPUs of each, by type; a type of "" where none is told.
        features: What a constraint may ask for.
        in_service: Whether they take jobs at all now.
    """

    partition: str
    is_default: bool
    is_up: bool
    limit_min: int | None
    count: int
    cpus: int
    mem_gib: float
    gpus: dict[str, int]
    features: frozenset[str]
    in_service: bool


def read_inventory() -> list[NodeGroup] | None:
    """Asks SLURM; None if it does not answer."""
    try:
        answer = subprocess.run(
            _COMMAND, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        logger.debug("sinfo: %s", error)
        return None
    return parse_inventory(answer)


def parse_inventory(text: str) -> list[NodeGroup]:
    """The node groups in an answer of sinfo."""
    return [_group(*line.split("|")) for line in text.splitlines() if line.count("|") == 8]


def _group(
    partition: str, up: str, limit: str, count: str, cpus: str, mem: str, gres: str, features: str, state: str
) -> NodeGroup:
    return NodeGroup(
        partition=partition.removesuffix("*"),
        is_default=partition.endswith("*"),
        is_up=up == "up",
        limit_min=minutes(limit),
        count=int(count),
        cpus=int(cpus.rstrip("+")),
        mem_gib=int(mem.rstrip("+")) / 1024,
        gpus=_gpus(gres),
        features=frozenset(features.split(",")) - {"(null)"},
        in_service=not state.startswith(_OUT_OF_SERVICE),
    )


def minutes(limit: str) -> int | None:
    """A time limit as SLURM writes it (``1-02:00:00``, ``30:00``, ``infinite``) in minutes; None for none."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return None
    days, hours, mins, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + mins + (seconds > 0)


def _gpus(gres: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for kind, count in re.findall(r"gpu(?::([A-Za-z][\w.-]*))?:(\d+)", gres):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def check_request(request: Request, *, site: Site, groups: Iterable[NodeGroup]) -> str:
    """Refuses what could never start.

    Args:
        request: What the job asks for.
        site: Where.
        groups: What there is.

    Returns:
        The partition that the job goes to.

    Raises:
        ConfigError: No such partition, its limit is shorter, or too few of its nodes are large enough.
    """
    groups = list(groups)
    name = site.partition_for(gpus_per_node=request.gpus_per_node)
    where = f"cluster {site.name}"
    if name is None:
        name = next((group.partition for group in groups if group.is_default), None)
        if name is None:
            names = sorted({group.partition for group in groups})
            raise ConfigError("has no default partition", where=where, mend=f"--partition {names[0]}")
    here = [group for group in groups if group.partition == name]
    if not here:
        raise ConfigError(
            f"there is no partition '{name}'", where=where, mend=nearest(name, {g.partition for g in groups})
        )
    if not any(group.is_up for group in here):
        raise ConfigError(
            f"partition '{name}' starts no jobs now (its state is not up)",
            where=where,
            mend="take another with --partition",
        )
    limit = max((group.limit_min or request.timeout_min for group in here), default=None)
    if limit is not None and request.timeout_min > limit:
        raise ConfigError(
            f"the job may take {request.timeout_min} min, and partition '{name}' allows {limit}",
            where=where,
            mend=f"--set resources.timeout_min={limit}; a training job goes on by itself in the next turn",
        )
    _check_nodes(request, site=site, here=here, where=where)
    return name


def _check_nodes(request: Request, *, site: Site, here: list[NodeGroup], where: str) -> None:
    asked_gpus = 0 if site.gpu_request == "none" else request.gpus_per_node
    asked_cpus = request.tasks_per_node * request.cpus_per_task
    # Of a constraint with | or counts only SLURM knows the meaning.
    constraint = site.constraint or ""
    features = set(constraint.split("&")) if re.fullmatch(r"[\w.&-]+", constraint) else set()

    def gpus(group: NodeGroup) -> int:
        if site.gpu_type is not None:
            return group.gpus.get(site.gpu_type, 0)
        return sum(group.gpus.values())

    name = here[0].partition
    having = [group for group in here if features <= group.features]
    if not having:
        known = sorted(set().union(*(group.features for group in here)))
        raise ConfigError(
            f"no node of partition '{name}' has the features {site.constraint}",
            where=where,
            mend=f"its nodes have {', '.join(known) or 'none'}",
        )
    for what, key, asked, largest in (
        ("GPUs a node", "gpus_per_node", asked_gpus, max(map(gpus, having))),
        ("CPUs a node", "cpus_per_task", asked_cpus, max(group.cpus for group in having)),
        ("GiB of memory a node", "mem_gib", request.mem_gib, max(int(group.mem_gib) for group in having)),
    ):
        if asked > largest:
            most = largest // request.tasks_per_node if key == "cpus_per_task" else largest
            other = " or another --partition" if key != "gpus_per_node" else ", or a --partition with GPUs"
            raise ConfigError(
                f"the job asks for {asked} {what}, and partition '{name}' has at most {largest}",
                where=where,
                mend=f"--set resources.{key}={most}{other}",
            )
    fitting = [
        group
        for group in having
        if gpus(group) >= asked_gpus and group.cpus >= asked_cpus and group.mem_gib >= request.mem_gib
    ]
    count = sum(group.count for group in fitting)
    if count < request.nodes:
        raise ConfigError(
            f"the job asks for {request.nodes} nodes, and {count} of partition '{name}' are large enough",
            where=where,
            mend=f"--set resources.nodes={max(1, count)}, or ask for less on each",
        )
    free = sum(group.count for group in fitting if group.in_service)
    if free < request.nodes:
        logger.warning(
            "%s: %d of the %d nodes that could run the job are in service; it will wait", where, free, count
        )
