"""The commands about jobs: submit, status, logs, cancel; `register` adds them to the command.

The work and its heavy imports start inside the commands.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snpdeconv.cli_options import (
    AsJson,
    Blocks,
    Chrom,
    CovariateColumns,
    Covariates,
    Data,
    Exclude,
    Extract,
    Groups,
    Keep,
    MaybeGenotypes,
    MaybePhenotypes,
    MaybeTrait,
    Name,
    Overrides,
    Remove,
    Wait,
    selection_of,
)
from snpdeconv.errors import ConfigError

if TYPE_CHECKING:
    from snpdeconv.launch.records import Record
    from snpdeconv.pipelines.run_folder import Inputs

logger = logging.getLogger(__name__)

JobName = Annotated[
    str | None, typer.Argument(metavar="JOB", help="Its ID, the start of it, or SLURM's number [the last].")
]
_WAIT_POLL_S = 2.0
_NUM_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (submit, status, logs, cancel):
        app.command()(command)


def submit(
    preset: Annotated[
        str, typer.Argument(metavar="PRESET", help="A preset's name, or a YAML file of the same form.")
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="COHORT", help="Further cohorts, with --model.")
    ] = None,
    data: Data = None,
    genotypes: MaybeGenotypes = None,
    phenotypes: MaybePhenotypes = None,
    trait: MaybeTrait = None,
    covariates: Covariates = None,
    blocks: Blocks = None,
    groups: Groups = None,
    covariate_columns: CovariateColumns = None,
    keep: Keep = None,
    remove: Remove = None,
    extract: Extract = None,
    exclude: Exclude = None,
    chrom: Chrom = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME@champion", help="Predict the cohorts with this model; do not train."),
    ] = None,
    name: Name = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder for the results [in results of the home, or the site's folder]."
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            envvar="SNPDECONV_CLUSTER",
            help="A jobs/clusters/NAME.yaml, its path, or local [SLURM if it is here, else this machine].",
        ),
    ] = None,
    partition: Annotated[
        str | None, typer.Option(metavar="NAME", help="Another partition of the cluster.")
    ] = None,
    overrides: Overrides = None,
    after: Annotated[
        list[str] | None, typer.Option(metavar="JOB", help="Start when that job is done; repeatable.")
    ] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Train, rank and register in jobs of their own, one by one.")
    ] = False,
    search: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Try N settings in an array, with Optuna; register nothing."),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(metavar="YAML", help="With --search: what to try [what fits the architecture]."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the sbatch script; queue nothing.")
    ] = False,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Train or predict in a job, on SLURM or on this machine.

    Trains on a folder or cohort, or predicts with --model.
    """
    from snpdeconv.config import load_config
    from snpdeconv.launch.records import find_record
    from snpdeconv.launch.site import load_site
    from snpdeconv.launch.submit import files_of, show_script, submit_predict, submit_train

    if search is not None and (model is not None or stages or after):
        raise ConfigError("goes alone", where="--search", hint="leave out --model, --stages and --after")
    if space is not None and search is None:
        raise ConfigError("is for a search", where="--space", hint="say how many trials: --search 20")
    site = load_site(cluster)
    if partition is not None:
        site = site.model_copy(update={"partition": partition, "gpu_partition": None})
    config = load_config(preset, overrides=[*site.overrides, *(overrides or [])])
    command = shlex.join(["snpdeconv", *sys.argv[1:]])
    earlier = [find_record(job) for job in after or []]
    selection = {
        "blocks": blocks,
        "groups": groups,
        **selection_of(covariate_columns, keep, remove, extract, exclude, chrom),
    }
    if model is not None:
        paths = {"covariates": covariates, "phenotypes": phenotypes, "keep": keep, "remove": remove}
        tables = {name: path for name, path in paths.items() if path is not None}
        given = [name for name, value in selection.items() if value is not None and name not in tables]
        if given:
            option = "--chr" if given[0] == "chrom" else f"--{given[0].replace('_', '-')}"
            raise ConfigError("is for training", where=option, hint="leave it out beside --model")
        cohorts = _cohorts(data, genotypes, more)
        if dry_run:
            label = re.split("[@:/]", model)[0]
            read: list[str | Path] = [*cohorts, *tables.values()]
            script = show_script(
                "predict", config, model=label, site=site, out=out, files=read, num_elements=len(cohorts),
                after=earlier,
            )  # fmt: skip
            print(script, end="")
            return
        records = [
            submit_predict(
                config,
                model=model,
                genotypes=cohorts,
                tables=tables,
                trait=trait,
                out=out,
                site=site,
                command=command,
                after=earlier,
            )
        ]
    else:
        if more:
            raise ConfigError(
                f"{len(more) + 1} cohorts to train on",
                where=more[0],
                hint="give one, or --model to predict them",
            )
        inputs = inputs_of(data, genotypes, phenotypes, trait, covariates=covariates, **selection)
        label = name or inputs.trait
        if dry_run:
            script = show_script(
                "train" if search is None else "search", config, model=label, site=site, out=out,
                files=files_of(inputs), num_elements=search or 1, after=earlier,
            )  # fmt: skip
            print(script, end="")
            return
        if search is not None:
            from snpdeconv.launch.search import submit_search

            records = [
                submit_search(
                    config,
                    inputs,
                    model_name=label,
                    num_trials=search,
                    space=space,
                    out=out,
                    site=site,
                    command=command,
                )
            ]
        else:
            records = submit_train(
                config,
                inputs,
                model_name=label,
                out=out,
                site=site,
                command=command,
                in_stages=stages,
                after=earlier,
            )
    tell_submitted(records, wait=wait, as_json=as_json)


def tell_submitted(records: list[Record], *, wait: bool, as_json: bool) -> None:
    """Says what was submitted, and stays until the last has ended if so asked."""
    from snpdeconv.launch.status import submitted_lines

    if as_json:
        print(json.dumps(asdict(records[0]) if len(records) == 1 else list(map(asdict, records))), flush=True)
    else:
        print("\n".join(line for record in records for line in submitted_lines(record)), flush=True)
    if wait:
        raise typer.Exit(max(_wait(record, quiet=as_json) for record in records))


def _cohorts(data: Path | None, genotypes: str | None, more: list[str] | None) -> list[str]:
    from snpdeconv.launch.inputs import find_all_genotypes

    named = [*([genotypes] if genotypes is not None else []), *(more or [])]
    if data is not None:
        named += map(str, find_all_genotypes(data))
    if not named:
        raise ConfigError("no cohort to predict", where="--genotypes", hint="--genotypes A.vcf.gz B.bed ...")
    return named


def inputs_of(
    data: Path | None, genotypes: str | None, phenotypes: Path | None, trait: str | None, **others: Any
) -> Inputs:
    """The files that the options name, or that lie in the folder; `others` are further fields of `Inputs`."""
    from snpdeconv.launch.inputs import find_inputs

    if (data is None) == (genotypes is None):
        raise ConfigError(
            "give one of --data and --genotypes" if data is None else "give --data or --genotypes, not both",
            where="the cohort",
            hint="--data FOLDER, or --genotypes COHORT --phenotypes TSV --trait COLUMN",
        )
    place = data if data is not None else Path(str(genotypes))
    return find_inputs(place, phenotypes=phenotypes, trait=trait, **others)


def _wait(record: Record, *, quiet: bool) -> int:
    """Tells each change until the job has ended; the exit code says how."""
    from snpdeconv.launch.status import detail_lines, progress_text, read_status

    told = ""
    while True:
        (now,) = read_status([record])
        line = f"{now.state}  {progress_text(now)}".strip()
        if line != told:
            logger.info("%s: %s", record.id, line)
            told = line
        if not now.is_live:
            if not quiet:
                print("\n".join(detail_lines(now)))
            return 0 if now.state == "done" else 2
        time.sleep(_WAIT_POLL_S)


def status(
    job: JobName = None,
    everything: Annotated[bool, typer.Option("--all", help="All there ever were.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the jobs: state, progress, last metrics, why one failed."""
    from snpdeconv.launch.records import all_records, find_record
    from snpdeconv.launch.status import as_dict, detail_lines, read_status, table_lines

    if job is not None:
        statuses = read_status([find_record(job)])
        lines = detail_lines(statuses[0])
    else:
        statuses = read_status(all_records() if everything else all_records()[-_NUM_SHOWN:])
        lines = table_lines(statuses) if statuses else ["no jobs yet"]
    print(json.dumps([as_dict(one) for one in statuses]) if as_json else "\n".join(lines))


def logs(
    job: JobName = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    rank: Annotated[int, typer.Option(metavar="N", min=0, help="Process of a job with several.")] = 0,
    element: Annotated[int | None, typer.Option(metavar="N", min=0, help="Of an array, from 0.")] = None,
) -> None:
    """Show what a job has written."""
    from snpdeconv.launch.control import log_file, read_log
    from snpdeconv.launch.records import find_record

    record = find_record(job)
    path = log_file(record, element=element, rank=rank)
    logger.info("%s: %s", record.id, path)
    for text in read_log(path, record=record, follow=follow):
        sys.stdout.write(text)
        sys.stdout.flush()


def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Its ID, the start of it, or SLURM's number.")],
) -> None:
    """End a job. Its checkpoints stay: the same training with --out resumes."""
    from snpdeconv.launch.control import cancel as run
    from snpdeconv.launch.records import find_record
    from snpdeconv.launch.status import headline

    print(headline(run(find_record(job))))
