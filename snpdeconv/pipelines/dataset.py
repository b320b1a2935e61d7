"""From files to a study (samples joined, split and filtered) and to what a network trains on (tokens).

All that is estimated (filters, frequencies, scales, components, blocks) is estimated on the training samples.
Shapes: N samples used, V variants kept, S slots, K blocks.
"""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from snpdeconv.config import Config, DataConfig
from snpdeconv.console import progress
from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.cohort import Cohort
from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.ld import Blocks, compute_blocks, read_blocks
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.pca import Components, fit_components
from snpdeconv.genetics.phenotypes import (
    CovariateEncoder,
    CovariateTable,
    Trait,
    check_trait,
    load_groups,
    load_trait,
    read_covariates,
    tell_classes,
)
from snpdeconv.genetics.qc import filter_samples, filter_variants, wanted_samples, wanted_variants
from snpdeconv.genetics.splits import Split, check_covariates, join_copies, split, split_beside
from snpdeconv.genetics.variants import Variants, num_autosomes
from snpdeconv.pipelines.run_folder import Inputs, read_held_out
from snpdeconv.tracking.home import cache_dir
from snpdeconv.training import distributed
from snpdeconv.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scale:
    """Units of a quantity: the network predicts (value - mean) / sd. Classes have mean 0 and sd 1."""

    mean: float
    sd: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Joined:
    """The samples and variants of a cohort that passed, joined to a trait: what a rank makes by itself.

    Attributes:
        trait: The trait of the N samples used; `trait.rows` are their rows in the cohort.
        scale: Units of the trait.
        split: Indices into the N samples; all of them training samples where none are held out.
        columns: (V,) columns of the cohort that are kept.
        frequency: (V,) frequency of the counted allele in the training samples.
        genotypes: (N, V).
        target: (N,) float32 scaled values or 0 and 1, or int64 classes.
        groups: (N,) index of each sample's family, copies of the sample, or whatever is not split;
            None where none were given and there are no copies.
        report: Counts of what was used and dropped, by reason.
    """

    trait: Trait
    scale: Scale
    split: Split
    columns: NDArray[np.int64]
    frequency: NDArray[np.float64]
    variants: Variants
    genotypes: PackedGenotypes
    target: NDArray[np.float32] | NDArray[np.int64]
    groups: NDArray[np.int64] | None
    report: dict[str, int]


@dataclass(frozen=True)
class Study(Joined):
    """All that is asked of a cohort, with what the first rank computes for all.

    Attributes:
        covariates: (N, C) float32, standardised; C may be 0.
        covariate_encoder: How a table becomes the first columns of `covariates`.
        components: How genotypes become the last columns of `covariates`.
        modifiers: Columns of `covariates` that may change what a SNP does, by name.
    """

    inputs: Inputs
    cohort: Cohort
    blocks: Blocks
    covariates: NDArray[np.float32]
    covariate_encoder: CovariateEncoder | None
    components: Components | None
    modifiers: Mapping[str, int]

    @property
    def covariate_names(self) -> list[str]:
        """The covariates used, in the terms of their table, and the components."""
        columns = [] if self.covariate_encoder is None else self.covariate_encoder.features
        number = 0 if self.components is None else self.components.loadings.shape[1]
        return [*dict.fromkeys(one.column for one in columns), *(f"component {n + 1}" for n in range(number))]


@dataclass(frozen=True)
class Dataset(Study):
    """A cohort ready for training: its layout, and (N, S / 4) genotypes in slot order."""

    layout: Layout
    packed: NDArray[np.uint8]

    @property
    def num_outputs(self) -> int:
        """Outputs of the network: one a class for a multiclass trait, else one."""
        return len(self.trait.classes) if self.trait.kind == "multiclass" else 1


def open_cohort(source: str, *, data: DataConfig) -> Cohort:
    """A cohort by path, imported into the cache when it is not a store yet."""
    with progress(f"Importing {Path(source).name}") as update:
        return load_cohort(
            source,
            cache_dir=cache_dir(),
            multiallelic=data.multiallelic,
            autosomes=num_autosomes(data.chromosome_set),
            progress=update,
        )


def open_cohort_together(source: str, *, data: DataConfig) -> Cohort:
    """A cohort that the first rank imports, while the others wait to find it in the cache; a collective."""
    held: list[Cohort] = []

    def opened() -> None:
        held.append(open_cohort(source, data=data))

    distributed.first_rank_does(opened)
    distributed.every_rank_does(lambda: None if held else opened())
    return held[0]


def _check_alike(**seen: tuple[Any, ...]) -> None:
    """Compares what the ranks have made of the same files, by name; a collective.

    Gradients of different SNPs have no mean.
    """
    if distributed.world_size() == 1:
        return
    own = {name.replace("_", " "): _digest(*values) for name, values in seen.items()}
    (first_host, first), *others = distributed.gather_objects((socket.gethostname(), own))
    for rank, (host, theirs) in enumerate(others, start=1):
        different = " and ".join(name for name in first if theirs.get(name) != first[name])
        if different:
            raise InputError(
                f"rank {rank} on {host} differs from the first on {first_host} in: {different}",
                where="the ranks",
                hint="give all nodes the same files and the same versions of snpdeconv and its libraries",
            )


def _digest(*values: Any) -> str:
    digest = hashlib.sha256()
    for value in values:
        data = np.ascontiguousarray(value).tobytes() if isinstance(value, np.ndarray) else str(value).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def gather(config: Config, inputs: Inputs, *, cohort: Cohort, hold_out: bool) -> Study:
    """Reads, joins and filters a cohort; a collective.

    The first rank computes components and blocks: other libraries and processors round them otherwise.
    """
    own, frequency, table = distributed.all_or_none_do(
        lambda: _joined(config, inputs, cohort=cohort, hold_out=hold_out)
    )
    trait, parts, columns = own.trait, own.split, own.columns
    _check_alike(
        version=(__version__,),
        settings=(config.digest(),),
        cohort=(cohort.digest,),
        people=(trait.rows,),
        split=(parts.train, parts.val, parts.test),
        trait=(own.target, *trait.classes),
        SNPs=(columns, frequency),
    )
    covariates, encoder, components = distributed.first_rank_does(
        lambda: _covariates(cohort, trait, parts, table, columns=columns, frequency=frequency, config=config)
    )
    modifiers = modifiers_of(encoder, config.interpretation.interactions, kind=trait.kind)
    blocks = distributed.first_rank_does(
        lambda: (
            compute_blocks(own.genotypes, variants=own.variants, rows=parts.train)
            if inputs.blocks is None
            else read_blocks(Path(inputs.blocks), variants=own.variants)
        )
    )
    report = {**own.report, "blocks": len(blocks.name)}
    cut = (
        f" ({len(parts.train)} train, {len(parts.val)} validation, {len(parts.test)} test)"
        if hold_out
        else ""
    )
    logger.info("%d people%s, %d SNPs in %d LD blocks", len(trait.rows), cut, len(columns), len(blocks.name))
    return Study(
        **{**vars(own), "report": report},
        inputs=inputs,
        cohort=cohort,
        blocks=blocks,
        covariates=covariates,
        covariate_encoder=encoder,
        components=components,
        modifiers=modifiers,
    )


def modifiers_of(
    encoder: CovariateEncoder | None, columns: Sequence[str], *, kind: TraitKind
) -> dict[str, int]:
    """Encoded covariates whose products with SNPs are tested, by name, of columns of the user's table.

    Raises:
        ConfigError: No such covariate, one that is the same for everybody, or a trait of many classes.
    """
    where = "interpretation.interactions"
    if columns and kind == "multiclass":
        raise ConfigError(
            "interactions need a quantitative or binary trait", where=where, hint="leave them out"
        )
    features = () if encoder is None else encoder.features
    known = {feature.column for feature in features}
    for name in columns:
        if not known:
            raise ConfigError(
                f"there is no covariate '{name}'", where=where, hint="give a table of it with --covariates"
            )
        if name not in known:
            raise ConfigError(f"there is no covariate '{name}'", where=where, hint=nearest(name, known))
    if columns:
        logger.info(
            "products of all SNPs with %s are tested for interactions; predictions leave these out",
            ", ".join(columns),
        )
    return {feature.name: place for place, feature in enumerate(features) if feature.column in columns}


def _joined(
    config: Config, inputs: Inputs, *, cohort: Cohort, hold_out: bool
) -> tuple[Joined, NDArray[np.float64], CovariateTable | None]:
    """Reads, joins, splits and filters; with it, the frequencies of all variants, and the covariates."""
    data = config.data
    trait = load_trait(
        inputs.phenotypes,
        column=inputs.trait,
        samples=cohort.samples,
        trait_type=data.trait_type,
        min_class_size=data.min_class_size,
        missing_codes=data.missing_codes,
        cohort=inputs.genotypes,
    )
    table = _covariate_table(inputs, cohort, data)
    rows, left_out = _wanted(trait, cohort, inputs, table)
    samples = filter_samples(
        cohort.genotypes, rows, missing_max=data.sample_missing_max, cohort=inputs.genotypes
    )
    with_trait, trait = len(trait.rows), trait.among(samples.rows)
    without = with_trait - len(trait.rows)
    check_trait(
        trait,
        min_class_size=data.min_class_size,
        where=inputs.phenotypes,
        after=f" once {without} people are left out by lists, covariates or data.sample_missing_max",
    )
    if without:
        tell_classes(trait)
    groups = None
    if inputs.groups is not None:
        groups = load_groups(
            inputs.phenotypes,
            column=inputs.groups,
            samples=cohort.samples,
            rows=trait.rows,
            cohort=inputs.genotypes,
        )
    groups, num_copies = join_copies(
        cohort.genotypes,
        rows=trait.rows,
        samples=cohort.samples,
        groups=groups,
        where=inputs.genotypes,
    )
    parts = (
        _split(trait, cohort, inputs, data, groups=groups, seed=config.training.seed)
        if hold_out
        else Split(train=np.arange(len(trait.rows)), val=np.arange(0), test=np.arange(0))
    )
    train_rows = trait.rows[parts.train]

    kept = filter_variants(
        cohort.genotypes.counts(rows=train_rows),
        maf_min=data.maf_min,
        missing_max=data.variant_missing_max,
        cohort=inputs.genotypes,
    )
    wanted = wanted_variants(
        cohort.variants, extract=inputs.extract, exclude=inputs.exclude, chrom=inputs.chrom
    )
    columns = np.flatnonzero(kept.keep & wanted)
    if not len(columns):
        raise InputError(
            f"no variant asked for passes the filters ({wanted.sum()} asked for)",
            where=inputs.genotypes,
            hint="loosen data.maf_min or data.variant_missing_max with --set",
        )
    target, scale = _target(trait, parts)
    report = {f"people_{name}": count for name, count in trait.report.items()}
    report |= {**left_out, "people_used": len(trait.rows)}
    report["people_too_missing"] = samples.report["too_missing"]
    report["people_copies"] = num_copies
    report |= {f"variants_{name}": count for name, count in cohort.report.items()}
    report |= {f"variants_{name}": count for name, count in kept.report.items()}
    report["variants_not_asked_for"] = int((kept.keep & ~wanted).sum())
    report["variants_kept"] = len(columns)
    if hold_out:
        report |= {"train": len(parts.train), "validation": len(parts.val), "test": len(parts.test)}
    joined = Joined(
        trait=trait,
        scale=scale,
        split=parts,
        columns=columns,
        frequency=kept.frequency[columns],
        variants=cohort.variants.take(columns),
        genotypes=cohort.genotypes.take(rows=trait.rows, columns=columns),
        target=target,
        groups=groups,
        report=report,
    )
    return joined, kept.frequency, table


def prepare(config: Config, inputs: Inputs, *, cohort: Cohort) -> Dataset:
    """Reads, joins, splits, filters and lays out a cohort; a collective."""
    study = gather(config, inputs, cohort=cohort, hold_out=True)

    def laid_out() -> tuple[Layout, NDArray[np.uint8]]:
        layout = Layout.from_blocks(study.blocks, chrom=study.variants.chrom, patch=config.model.patch)
        return layout, study.genotypes.take(columns=layout.columns).packed

    layout, packed = distributed.all_or_none_do(laid_out)
    _check_alike(
        covariates=(study.covariates,),
        LD_blocks=(study.blocks.of_variant, *study.blocks.name),
        layout=(layout.columns,),
        genotypes=(packed,),
    )
    return Dataset(**vars(study), layout=layout, packed=packed)


def slot_genotypes(dataset: Dataset) -> PackedGenotypes:
    """The dataset's genotypes as a model sees them, (N, S)."""
    return PackedGenotypes(dataset.packed, dataset.layout.num_slots)


def _wanted(
    trait: Trait, cohort: Cohort, inputs: Inputs, table: CovariateTable | None
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Rows of the samples asked for that have all covariates, and how many are left out, by reason."""
    asked_for = wanted_samples(cohort.samples, keep=inputs.keep, remove=inputs.remove)
    rows = trait.rows[asked_for[trait.rows]]
    if not len(rows):
        raise InputError(
            f"none of the {len(trait.rows)} people with a trait is asked for",
            where=inputs.keep or inputs.remove,
            hint="look at the lists of --keep and --remove",
        )
    left_out = {"people_not_asked_for": len(trait.rows) - len(rows), "people_missing_covariate": 0}
    if table is not None:
        complete = table.complete(rows)
        left_out["people_missing_covariate"] = int((~complete).sum())
        rows = rows[complete]
    return rows, left_out


def _covariate_table(inputs: Inputs, cohort: Cohort, data: DataConfig) -> CovariateTable | None:
    if inputs.covariates is None:
        return None
    names = inputs.covariate_columns
    return read_covariates(
        inputs.covariates,
        samples=cohort.samples,
        columns=None if names is None else [one.strip() for one in names.split(",") if one.strip()],
        exclude=[name for name in (inputs.trait, inputs.groups) if name is not None],
        cohort=inputs.genotypes,
        missing_codes=data.missing_codes,
    )


def _split(
    trait: Trait,
    cohort: Cohort,
    inputs: Inputs,
    data: DataConfig,
    *,
    groups: NDArray[np.int64] | None,
    seed: int,
) -> Split:
    samples = cohort.samples.take(trait.rows)
    keys = np.array(
        [f"{fid}\t{iid}" for fid, iid in zip(samples.fid, samples.iid, strict=True)], dtype=object
    )
    how: dict[str, Any] = {"kind": trait.kind, "values": trait.values, "groups": groups, "keys": keys}
    how |= {"val_fraction": data.validation_fraction, "seed": seed}
    if inputs.held_out is None:
        return split(**how, test_fraction=data.test_fraction)
    held_out = read_held_out(Path(inputs.held_out)).among(samples)
    if not held_out.any():
        raise InputError(
            f"names none of the {len(samples)} people with a trait in {inputs.genotypes}",
            where=inputs.held_out,
            hint="are the sample IDs of this cohort?",
        )
    return split_beside(held_out, **how)


def _covariates(
    cohort: Cohort,
    trait: Trait,
    parts: Split,
    table: CovariateTable | None,
    *,
    columns: NDArray[np.int64],
    frequency: NDArray[np.float64],
    config: Config,
) -> tuple[NDArray[np.float32], CovariateEncoder | None, Components | None]:
    values: list[NDArray[np.float64]] = []
    encoder, components = None, None
    if table is not None:
        read = table.encoded(trait.rows)
        check_covariates(read, trait, where=table.joined.path, allow=config.data.allow_leakage)
        read = read.standardise(parts.train)
        values.append(read.values)
        encoder = read.encoder
    if config.data.num_components:
        components = fit_components(
            cohort.genotypes,
            rows=trait.rows[parts.train],
            columns=columns,
            chrom=cohort.variants.chrom,
            frequency=frequency,
            num_components=config.data.num_components,
            seed=config.training.seed,
        )
        values.append(components.project(cohort.genotypes, rows=trait.rows))
    joined = np.hstack(values) if values else np.empty((len(trait.rows), 0))
    return joined.astype(np.float32), encoder, components


def _target(trait: Trait, parts: Split) -> tuple[NDArray[np.float32] | NDArray[np.int64], Scale]:
    if trait.kind == "multiclass":
        return trait.values.astype(np.int64), Scale(0.0, 1.0)
    if trait.kind == "binary":
        return trait.values.astype(np.float32), Scale(0.0, 1.0)
    train = trait.values[parts.train]
    scale = Scale(float(train.mean()), float(train.std()) or 1.0)
    return ((trait.values - scale.mean) / scale.sd).astype(np.float32), scale
