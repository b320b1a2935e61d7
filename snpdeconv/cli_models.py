"""The commands about registered models and their store: predict, retrain, rollback, sync, ui.

`register` adds them to the command. The work and its heavy imports start inside the commands.
"""

from __future__ import annotations

import json
import logging
import shlex
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from snpdeconv.cli_jobs import inputs_of, tell_submitted
from snpdeconv.cli_options import (
    AsJson,
    Blocks,
    Chrom,
    CovariateColumns,
    Covariates,
    Data,
    Exclude,
    Extract,
    Genotypes,
    Groups,
    Keep,
    MaybeGenotypes,
    MaybePhenotypes,
    MaybeTrait,
    Overrides,
    Preset,
    Remove,
    Threads,
    Wait,
    selection_of,
)
from snpdeconv.console import gc_paused
from snpdeconv.errors import ConfigError, ResourceError

logger = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (predict, retrain, rollback, sync, ui):
        app.command()(command)


def predict(
    model: Annotated[str, typer.Option(metavar="NAME@champion", help="A registered model.")],
    genotypes: Genotypes,
    out: Annotated[Path, typer.Option(metavar="TSV", help="File to write.")],
    covariates: Covariates = None,
    phenotypes: Annotated[
        Path | None, typer.Option(metavar="TSV", help="The trait as it is known, to measure predictions by.")
    ] = None,
    trait: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Its column [the trait of the training].")
    ] = None,
    keep: Keep = None,
    remove: Remove = None,
    threads: Threads = None,
    preset: Annotated[
        str, typer.Option(metavar="PRESET", help="Batch size and device are taken from it.")
    ] = "production",
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Predict the trait of another cohort with a registered model."""
    from snpdeconv.config import load_config

    config = load_config(preset, overrides=overrides or [])

    with gc_paused():
        from snpdeconv.pipelines.predict import predict as run

    result = run(
        config,
        model=model,
        genotypes=genotypes,
        out=out,
        covariates=covariates,
        phenotypes=phenotypes,
        trait=trait,
        keep=keep,
        remove=remove,
    )
    if as_json:
        print(json.dumps(asdict(result)))
        return
    print(f"predictions  {result.predictions} ({result.num_samples:,} people)")
    if result.num_left_out:
        print(f"  people left out: {result.num_left_out:,}")
    print(
        f"  missing genotypes: {result.missing_genotypes:,}\n  people without a prediction: {result.num_na:,}"
    )
    for what, count in result.variants.items():
        if count:
            print(f"  {what.replace('_', ' ')}: {count:,}")
    if result.metrics is not None:
        print(f"metrics of {result.num_measured:,} people ({result.num_without_trait:,} without the trait)")
        print_test(result.metrics, added={})


_ADDED = {
    "network_adds": "the network adds to its linear part",
    "genotypes_add": "genotypes add to the covariates",
}


def print_test(test: dict[str, Any], *, added: dict[str, Any]) -> None:
    """Prints metrics with their intervals, and what was added to others."""
    for metric, interval in test.items():
        _print_interval(f"{metric:<20} ", interval, sign="")
    for name, intervals in added.items():
        for metric, interval in intervals.items():
            _print_interval(f"{_ADDED[name]}: {metric} ", interval, sign="+")


def _print_interval(name: str, interval: dict[str, float | None], *, sign: str) -> None:
    value, low, high = interval["value"], interval["low"], interval["high"]
    if value is not None:
        between = "no interval"
        if low is not None and high is not None:
            between = f"95 % interval {low:{sign}.3f} to {high:{sign}.3f}"
        print(f"{name}{value:{sign}7.3f}   {between}")


def retrain(
    name: Annotated[str, typer.Option(metavar="MODEL", help="Name in the registry.")],
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
    preset: Preset = "small_cpu",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for the training [retrain/MODEL-DATE-TIME in the home]."),
    ] = None,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Train although nothing changed.")] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="In a job there: a jobs/clusters/NAME.yaml, its path, or local [in this process].",
        ),
    ] = None,
    begin: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When SLURM may start the job, such as 02:00 or now+7days."),
    ] = None,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Train again after a change, and promote what is better.

    Trains when the data, the code or the settings are others than the champion's. Both models predict the
    people that the champion was tested on, whom neither was trained on. The new one takes the alias if the
    interval of its advantage lies above zero: one that widens with every look at the same champion, and
    counts what another seed alone would change.
    """
    from snpdeconv.config import load_config
    from snpdeconv.launch.site import load_site

    site = None if cluster is None else load_site(cluster)
    config = load_config(preset, overrides=[*(site.overrides if site else []), *(overrides or [])])

    from snpdeconv.pipelines.retrain import retrain as run
    from snpdeconv.tracking.home import home
    from snpdeconv.training.preemption import Preempted, Terminated

    selection = selection_of(covariate_columns, keep, remove, extract, exclude, chrom)
    tables = {"covariates": covariates, "blocks": blocks, "groups": groups}
    inputs = inputs_of(data, genotypes, phenotypes, trait, **tables, **selection)
    if site is not None:
        from snpdeconv.launch.submit import submit_retrain

        if begin is not None:
            site = site.model_copy(update={"sbatch": {**site.sbatch, "begin": begin}})
        record = submit_retrain(
            config,
            inputs,
            model_name=name,
            out=out,
            site=site,
            command=shlex.join(["snpdeconv", *sys.argv[1:]]),
            force=force,
        )
        tell_submitted([record], wait=wait, as_json=as_json)
        return
    if begin is not None or wait:
        option = "--begin" if begin is not None else "--wait"
        raise ConfigError("is for jobs, and this runs here and now", where=option, hint="name a --cluster")
    folder = out or home() / "retrain" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        decision = run(config, inputs, model_name=name, out=folder.absolute(), force=force)
    except (Preempted, Terminated) as stop:
        logger.warning("stopped; the same command with --out %s resumes", folder)
        raise typer.Exit(143) from stop
    if decision is None:
        return  # the first of several ranks speaks for all
    if as_json:
        print(json.dumps(asdict(decision)))
        return
    print(f"reason    {decision.reason}")
    if decision.difference is not None:
        print(
            f"{decision.metric:<9} {decision.difference:+.4f} against version {decision.compared_with} on "
            f"{decision.num_held_out:,} people (look {decision.look} at it: interval {decision.low:+.4f} to "
            f"{decision.high:+.4f} at level {decision.level:.2g})"
        )
    if decision.challenger is not None:
        verdict = "promoted" if decision.promoted else "not promoted"
        print(f"trained   version {decision.challenger}, {verdict}")
        print(f"results   {folder}")
    print(f"champion  version {decision.champion}")


def rollback(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Name in the registry.")],
    to: Annotated[
        int | None, typer.Option(metavar="VERSION", help="Another version than the champion before.")
    ] = None,
) -> None:
    """Make the champion before this one the champion again."""
    from snpdeconv.tracking.registry import rollback as run

    print(f"champion  version {run(name, to=to).champion}")


def sync() -> None:
    """Send what the tracking server has not received yet."""
    from snpdeconv.launch.records import all_records
    from snpdeconv.launch.status import settle
    from snpdeconv.tracking.ship import sync as run

    settle(all_records())  # first: it knows why a run ended, where its spool only knows that it did
    report = run()
    for spool in report.spools:
        print(f"{spool.name}  {spool.outcome}" + (f"  {spool.note}" if spool.note else ""))
        for problem in spool.problems:
            print(f"  {problem}")
    if not report.spools:
        print("nothing to send")
    if not report.complete:
        raise ResourceError(
            "not everything could be sent", where="sync", hint="try again when the server answers"
        )


def ui(
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port on this machine.")] = 5000,
    open_browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser, where there is one.")
    ] = True,
) -> None:
    """Open the MLflow page with runs, curves and models."""
    from snpdeconv.tracking.connection import serve_ui, show_page

    # A kill by name or by a service manager must not leave the server behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    logger.info("starting the MLflow server, which takes up to half a minute")
    served = serve_ui(port)
    print(f"the MLflow page is at {served.page}", flush=True)
    if open_browser:
        show_page(served.page)
    if served.process is not None:
        print("press Ctrl+C to stop it", flush=True)
        served.wait()
