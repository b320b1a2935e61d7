"""The commands about registered models: retrain, rollback. Registered on the command by `register`.

Prints, as cli.py does; the work and its heavy imports start inside the commands.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (retrain, rollback):
        app.command()(command)


def retrain(
    name: Annotated[str, typer.Option(metavar="MODEL", help="Name in the registry.")],
    genotypes: Annotated[str, typer.Option(metavar="COHORT", help="The cohort as it is now.")],
    phenotypes: Annotated[Path, typer.Option(metavar="TSV", help="Its phenotype table.")],
    trait: Annotated[str, typer.Option(metavar="COLUMN", help="The trait's column.")],
    covariates: Annotated[Path | None, typer.Option(metavar="TSV", help="Table of covariates.")] = None,
    blocks: Annotated[Path | None, typer.Option(metavar="BED", help="LD blocks or haploblocks.")] = None,
    groups: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of families.")] = None,
    preset: Annotated[
        str, typer.Option(help="A preset's name, or a YAML file of the same form.")
    ] = "small_cpu",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the training [./MODEL-DATE-TIME].")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Train although nothing changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train anew when data, code or settings changed; champion only if it is better.

    Both models predict the people that the champion was tested on, whom neither was trained on. The new one
    takes the alias if the 95 % interval of its advantage lies above zero.
    """
    from snpdeconv.config import load_config

    config = load_config(preset, overrides=overrides or [])

    from snpdeconv.pipelines.inputs import Inputs
    from snpdeconv.pipelines.retrain import retrain as run

    inputs = Inputs.from_paths(
        genotypes=genotypes,
        phenotypes=phenotypes,
        trait=trait,
        covariates=covariates,
        blocks=blocks,
        groups=groups,
    )
    folder = out or Path(f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    decision = run(config, inputs, model_name=name, out=folder.absolute(), force=force)
    if decision is None:
        return  # the first of several ranks speaks for all
    print(f"reason    {decision.reason}")
    if decision.difference is not None:
        print(
            f"{decision.metric:<9} {decision.difference:+.4f} against version {decision.compared_with} on "
            f"{decision.num_held_out:,} people (95 % interval {decision.low:+.4f} to {decision.high:+.4f})"
        )
    if decision.challenger is not None:
        verdict = "promoted" if decision.promoted else "not promoted"
        print(f"trained   version {decision.challenger}, {verdict}")
    print(f"champion  version {decision.champion}")
    if as_json:
        print(json.dumps(asdict(decision)))


def rollback(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="Name in the registry.")],
    to: Annotated[
        int | None, typer.Option(metavar="VERSION", help="Another version than the champion before.")
    ] = None,
) -> None:
    """Make the champion before this one the champion again."""
    from snpdeconv.tracking.promotion import rollback as run

    print(f"champion  version {run(name, to=to).champion}")
