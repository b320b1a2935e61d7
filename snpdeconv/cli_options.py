"""Options that several commands share, each with one name, one form and one line of help."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperOption

from snpdeconv.errors import ConfigError

_GENOTYPES = typer.Option(
    metavar="COHORT", help="A .bed, .pgen, .vcf, .vcf.gz or .bcf file, or an imported folder."
)
_PHENOTYPES = typer.Option(metavar="TSV", help="Table with the columns #FID IID and the trait.")
_TRAIT = typer.Option(metavar="COLUMN", help="The trait's column in the phenotype table.")
_PRESET = typer.Option(metavar="PRESET", help="A preset's name, or a YAML file of the same form.")

Genotypes = Annotated[str, _GENOTYPES]
Phenotypes = Annotated[Path, _PHENOTYPES]
Trait = Annotated[str, _TRAIT]
Preset = Annotated[str, _PRESET]

MaybeGenotypes = Annotated[str | None, _GENOTYPES]
MaybePhenotypes = Annotated[Path | None, _PHENOTYPES]
MaybeTrait = Annotated[str | None, _TRAIT]
Data = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="A folder with cohort and phenotypes.tsv, or the cohort in it."),
]
Covariates = Annotated[
    Path | None, typer.Option(metavar="TSV", help="Table of covariates: #FID IID, then a column each.")
]
Blocks = Annotated[
    Path | None, typer.Option(metavar="BED", help="LD blocks or haploblocks; computed when not given.")
]
Groups = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column of families; none is split over train and test.")
]
Name = Annotated[str | None, typer.Option(metavar="MODEL", help="Name in the registry [the trait].")]
CovariateColumns = Annotated[
    str | None, typer.Option(metavar="A,B", help="The covariates used, of the table's columns [all].")
]
Interactions = Annotated[
    str | None,
    typer.Option(
        "--interaction", metavar="A,B", help="Covariates that may change what a SNP does: test for that."
    ),
]
Keep = Annotated[Path | None, typer.Option(metavar="FILE", help="Use these people only: FID IID a line.")]
Remove = Annotated[Path | None, typer.Option(metavar="FILE", help="Leave these people out.")]
Extract = Annotated[Path | None, typer.Option(metavar="FILE", help="Use these variants only, by ID.")]
Exclude = Annotated[Path | None, typer.Option(metavar="FILE", help="Leave these variants out.")]
Chrom = Annotated[str | None, typer.Option("--chr", metavar="1-4,22,X", help="Use these chromosomes only.")]


def _limit_threads(number: int | None) -> int | None:
    """Before numpy and torch are loaded, which ask once."""
    if number is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(number)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
    return number


Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, callback=_limit_threads, help="Most CPU cores to use [all]."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Stay until the job has ended.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone, for scripts.")]


def selection_of(
    covariate_columns: str | None,
    keep: Path | None,
    remove: Path | None,
    extract: Path | None,
    exclude: Path | None,
    chrom: str | None,
) -> dict[str, str | Path | None]:
    """The options that say which people, variants and covariates, by the names that `Inputs` has for them."""
    return {
        "covariate_columns": covariate_columns,
        "keep": keep,
        "remove": remove,
        "extract": extract,
        "exclude": exclude,
        "chrom": chrom,
    }


def interaction_override(interactions: str | None) -> list[str]:
    """The option of that name as an assignment to the setting; none where it is not given."""
    if interactions is None:
        return []
    names = [name.strip() for name in interactions.split(",") if name.strip()]
    return [f"interpretation.interactions={json.dumps(names)}"]


class StrictCommand(TyperCommand):
    """A command that refuses a second value of an option that takes one, where click takes the last."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parses as click does, after a look at what is given twice."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option, count in Counter(given).items():
            takes_one = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
            if count > 1 and takes_one:
                raise ConfigError(f"is given {count} times", where=option.opts[0], hint="give it once")
        return super().parse_args(ctx, args)


def refuse_repeated_options(app: typer.Typer) -> None:
    """Makes every command of the app strict; called once all are registered."""
    for command in app.registered_commands:
        command.cls = StrictCommand
