"""From what a user asked to a job in the queue, with its record; what could fail is looked at before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from snpdeconv.config import Config, Stage
from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics.cohort import is_store
from snpdeconv.genetics.formats import ACCEPTED, find_files
from snpdeconv.genetics.tables import ID_COLUMNS, read_table
from snpdeconv.launch import slurm
from snpdeconv.launch.jobs import PredictJob, RetrainJob, TrainJob
from snpdeconv.launch.queue import (
    Target,
    choose_target,
    common_facts,
    discarding,
    launch,
    make_record,
    needs_of,
    results_folder,
    still_to_wait_for,
    track_at,
    write_files,
    write_settings,
)
from snpdeconv.launch.records import Kind, Record, discard, jobs_dir
from snpdeconv.launch.site import Site, make_request
from snpdeconv.launch.slurm import Plan
from snpdeconv.pipelines.run_folder import Inputs, RunFolder, run_settings
from snpdeconv.tracking.registry import check_model_name, resolve

logger = logging.getLogger(__name__)


_GENOTYPES = ("*.bed", "*.pgen", "*.vcf", "*.vcf.gz", "*.vcf.bgz", "*.bcf")
_PHENOTYPES = ("phenotypes.tsv", "phenotypes.csv", "phenotypes.txt", "*.pheno", "pheno*.tsv")
_COVARIATES = ("covariates.tsv", "covariates.csv", "covariates.txt")
_TRAIT = "trait"


def find_inputs(
    data: Path,
    *,
    phenotypes: Path | None = None,
    trait: str | None = None,
    covariates: Path | None = None,
    blocks: Path | None = None,
    groups: str | None = None,
    selection: Mapping[str, str | Path | None] | None = None,
) -> Inputs:
    """The inputs of a run from a folder, or from the genotypes in it.

    Args:
        data: A folder as `snpdeconv simulate` writes it or alike, an imported cohort, or a genotype file.
        phenotypes: The table; by default the ``phenotypes.tsv`` beside the genotypes.
        trait: The column; by default the table's only one, or the one called trait.
        covariates: The table; by default the ``covariates.tsv`` beside the genotypes, if there is one.
        blocks: As `Inputs` has it.
        groups: As `Inputs` has it.
        selection: As `Inputs.from_paths` has it.

    Raises:
        InputError: Nothing fits, or too much does.
    """
    genotypes = find_genotypes(data)
    place = genotypes.parent
    if phenotypes is None:
        phenotypes = _only(place, _PHENOTYPES)
        if phenotypes is None:
            raise InputError(
                f"there is no phenotype table ({_PHENOTYPES[0]}) beside {genotypes.name}",
                where=place,
                hint="name it with --phenotypes",
            )
    return check_inputs(
        Inputs.from_paths(
            genotypes=genotypes,
            phenotypes=phenotypes,
            trait=trait or find_trait(phenotypes, groups=groups),
            covariates=covariates or _only(place, _COVARIATES),
            blocks=blocks,
            groups=groups,
            selection=selection,
        )
    )


def check_inputs(inputs: Inputs) -> Inputs:
    """Refuses, before anything is queued or loaded, files and columns that are not there.

    Raises:
        InputError: What is missing.
    """
    check_genotypes(Path(inputs.genotypes))
    _check_columns(Path(inputs.phenotypes), {"--trait": inputs.trait, "--groups": inputs.groups})
    return inputs


def _check_columns(table: Path, wanted: Mapping[str, str | None]) -> None:
    columns = _columns(table)
    for option, name in wanted.items():
        if name is not None and name not in columns:
            raise InputError(
                f"there is no column '{name}' for {option}",
                where=table,
                hint=nearest(name, columns) if columns else "it has ID columns only",
            )


def check_genotypes(path: Path) -> None:
    """Refuses a cohort that is not there, or not whole.

    Raises:
        InputError: What is missing.
    """
    if not is_store(path):
        find_files(path)


def check_tables(tables: Mapping[str, Path], *, trait: str | None) -> None:
    """Refuses tables for a prediction that are not there, and a trait that is not in its table.

    Raises:
        ConfigError: There is a trait, and no table of it.
        InputError: What is missing.
    """
    if trait is not None and "phenotypes" not in tables:
        raise ConfigError("there is no table", where="--trait", hint="give --phenotypes too")
    for table in tables.values():
        if not table.is_file():
            raise InputError("no such file", where=table, hint="check the path")
    if trait is not None:
        _check_columns(tables["phenotypes"], {"--trait": trait})


def find_genotypes(data: Path) -> Path:
    """The only cohort of a folder, or what was named itself.

    Raises:
        InputError: The folder holds none, or several.
    """
    found = find_all_genotypes(data)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"holds several cohorts ({names})", where=data, hint="name one of them")
    return found[0]


def find_all_genotypes(data: Path) -> list[Path]:
    """All cohorts of a folder, by name, or what was named itself.

    Raises:
        InputError: The folder holds none.
    """
    if not data.is_dir() or is_store(data):
        return [data]
    found = sorted({path for pattern in _GENOTYPES for path in data.glob(pattern) if _is_cohort(path)})
    found += sorted(path for path in data.iterdir() if path.is_dir() and is_store(path))
    if not found:
        raise InputError("holds no cohort", where=data, hint=f"it may hold {ACCEPTED}")
    return found


def find_trait(phenotypes: Path, *, groups: str | None = None) -> str:
    """The table's only column besides the IDs, or the one called trait.

    Raises:
        InputError: There is none, or several.
    """
    columns = [name for name in _columns(phenotypes) if name != groups]
    if _TRAIT in columns:
        return _TRAIT
    if len(columns) != 1:
        raise InputError(
            f"which column is the trait? It has {', '.join(columns) or 'none'}",
            where=phenotypes,
            hint="name it with --trait",
        )
    return columns[0]


def _columns(table: Path) -> list[str]:
    return [name for name in read_table(table).columns if name not in ID_COLUMNS]


def _is_cohort(path: Path) -> bool:
    """A .bed may be a table of blocks as well."""
    return path.suffix != ".bed" or path.with_suffix(".bim").exists()


def _only(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(f"holds several tables ({names})", where=folder, hint="name one of them")
        if found:
            return found[0]
    return None


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
            slurm.withdraw(record.scheduler_id)
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
        folder=jobs_dir() / f"{slurm.job_name(name)}-DATE-TIME" / "log",
        needs=tuple(needs),
    )
    return slurm.sbatch_script(plan, num_elements=num_elements)


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
