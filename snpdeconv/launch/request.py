"""What a job asks for: nodes, processes, memory and time. Knows no scheduler's words."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from snpdeconv.config import Config

logger = logging.getLogger(__name__)

_NOTICE_SHARE = 0.25


@dataclass(frozen=True)
class Request:
    """Resources of one job; of an array, those of each element.

    Attributes:
        nodes: Machines.
        tasks_per_node: Processes on each; one for each GPU, or one.
        gpus_per_node: GPUs on each.
        cpus_per_task: CPU cores of each process.
        mem_gib: Memory of each node.
        timeout_min: Time limit.
        signal_delay_s: How long before the limit the job is told, so that it saves and goes on later.
    """

    nodes: int
    tasks_per_node: int
    gpus_per_node: int
    cpus_per_task: int
    mem_gib: int
    timeout_min: int
    signal_delay_s: int

    @property
    def num_tasks(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks_per_node


def make_request(config: Config, *, one_process: bool = False) -> Request:
    """The request of a preset.

    Args:
        config: The settings.
        one_process: For work that one process does, with one GPU where the preset has any.
    """
    asked = config.resources
    gpus = min(1, asked.gpus_per_node) if one_process else asked.gpus_per_node
    # A delay of most of the limit would end the job as soon as it began.
    delay = min(asked.signal_delay_s, int(asked.timeout_min * 60 * _NOTICE_SHARE))
    if delay < asked.signal_delay_s:
        logger.info("the job is told %d s before its limit of %d min", delay, asked.timeout_min)
    return Request(
        nodes=1 if one_process else asked.nodes,
        tasks_per_node=max(1, gpus),
        gpus_per_node=gpus,
        cpus_per_task=asked.cpus_per_task,
        mem_gib=asked.mem_gib,
        timeout_min=asked.timeout_min,
        signal_delay_s=delay,
    )
