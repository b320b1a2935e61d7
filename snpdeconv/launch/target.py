"""Where a job goes: SLURM or this machine, which partition, and whether it could ever run there."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import Literal

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError
from snpdeconv.launch.executor import Plan, sbatch_script, slurm_answers
from snpdeconv.launch.inventory import check_script
from snpdeconv.launch.records import jobs_dir
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


def choose_target(
    config: Config, *, site: Site, one_process: bool = False, num_elements: int = 1, trains: bool = True
) -> Target:
    """Where a job goes, after a look at what there is.

    Args:
        config: The settings.
        site: Where the user wants it.
        one_process: For work that one process does.
        num_elements: Of an array.
        trains: Whether it trains, which takes long without the GPUs that are asked for.

    Raises:
        ConfigError: It could never run there.
        ResourceError: The site is a SLURM cluster, and SLURM does not answer.
    """
    request = make_request(config, one_process=one_process)
    if site.scheduler == "local" or (site.scheduler == "auto" and not slurm_answers()):
        return Target(site, "local", _fit_to_machine(request, config, trains=trains))
    plan = Plan(name="snpdeconv-test", request=request, site=site, folder=jobs_dir() / "test" / "log")
    partition = check_script(sbatch_script(plan, num_elements=num_elements), request=request, site=site)
    if partition:
        site = site.model_copy(update={"partition": partition, "gpu_partition": None})
    return Target(site, "slurm", request)


def _fit_to_machine(request: Request, config: Config, *, trains: bool) -> Request:
    """One process for each GPU that is here; a training on fewer than it asks for is refused."""
    if request.gpus_per_node == 0:
        return request
    import torch

    here = min(request.gpus_per_node, torch.cuda.device_count())
    if here < request.gpus_per_node and trains and config.resources.device != "cpu":
        raise ConfigError(
            f"the job asks for {request.gpus_per_node} GPUs, and this machine has {here or 'none'}",
            where="resources.gpus_per_node",
            mend=f"--set resources.gpus_per_node={here}"
            + ("" if here else " trains on the CPU")
            + ", or name a --cluster",
        )
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
