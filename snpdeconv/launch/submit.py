"""From what a user asked to a job in the queue, with its record; what could fail is looked at before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError
from snpdeconv.launch import executor
from snpdeconv.launch.data_folder import check_genotypes, check_tables
from snpdeconv.launch.executor import Plan
from snpdeconv.launch.jobs import PredictJob, RetrainJob, TrainJob
from snpdeconv.launch.queue import (
    common_facts,
    discarding,
    launch,
    make_record,
    needs_of,
    results_folder,
    still_to_wait_for,
    write_files,
    write_settings,
)
from snpdeconv.launch.records import Kind, Record, discard, jobs_dir
from snpdeconv.launch.request import make_request
from snpdeconv.launch.site import Site
from snpdeconv.launch.target import Target, choose_target, track_at
from snpdeconv.pipelines.inputs import Inputs
from snpdeconv.pipelines.run_folder import RunFolder, run_settings
from snpdeconv.pipelines.stages import Stage
from snpdeconv.tracking.registry import check_model_name, resolve

logger = logging.getLogger(__name__)


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

    Args:
        config: The settings.
        inputs: The files.
        model_name: Name in the registry.
        out: The run's folder; by default one of the job's name in the site's folder, or in the home.
        site: Where to.
        command: What the user typed.
        in_stages: Whether the parts are jobs of their own; where there is no SLURM one job does all.
        after: Jobs that must have ended well before.

    Returns:
        What was submitted, in order.

    Raises:
        UserError: Something to mend, before anything is queued.
    """
    check_model_name(model_name)
    track_at(site)
    target = choose_target(config, site=site)
    after = still_to_wait_for(after, target)
    on_slurm = target.scheduler == "slurm"
    if in_stages and not on_slurm:
        logger.info("there is no SLURM here: one job does all stages")
    steps: list[_Step] = [("train", target, "register")]
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
            record = make_record(kind, config, place, model=model_name, command=command, after=before)
            if out is None:
                out = results_folder(site) / record.id
            out = out.absolute()
            record = replace(record, out=str(out))
            with discarding(record):
                if not records:
                    # Looks whether the folder is free, or holds this very run.
                    with RunFolder(out, settings=run_settings(config, model_name=model_name)):
                        pass
                files = write_files(record, config, inputs)
                job = TrainJob(
                    **common_facts(record, place), **files, model_name=model_name, out=str(out), until=until
                )
                needs = needs_of(inputs, out)
                records.append(launch([job], record, place, needs=needs, after=before))
    except BaseException:
        for record in records:
            executor.withdraw(record.scheduler_id)
            discard(record)
        raise
    return records


_Step = tuple[Kind, Target, Stage]


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
    """Submits a retraining, which ends at once when nothing has changed.

    Args:
        config: The settings.
        inputs: The files.
        model_name: Name in the registry.
        out: Folder of the training; by default one of the job's name in the site's folder, or in the home.
        site: Where to.
        command: What the user typed.
        force: Whether to train although nothing changed.

    Returns:
        What was submitted.

    Raises:
        UserError: Something to mend, before anything is queued.
    """
    check_model_name(model_name)
    track_at(site)
    target = choose_target(config, site=site)
    record = make_record("retrain", config, target, model=model_name, command=command)
    folder = out.absolute() if out is not None else results_folder(site) / record.id
    record = replace(record, out=str(folder))
    with discarding(record):
        with RunFolder(folder, settings=run_settings(config, model_name=model_name)):
            pass
        job = RetrainJob(
            **common_facts(record, target),
            **write_files(record, config, inputs),
            model_name=model_name,
            out=str(folder),
            force=force,
        )
        return launch([job], record, target, needs=needs_of(inputs, folder))


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
    """Submits predictions of one cohort, or of several as an array.

    Args:
        config: Batch size, device and resources.
        model: NAME@alias or NAME/version; an alias is resolved now, for all alike.
        genotypes: The cohorts.
        tables: Those of `predict` that are given: covariates, phenotypes, keep, remove.
        trait: Column of the phenotypes; the model's by default.
        out: Folder of the tables, one a cohort.
        site: Where to.
        command: What the user typed.
        after: Jobs that must have ended well before.

    Returns:
        What was submitted.

    Raises:
        UserError: Something to mend, before anything is queued.
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
    record = make_record("predict", config, target, model=version, command=command, after=after)
    record = replace(record, elements=elements if len(elements) > 1 else ())
    folder = out.absolute() if out is not None else results_folder(site) / record.id
    record = replace(record, out=str(folder))
    with discarding(record):
        if folder.is_file():
            raise ConfigError("is a file", where=folder, mend="give a folder for the tables")
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
        read = [*map(Path, elements), *tables.values()]
        needs = (folder, *(path.absolute().parent for path in read))
        return launch(jobs, record, target, needs=needs, after=after)


def show_script(config: Config, *, site: Site, name: str, needs: Sequence[Path], num_elements: int) -> str:
    """The sbatch script that `submit` would hand over; needs no SLURM and writes nothing.

    Args:
        config: The settings.
        site: Where to.
        name: The model's name.
        needs: Files that a container must see.
        num_elements: Cohorts to predict; 0 for a training.
    """
    plan = Plan(
        name=f"snpdeconv-{name}-DATE-TIME",
        request=make_request(config, one_process=num_elements > 0),
        site=site,
        folder=jobs_dir() / f"{executor.job_name(name)}-DATE-TIME" / "log",
        needs=tuple(needs),
    )
    return executor.sbatch_script(plan, num_elements=num_elements)


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
