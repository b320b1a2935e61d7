"""Where a job goes: SLURM or this machine, which partition, and whether it could ever run there."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import Literal

from snpdeconv.config import Config
from snpdeconv.errors import ResourceError
from snpdeconv.launch.executor import slurm_answers
from snpdeconv.launch.inventory import check_request, read_inventory
from snpdeconv.launch.request import Request, make_request
from snpdeconv.launch.site import Site
from snpdeconv.tracking.home import is_database, shown, sqlite_path, tracking_uri

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """Where a job goes.

    Attributes:
        site: With the partition that was settled on.
        scheduler: slurm, or local for a process of this machine.
        request: What the job asks for.
    """

    site: Site
    scheduler: Literal["slurm", "local"]
    request: Request


def choose_target(config: Config, *, site: Site, one_process: bool = False) -> Target:
    """Where a job goes, after a look at what there is.

    Args:
        config: The settings.
        site: Where the user wants it.
        one_process: For work that one process does.

    Raises:
        ConfigError: It could never run there.
        ResourceError: The site is a SLURM cluster, and SLURM does not answer.
    """
    request = make_request(config, one_process=one_process)
    if site.scheduler == "local" or (site.scheduler == "auto" and not slurm_answers()):
        return Target(site, "local", _fit_to_machine(request))
    groups = read_inventory()
    if groups is None:
        raise ResourceError(
            "SLURM does not answer (sinfo)",
            where=f"cluster {site.name}",
            mend="submit from a login node, or use --cluster local",
        )
    partition = check_request(request, site=site, groups=groups)
    return Target(site.model_copy(update={"partition": partition, "gpu_partition": None}), "slurm", request)


def _fit_to_machine(request: Request) -> Request:
    """One process for each GPU that is here; one where there is none."""
    if request.gpus_per_node == 0:
        return request
    import torch

    here = min(request.gpus_per_node, torch.cuda.device_count())
    if here < request.gpus_per_node:
        logger.info("%d GPUs are asked for and %d are here", request.gpus_per_node, here)
    return replace(request, gpus_per_node=here, tasks_per_node=max(1, here))


def track_at(site: Site) -> None:
    """Points this process at the site's tracking server; warns of a database that machines share as a file.

    Raises:
        ConfigError: The address is none.
    """
    if site.tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = site.tracking_uri
    uri = tracking_uri()
    if site.scheduler != "local" and is_database(uri) and sqlite_path(uri) and slurm_answers():
        logger.warning(
            "runs are tracked in %s: an sqlite file is for one machine; "
            "set tracking_uri in the cluster's file to an MLflow server",
            shown(uri),
        )
