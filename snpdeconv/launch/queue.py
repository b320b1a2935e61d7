"""A submission on its way: its record, the files that a job is given, and the queue that takes it."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import yaml

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError
from snpdeconv.files import private_folder, write_text
from snpdeconv.launch import executor
from snpdeconv.launch.executor import Plan
from snpdeconv.launch.jobs import InTurn, Job
from snpdeconv.launch.records import Kind, Record, discard, new_record, save
from snpdeconv.launch.scheduler import cluster_name, find_number
from snpdeconv.launch.site import Site
from snpdeconv.launch.status import read_status
from snpdeconv.launch.target import Target
from snpdeconv.pipelines.inputs import Inputs
from snpdeconv.tracking.home import home

logger = logging.getLogger(__name__)

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
        record = replace(record, job_name=executor.job_name(plan.name), cluster=cluster_name())
        save(record)
        number = executor.submit_to_slurm(jobs, plan) or _await_number(record)
        record = replace(record, scheduler_id=number)
    else:
        save(record)
        pid = executor.submit_here(jobs[0] if len(jobs) == 1 else InTurn(tuple(jobs)), plan)
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
                mend="leave it out, or submit that one again first",
            )
        if now.state == "unknown":
            raise ConfigError(f"{name}: {now.reason}", where="--after", mend="submit where it is known")
        if now.is_live and now.record.scheduler == "local" and target.scheduler == "slurm":
            raise ConfigError(
                f"{name} is a process of this machine, and SLURM cannot wait for it",
                where="--after",
                mend="submit when it is done, or use --cluster local",
            )
        if now.is_live:
            waiting.append(now.record)
    return waiting


def _await_number(record: Record) -> str:
    """The number of a job whose submission timed out: SLURM may have taken it all the same."""
    deadline = time.monotonic() + _ARRIVES_S
    while not (number := find_number(record)):
        if time.monotonic() > deadline:
            raise executor.Unanswered(
                "SLURM has timed out, and does not show the job yet",
                where=record.id,
                mend=f"`snpdeconv status {record.id}` tells whether it took it; submit it again if not",
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
    except executor.Unanswered:
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
            id=executor.job_name("-".join([model.partition("/")[0], *([kind] if kind in _NAMED else [])])),
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
