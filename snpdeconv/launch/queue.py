"""A submission on its way: its record, the files that a job is given, and the queue that takes it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError
from snpdeconv.files import private_folder, write_text
from snpdeconv.launch import slurm
from snpdeconv.launch.jobs import Job, SequentialJobs
from snpdeconv.launch.records import Kind, Record, discard, jobs_dir, new_record, save
from snpdeconv.launch.scheduler import check_script, cluster_name, find_number
from snpdeconv.launch.site import Request, Site, make_request
from snpdeconv.launch.slurm import Plan, sbatch_script, slurm_answers
from snpdeconv.launch.status import read_status
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.tracking.home import home, is_database, redact_password, sqlite_path, tracking_uri

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
            hint=f"--set resources.gpus_per_node={here}"
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
            redact_password(uri),
        )


_ARRIVES_S = 20.0
_NAMED: tuple[Kind, ...] = ("rank", "register", "retrain", "search")
"""Kinds of which a job's name tells."""


def launch(
    jobs: Sequence[Job],
    record: Record,
    target: Target,
    *,
    needs: Sequence[Path],
    after: Sequence[Record] = (),
) -> Record:
    """Queues jobs, or starts them here, and completes their record.

    Args:
        jobs: One, or the elements of an array.
        record: From `make_record`.
        target: Where they go.
        needs: Files and folders that a container must see.
        after: Submissions that must have ended well before.

    Raises:
        UserError: It cannot be queued, or nobody knows whether it is.
    """
    plan = Plan(
        name=f"snpdeconv-{record.id}",
        request=target.request,
        site=target.site,
        folder=record.log_folder,
        needs=tuple(needs),
        after=tuple(earlier.scheduler_id for earlier in after if earlier.scheduler == "slurm"),
    )
    if target.scheduler == "slurm":
        record = replace(record, job_name=slurm.job_name(plan.name), cluster=cluster_name())
        save(record)
        number = slurm.submit_to_slurm(jobs, plan) or _await_number(record)
        record = replace(record, scheduler_id=number)
    else:
        save(record)
        pid = slurm.submit_here(jobs[0] if len(jobs) == 1 else SequentialJobs(tuple(jobs)), plan)
        record = replace(record, scheduler_id=str(pid), process_created=psutil.Process(pid).create_time())
    save(record)
    return record


def still_to_wait_for(after: Sequence[Record], target: Target) -> list[Record]:
    """The jobs before this one that are not done yet.

    Raises:
        ConfigError: One of them will never be done, or nobody here can tell when.
    """
    waiting = []
    for now in read_status(after):
        name = now.record.id
        if now.state in ("failed", "cancelled"):
            raise ConfigError(
                f"{name} {now.state} ({now.reason}), so that nothing after it would start",
                where="--after",
                hint="leave it out, or submit that one again first",
            )
        if now.state == "unknown":
            raise ConfigError(f"{name}: {now.reason}", where="--after", hint="submit where it is known")
        if now.is_live and now.record.scheduler == "local" and target.scheduler == "slurm":
            raise ConfigError(
                f"{name} is a process of this machine, and SLURM cannot wait for it",
                where="--after",
                hint="submit when it is done, or use --cluster local",
            )
        if now.is_live:
            waiting.append(now.record)
    return waiting


def _await_number(record: Record) -> str:
    """The number of a job whose submission timed out: SLURM may have taken it all the same."""
    deadline = time.monotonic() + _ARRIVES_S
    while not (number := find_number(record)):
        if time.monotonic() > deadline:
            raise slurm.Unanswered(
                "SLURM has timed out, and does not show the job yet",
                where=record.id,
                hint=f"`snpdeconv status {record.id}` tells whether it took it; submit it again if not",
            )
        time.sleep(1.0)
    logger.info("SLURM has timed out, and has taken the job all the same (%s)", number)
    return number


@contextlib.contextmanager
def discarding(record: Record) -> Iterator[None]:
    """For a submission: what does not come about leaves no record and no empty folder of results."""
    out = Path(record.out)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    except slurm.Unanswered:
        raise
    except BaseException:
        discard(record)
        for folder in made:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()
        raise


def make_record(
    kind: Kind,
    config: Config,
    target: Target,
    *,
    model: str,
    command: str,
    after: Sequence[Record] = (),
) -> Record:
    """A new record, with its folder, of what is about to be submitted.

    Args:
        kind: What it does.
        config: Its settings.
        target: Where it goes.
        model: The model's name, or NAME/version.
        command: What the user typed.
        after: Submissions that it waits for.
    """
    return new_record(
        Record(
            id=slurm.job_name("-".join([model.partition("/")[0], *([kind] if kind in _NAMED else [])])),
            kind=kind,
            preset=config.preset,
            model=model,
            out="",
            site=target.site.name,
            scheduler=target.scheduler,
            command=command,
            submitted=time.time(),
            host="",
            partition=(target.site.partition or "") if target.scheduler == "slurm" else "",
            num_tasks=target.request.num_tasks,
            epochs=0 if kind == "predict" else config.training.epochs,
            after=tuple(earlier.id for earlier in after),
        )
    )


def write_settings(record: Record, config: Config) -> Path:
    """Freezes the settings, with the preset's name, by which a run is told from another."""
    path = record.folder / "settings.yaml"
    write_text(path, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    return path


def write_files(record: Record, config: Config, inputs: Inputs) -> dict[str, Any]:
    """Freezes settings and inputs of a training; gives their files as a job names them."""
    settings = write_settings(record, config)
    path = record.folder / "inputs.json"
    write_text(path, json.dumps(asdict(inputs), indent=2) + "\n")
    return {"settings": str(settings), "inputs": str(path)}


def common_facts(record: Record, target: Target) -> dict[str, Any]:
    """What every job is told."""
    return {
        "record": str(record.folder),
        "notice_s": target.request.signal_delay_s,
        "in_container": target.site.container.runtime != "none",
    }


def needs_of(inputs: Inputs, out: Path) -> tuple[Path, ...]:
    """Folders that a container must see of a training."""
    lists = (inputs.keep, inputs.remove, inputs.extract, inputs.exclude)
    tables = (inputs.genotypes, inputs.phenotypes, inputs.covariates, inputs.blocks, *lists)
    return (out.parent, *(Path(table).parent for table in tables if table is not None))


def results_folder(site: Site) -> Path:
    """Where results go that the user named no folder for: the site's folder for them, or the home."""
    if site.folder is not None:
        return Path(site.folder).absolute()
    return private_folder(home() / "results")
