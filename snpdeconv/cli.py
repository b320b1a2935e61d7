"""The `snpdeconv` command: options in, results out, mistakes in one line with exit code 2.

Only the files of the command line print to standard output: this one, and `cli_jobs` and `cli_models`, whose
commands are added here. The work and its heavy imports start inside the commands, so that help is quick.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snpdeconv import cli_jobs, cli_models
from snpdeconv.cli_options import (
    AsJson,
    Blocks,
    Chrom,
    CovariateColumns,
    Covariates,
    Exclude,
    Extract,
    Genotypes,
    Groups,
    Interactions,
    Keep,
    Name,
    Overrides,
    Phenotypes,
    Preset,
    Remove,
    Threads,
    Trait,
    interaction_override,
    refuse_repeated_options,
    selection_of,
)
from snpdeconv.console import (
    check_environment,
    configure_logging,
    end_process_after,
    fix_environment,
    gc_paused,
    progress,
    shortened,
)
from snpdeconv.errors import ConfigError, ResourceError, UserError
from snpdeconv.version import __version__

if TYPE_CHECKING:
    from snpdeconv.pipelines.rank import RankResult

logger = logging.getLogger(__name__)

app = typer.Typer(
    help="Finds which SNPs, and which blocks of linked SNPs, carry the signal of a trait.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Multiallelic(Enum):
    """Sites with several ALT alleles: a variant each, or none."""

    split = "split"
    skip = "skip"


def _show_version(value: bool) -> None:
    if value:
        print(f"snpdeconv {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log details.")] = False,
) -> None:
    configure_logging(verbose=verbose)


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    samples: Annotated[int, typer.Option(metavar="N", min=20, help="People.")] = 2000,
    variants: Annotated[int, typer.Option(metavar="N", min=10, help="SNPs.")] = 2000,
    causal: Annotated[int, typer.Option(metavar="N", min=1, help="Causal SNPs.")] = 10,
    trait: Annotated[
        str,
        typer.Option(
            metavar="KIND", help="additive, dominance, epistasis, epistasis_main, binary or ancestry."
        ),
    ] = "additive",
    pve: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the trait's variance that the SNPs explain.")
    ] = 0.5,
    prevalence: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of cases, for a binary trait.")
    ] = 0.1,
    seed: Annotated[
        int, typer.Option(metavar="N", min=1, help="The same seed and sizes give the same bytes.")
    ] = 1,
    file_format: Annotated[str, typer.Option("--format", metavar="FORMAT", help="bed, pgen or vcf.")] = "bed",
    holdout: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Further people, written to OUT/holdout; changes the cohort."),
    ] = 0,
) -> None:
    """Make a cohort with a trait whose causal SNPs are known.

    LD is like that of human genomes. The trait's column is called trait.
    """
    from snpdeconv.pipelines.provenance import tracing
    from snpdeconv.simulation.simulate import simulate as make

    settings: dict[str, Any] = {
        "num_samples": samples,
        "num_variants": variants,
        "num_causal": causal,
        "trait": trait,
        "pve": pve,
        "prevalence": prevalence,
        "seed": seed,
        "file_format": file_format,
        "num_holdout": holdout,
    }
    with tracing() as trace, progress("Simulating") as update:
        cohort = make(out, **settings, progress=update)
        trace.keep(out, settings=settings)
    print(f"genotypes   {cohort.genotypes}\nphenotypes  {cohort.phenotypes}\ncausal      {cohort.causal}")


@app.command("import")
def import_(
    cohort: Annotated[
        Path, typer.Argument(metavar="COHORT", help="A .bed, .pgen, .vcf, .vcf.gz or .bcf file.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write.")],
    multiallelic: Annotated[
        Multiallelic, typer.Option(help="What becomes of sites with several ALT alleles.")
    ] = Multiallelic.split,
    chromosome_set: Annotated[
        str,
        typer.Option(
            metavar="SPECIES",
            help="human, cow, dog, horse, mouse, rice, sheep or how many autosomes: what PLINK's codes mean.",
        ),
    ] = "human",
) -> None:
    """Pack a cohort's genotypes into a folder, two bits each."""
    from snpdeconv.genetics.ingest import import_cohort
    from snpdeconv.genetics.variants import num_autosomes
    from snpdeconv.pipelines.provenance import file_facts, tracing

    with tracing() as trace, progress("Importing") as update:
        imported = import_cohort(
            cohort,
            out,
            multiallelic=multiallelic.value,
            autosomes=num_autosomes(chromosome_set),
            progress=update,
        )
        trace.keep(
            out,
            inputs={"genotypes": file_facts(Path(imported.source))},
            settings={"multiallelic": multiallelic.value, "chromosome_set": chromosome_set},
            results={"sha256": imported.digest},
        )
    print(f"{out}: {len(imported.samples):,} people, {len(imported.variants):,} variants")
    for what, count in imported.report.items():
        if count:
            print(f"  {what.replace('_', ' ')}: {count:,}")


@app.command()
def train(
    genotypes: Genotypes,
    phenotypes: Phenotypes,
    trait: Trait,
    covariates: Covariates = None,
    blocks: Blocks = None,
    groups: Groups = None,
    held_out: Annotated[
        Path | None,
        typer.Option(metavar="TSV", help="#FID IID of the people to test on [drawn from the cohort]."),
    ] = None,
    preset: Preset = "small_cpu",
    covariate_columns: CovariateColumns = None,
    interaction: Interactions = None,
    keep: Keep = None,
    remove: Remove = None,
    extract: Extract = None,
    exclude: Exclude = None,
    chrom: Chrom = None,
    threads: Threads = None,
    name: Name = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the results [./MODEL-DATE-TIME].")
    ] = None,
    overrides: Overrides = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Short for --set training.seed=N.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a model, test it, rank the SNPs and register it.

    The same command with the same --out goes on where an interrupted run stopped.
    """
    from snpdeconv.config import load_config

    settings = [*(overrides or []), *interaction_override(interaction)]
    settings += [] if seed is None else [f"training.seed={seed}"]
    config = load_config(preset, overrides=settings)

    from snpdeconv.launch.inputs import check_inputs
    from snpdeconv.pipelines.run_folder import Inputs

    # Before torch is loaded: a mistyped name is told at once.
    inputs = check_inputs(
        Inputs.from_paths(
            genotypes=genotypes,
            phenotypes=phenotypes,
            trait=trait,
            covariates=covariates,
            blocks=blocks,
            groups=groups,
            held_out=held_out,
            **selection_of(covariate_columns, keep, remove, extract, exclude, chrom),
        )
    )
    with gc_paused():
        from snpdeconv.pipelines.train import train as run
        from snpdeconv.training.preemption import Preempted, Terminated

    try:
        result = run(config, inputs, model_name=name or trait, out=out)
    except Preempted as stop:
        logger.warning("%s; the same command with the same --out resumes", stop)
        raise typer.Exit(143) from stop
    except Terminated as stop:
        raise typer.Exit(143) from stop
    if result is None:
        return  # the first of several ranks speaks for all
    if as_json:
        print(json.dumps(asdict(result)))
        return
    cli_models.print_test(result.test, added=result.added)
    print(f"run      {result.run_id or '(the tracking server has not named it yet)'}")
    print(f"ranking  {result.paths['ranking']}")
    print(
        f"model    {result.model}"
        + (f" version {result.version}" if result.version else " (not registered yet)")
    )


@app.command()
def rank(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the ranking.")],
    genotypes: Annotated[
        str | None, typer.Option(metavar="COHORT", help="The cohort [the one the network was trained on].")
    ] = None,
    phenotypes: Annotated[
        Path | None, typer.Option(metavar="TSV", help="Table with #FID IID and the trait.")
    ] = None,
    trait: Annotated[str | None, typer.Option(metavar="COLUMN", help="The trait's column in it.")] = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="The run whose trained network is used, if any.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME@champion", help="A registered model, in place of a run.")
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="single_effects, marginal or ensemble; with a trained network also attention or "
            "integrated_gradients.",
        ),
    ] = "ensemble",
    covariates: Covariates = None,
    blocks: Annotated[
        Path | None,
        typer.Option(metavar="BED", help="LD blocks or haploblocks; without a network, else its own."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="PRESET", help="Settings without a network: a preset or a YAML file [small_cpu]."
        ),
    ] = None,
    covariate_columns: CovariateColumns = None,
    interaction: Interactions = None,
    keep: Keep = None,
    remove: Remove = None,
    extract: Extract = None,
    exclude: Exclude = None,
    chrom: Chrom = None,
    threads: Threads = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Rank the SNPs of a cohort, with or without a trained network.

    Without one, give --genotypes, --phenotypes and --trait; with one, --model or --run.
    """
    overrides = [*(overrides or []), *interaction_override(interaction)]
    if run is not None or model is not None:
        own = {
            "--covariate-columns": covariate_columns,
            "--extract": extract,
            "--exclude": exclude,
            "--chr": chrom,
        }
        _refuse_beside_a_network(run, model, blocks=blocks, preset=preset, own=own)
        with gc_paused():
            from snpdeconv.pipelines.rank import rank_with_network

        result = rank_with_network(
            out,
            method=method,
            run_id=run,
            model=model,
            genotypes=genotypes,
            phenotypes=phenotypes,
            trait=trait,
            covariates=covariates,
            keep=keep,
            remove=remove,
            overrides=overrides,
        )
    else:
        if genotypes is None or phenotypes is None or trait is None:
            needed = {"--genotypes": genotypes, "--phenotypes": phenotypes, "--trait": trait}
            lacking = " and ".join(f"no {option}" for option, value in needed.items() if value is None)
            raise ConfigError(
                f"there is {lacking}",
                where="rank",
                hint="give --genotypes, --phenotypes and --trait, or a trained network by --run or --model",
            )
        from snpdeconv.config import load_config
        from snpdeconv.launch.inputs import check_inputs
        from snpdeconv.pipelines.run_folder import Inputs

        config = load_config(preset or "small_cpu", overrides=overrides)
        # Before torch is loaded: a mistyped name is told at once.
        inputs = check_inputs(
            Inputs.from_paths(
                genotypes=genotypes,
                phenotypes=phenotypes,
                trait=trait,
                covariates=covariates,
                blocks=blocks,
                **selection_of(covariate_columns, keep, remove, extract, exclude, chrom),
            )
        )
        with gc_paused():
            from snpdeconv.pipelines.rank import rank_cohort

        result = rank_cohort(config, inputs, method=method, out=out)
    if as_json:
        print(json.dumps(asdict(result)))
        return
    _print_ranking(result)


@app.command()
def presets(name: Annotated[str | None, typer.Argument(help="Show this one in full.")] = None) -> None:
    """List the presets, or show one."""
    from snpdeconv.config import load_config, preset_names, preset_text

    if name is not None:
        print(preset_text(name), end="")
        return
    for known in preset_names():
        default = "; the default" if known == "small_cpu" else ""
        print(f"{known:<20}{load_config(known).description}{default}")


def _refuse_beside_a_network(
    run: str | None,
    model: str | None,
    *,
    blocks: Path | None,
    preset: str | None,
    own: Mapping[str, object],
) -> None:
    for option, value in own.items():
        if value is not None:
            raise ConfigError(
                "a trained network has its own variants and covariates", where=option, hint="leave it out"
            )
    if run is not None and model is not None:
        raise ConfigError("both --run and --model are given", where="rank", hint="give one of them")
    if blocks is not None:
        raise ConfigError("a trained network has its own blocks", where="--blocks", hint="leave it out")
    if preset is not None:
        raise ConfigError(
            "a trained network has its own settings",
            where="--preset",
            hint="leave it out, and change single ones with --set interpretation.…",
        )


def _print_ranking(result: RankResult) -> None:
    with_posterior = "pip" in result.top[0]
    told = f"{'pip':>7}  {'set':>5}  {'q':>6}  {'effect':>7}" if with_posterior else f"{'score':>9}"
    print(f"{'rank':>4}  {'SNP':<24}{told}")
    for place, snp in enumerate(result.top, start=1):
        line = f"{place:>4}  {shortened(snp['variant_id'], limit=24):<24}"
        if with_posterior:
            set_, q, effect = snp["credible_set"], snp["q_value"], snp["effect"]
            line += f"{snp['pip']:7.3f}  {set_ or '-':>5}  " + (f"{'-':>6}" if q is None else f"{q:6.3f}")
            line += f"  {'-':>7}" if effect is None else f"  {effect:+7.3f}"
            line += f"  on {shortened(snp['class'], limit=24)}" if snp.get("class") else ""
            line += f"  in a pair with {shortened(snp['pair_with'], limit=24)}" if snp["pair_with"] else ""
            with_ = snp.get("interacts_with")
            line += f"  interacts with {shortened(with_, limit=24)}" if with_ else ""
        else:
            line += f"{snp['score']:9.3g}"
        print(line)
    if result.single_effects is not None:
        found = result.single_effects
        pairs = f"{found['pairs']:.0f} pairs of probability over .5"
        if not found["pairs_searched"]:
            pairs = "pairs not looked for"
        if "interactions" in result.paths:
            pairs += f"; {found['interactions']:.0f} interactions with covariates"
        print(
            f"{found['credible_sets']:.0f} credible sets; {pairs}; "
            f"explained variance {found['pve']:.2f} ({found['pve_low']:.2f} to {found['pve_high']:.2f})"
        )
        if "background_heritability" in found:
            print(
                f"polygenic background: {found['background_heritability']:.2f} of the rest "
                f"(standard error {found['background_heritability_error']:.2f})"
            )
    for name in ("ranking", "credible_sets", "pairs", "interactions", "blocks"):
        if name in result.paths:
            print(f"{name.replace('_', ' '):<14}{result.paths[name]}")


cli_jobs.register(app)
cli_models.register(app)
refuse_repeated_options(app)


def _run(command: Callable[[], None]) -> int:
    try:
        check_environment()
        command()
    except UserError as error:
        return _tell(error)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        return _tell(ResourceError(error.strerror or str(error), where=error.filename))
    except MemoryError:
        return _tell(
            ResourceError("there is not enough memory", hint="use a machine with more, or less data")
        )
    return 0


def _tell(error: UserError) -> int:
    with contextlib.suppress(OSError):  # a full disk or a closed terminal takes no line
        print(f"error: {error}", file=sys.stderr)
    return 2


def main() -> None:
    """Entry point of the `snpdeconv` command."""
    # Threads that spin while they wait slow each other down badly on a machine shared with others.
    # It must be said before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    fix_environment()
    if os.environ.get("WORLD_SIZE", "1") != "1":  # one of torchrun's ranks
        end_process_after(lambda: _run(app))
    sys.exit(_run(app))
