"""From what a user asked to a job in the queue: where it goes, its record, its files and its plan.

What could fail is looked at before anything is queued. `plan` is the one way to a script, for submissions
and for dry runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from snpdeconv.config import Config, Stage
from snpdeconv.errors import ConfigError
from snpdeconv.files import private_folder, write_text
from snpdeconv.launch import slurm
from snpdeconv.launch.inputs import check_genotypes, check_tables
from snpdeconv.launch.jobs import Job, PredictJob, RetrainJob, SequentialJobs, TrainJob
from snpdeconv.launch.records import Kind, Record, discard, jobs_dir, new_record, save
from snpdeconv.launch.scheduler import check_script, cluster_name, find_number
from snpdeconv.launch.site import Request, Site, make_request
from snpdeconv.launch.slurm import Plan, sbatch_script, slurm_answers
from snpdeconv.launch.status import read_status
from snpdeconv.pipelines.run_folder import Inputs, RunFolder, run_settings
from snpdeconv.tracking.home import home, is_database, redact_password, sqlite_path, tracking_uri
from snpdeconv.tracking.registry import check_model_name, resolve

logger = logging.getLogger(__name__)

_ARRIVES_S = 20.0
_NAMED: tuple[Kind, ...] = ("rank", "register", "retrain", "search")
"""Kinds of which a job's name tells."""


@dataclass(frozen=True)
class Target:
    """Where a job goes, and what it asks for there; the site has the partition that was settled on."""

    site: Site
    scheduler: Literal["slurm", "local"]
    request: Request


def choose_target(
    config: Config, *, site: Site, one_process: bool = False, num_elements: int = 1, trains: bool = True
) -> Target:
    """Where a job goes, after a look at what there is; one that could never run there is refused.

    One that does not train may have fewer GPUs than it asks for: it takes little longer without.
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
    """Points this process at the site's tracking server; warns of a file that machines would share."""
    if site.tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = site.tracking_uri
    uri = tracking_uri()
    if site.scheduler != "local" and is_database(uri) and sqlite_path(uri) and slurm_answers():
        logger.warning(
            "runs are tracked in %s: an sqlite file is for one machine; "
            "set tracking_uri in the cluster's file to an MLflow server",
            redact_password(uri),
        )


def plan(record: Record, target: Target, *, needs: Sequence[Path], after: Sequence[Record] = ()) -> Plan:
    """How the jobs of a record are to run."""
    return Plan(
        name=f"snpdeconv-{record.id}",
        request=target.request,
        site=target.site,
        folder=record.log_folder,
        needs=tuple(needs),
        after=tuple(earlier.scheduler_id for earlier in after if earlier.scheduler == "slurm"),
    )


def enqueue(
    jobs: Sequence[Job],
    record: Record,
    target: Target,
    *,
    needs: Sequence[Path],
    after: Sequence[Record] = (),
) -> Record:
    """Queues jobs, or starts them here, and completes their record."""
    how = plan(record, target, needs=needs, after=after)
    if target.scheduler == "slurm":
        record = replace(record, job_name=slurm.job_name(how.name), cluster=cluster_name())
        save(record)
        number = slurm.submit_to_slurm(jobs, how) or _await_number(record)
        record = replace(record, scheduler_id=number)
    else:
        save(record)
        pid = slurm.submit_here(jobs[0] if len(jobs) == 1 else SequentialJobs(tuple(jobs)), how)
        record = replace(record, scheduler_id=str(pid), process_created=psutil.Process(pid).create_time())
    save(record)
    return record


def still_to_wait_for(after: Sequence[Record], target: Target) -> list[Record]:
    """The jobs before this one that are not done yet; refuses one that never will, or is unknown here."""
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


def _draft(
    kind: Kind, config: Config, target: Target, *, model: str, command: str, after: Sequence[Record]
) -> Record:
    """The record of a submission but for its own name and folders; the ID is what its name begins with."""
    name = model.partition("/")[0] if kind == "predict" else model
    return Record(
        id=slurm.job_name(f"{name}-{kind}" if kind in _NAMED else name),
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


def make_record(
    kind: Kind,
    config: Config,
    target: Target,
    *,
    model: str,
    command: str,
    out: Path | None = None,
    after: Sequence[Record] = (),
) -> Record:
    """A new record, with its folder, of what is about to be submitted; its `out` is absolute."""
    if out is None and target.site.folder is None:
        private_folder(home() / "results")
    record = new_record(_draft(kind, config, target, model=model, command=command, after=after))
    return replace(record, out=str(_results(record, target.site, out)))


def _results(record: Record, site: Site, out: Path | None) -> Path:
    """Where results go: what the user named, else a folder of the job's name at the site, or in the home."""
    if out is not None:
        return out.absolute()
    return (home() / "results" if site.folder is None else Path(site.folder).absolute()) / record.id


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


def files_of(inputs: Inputs) -> tuple[str | None, ...]:
    """All files that a training reads."""
    lists = (inputs.keep, inputs.remove, inputs.extract, inputs.exclude)
    return (inputs.genotypes, inputs.phenotypes, inputs.covariates, inputs.blocks, *lists)


def needs_of(record: Record, files: Iterable[str | Path | None]) -> tuple[Path, ...]:
    """Folders that a container must see: that of the results, and those of the files that a job reads."""
    out = Path(record.out)
    read = (Path(file).absolute().parent for file in files if file is not None)
    return (out if record.kind == "predict" else out.parent, *read)


def show_script(
    kind: Kind,
    config: Config,
    *,
    model: str,
    site: Site,
    out: Path | None,
    files: Iterable[str | Path | None],
    num_elements: int = 1,
    after: Sequence[Record] = (),
) -> str:
    """The script that a submission (its first stage) would queue, but for the date; asks no SLURM.

    Where the site names no partition, the queued one names that which SLURM chose.
    """
    target = Target(site, "slurm", make_request(config, one_process=kind in ("predict", "search")))
    record = _draft(kind, config, target, model=model, command="", after=())
    record = replace(record, id=f"{record.id}-DATE-TIME")
    record = replace(record, out=str(_results(record, site, out)))
    return sbatch_script(
        plan(record, target, needs=needs_of(record, files), after=after), num_elements=num_elements
    )


def submit_train(
    config: Config,
    inputs: Inputs,
    *,
    model_name: str,
    out: Path | None,
    site: Site,
    command: str,
    in_stages: bool = False,
    after: Sequence[Record] = (),
) -> list[Record]:
    """Submits a training, or one in stages: jobs that train, rank and register, each after the one before.

    Where there is no SLURM, one job does all. Gives what was submitted, in order; if one cannot be, none is.
    """
    check_model_name(model_name)
    track_at(site)
    target = choose_target(config, site=site)
    after = still_to_wait_for(after, target)
    on_slurm = target.scheduler == "slurm"
    if in_stages and not on_slurm:
        logger.info("there is no SLURM here: one job does all stages")
    steps: list[tuple[Kind, Target, Stage]] = [("train", target, "register")]
    if in_stages and on_slurm:
        on_one = choose_target(config, site=site, one_process=True)
        resources = config.resources.model_copy(update={"gpus_per_node": 0})
        without_gpu = config.model_copy(update={"resources": resources})
        light = on_one
        if config.resources.device != "cuda":
            light = choose_target(without_gpu, site=site, one_process=True)
        steps = [("train", target, "train"), ("rank", on_one, "rank"), ("register", light, "register")]
    records: list[Record] = []
    try:
        for kind, place, until in steps:
            before = [*records[-1:]] or after
            record = make_record(
                kind, config, place, model=model_name, command=command, out=out, after=before
            )
            out = Path(record.out)
            with discarding(record):
                if not records:
                    # Looks whether the folder is free, or holds this very run.
                    with RunFolder(out, settings=run_settings(config, model_name=model_name)):
                        pass
                files = write_files(record, config, inputs)
                job = TrainJob(
                    **common_facts(record, place), **files, model_name=model_name, out=str(out), until=until
                )
                needs = needs_of(record, files_of(inputs))
                records.append(enqueue([job], record, place, needs=needs, after=before))
    except BaseException:
        for record in records:
            slurm.withdraw(record.scheduler_id)
            discard(record)
        raise
    return records


def submit_retrain(
    config: Config,
    inputs: Inputs,
    *,
    model_name: str,
    out: Path | None,
    site: Site,
    command: str,
    force: bool = False,
) -> Record:
    """Submits a retraining, which ends at once when nothing has changed."""
    check_model_name(model_name)
    track_at(site)
    target = choose_target(config, site=site)
    record = make_record("retrain", config, target, model=model_name, command=command, out=out)
    with discarding(record):
        with RunFolder(Path(record.out), settings=run_settings(config, model_name=model_name)):
            pass
        job = RetrainJob(
            **common_facts(record, target),
            **write_files(record, config, inputs),
            model_name=model_name,
            out=record.out,
            force=force,
        )
        return enqueue([job], record, target, needs=needs_of(record, files_of(inputs)))


def submit_predict(
    config: Config,
    *,
    model: str,
    genotypes: Sequence[str],
    tables: Mapping[str, Path],
    trait: str | None,
    out: Path | None,
    site: Site,
    command: str,
    after: Sequence[Record] = (),
) -> Record:
    """Submits predictions of one cohort, or of several as an array, each to a table in the folder `out`.

    An alias of the model is resolved now, for all alike.
    """
    for cohort in genotypes:
        check_genotypes(Path(cohort))
    check_tables(tables, trait=trait)
    track_at(site)
    reference = resolve(model)
    version = f"{reference.name}/{reference.version}"
    target = choose_target(config, site=site, one_process=True, num_elements=len(genotypes), trains=False)
    after = still_to_wait_for(after, target)
    elements = tuple(str(Path(cohort).absolute()) for cohort in genotypes)
    record = make_record("predict", config, target, model=version, command=command, out=out, after=after)
    record = replace(record, elements=elements if len(elements) > 1 else ())
    folder = Path(record.out)
    with discarding(record):
        if folder.is_file():
            raise ConfigError("is a file", where=folder, hint="give a folder for the tables")
        folder.mkdir(parents=True, exist_ok=True)
        settings = write_settings(record, config)
        given = {name: str(path.absolute()) for name, path in tables.items()}
        jobs = [
            PredictJob(
                **common_facts(record, target),
                settings=str(settings),
                element=place if record.elements else None,
                model=version,
                genotypes=cohort,
                out=str(table),
                trait=trait,
                covariates=given.get("covariates"),
                phenotypes=given.get("phenotypes"),
                keep=given.get("keep"),
                remove=given.get("remove"),
            )
            for place, (cohort, table) in enumerate(zip(elements, _tables(folder, elements), strict=True))
        ]
        needs = needs_of(record, [*elements, *tables.values()])
        return enqueue(jobs, record, target, needs=needs, after=after)


def _tables(folder: Path, cohorts: Sequence[str]) -> list[Path]:
    """A table for each cohort, named after it; cohorts of one name are numbered."""
    names: list[str] = []
    for cohort in cohorts:
        name = Path(cohort).name
        for suffix in (".gz", ".bgz", ".vcf", ".bcf", ".bed", ".pgen"):
            name = name.removesuffix(suffix)
        names.append(name)
    taken = {name for name in names if names.count(name) == 1}
    tables = []
    for name in names:
        own, number = name, 0
        while names.count(name) > 1 and (own == name or own in taken):
            number += 1
            own = f"{name}-{number}"
        taken.add(own)
        tables.append(folder / f"{own}.tsv")
    return tables
