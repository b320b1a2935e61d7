"""A simulated cohort on disk: genotypes, a trait and its truth, and on request further people to predict.

Owns the folder's layout and that nothing half-written stays in it; knows no coalescent and no trait model.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, nearest
from snpdeconv.genetics.cohort import writing_to
from snpdeconv.genetics.packed import MISSING
from snpdeconv.genetics.samples import Samples
from snpdeconv.simulation.genotypes import check_genotypes, population_labels, simulate_genotypes
from snpdeconv.simulation.traits import check_trait, simulate_trait
from snpdeconv.simulation.writers import write_bed, write_pgen, write_vcf

logger = logging.getLogger(__name__)


FILE_FORMATS = {"bed": ".bed", "pgen": ".pgen", "vcf": ".vcf.gz"}
"""The formats that a cohort can be written in, and how its file ends."""

_WRITERS: dict[str, Callable[..., Path]] = {"bed": write_bed, "pgen": write_pgen, "vcf": write_vcf}
_STAGING = ".partial"
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class SimulatedCohort:
    """Where a simulated cohort lies.

    Attributes:
        genotypes: The cohort's genotype file.
        phenotypes: Table ``#FID IID trait``, and ``population`` for the trait ancestry.
        causal: Table ``variant_id chrom pos role effect pair_effect``; a header alone for the trait ancestry.
        holdout_genotypes: Genotype file of the held-out people, or None.
        holdout_phenotypes: Their table, or None.
    """

    genotypes: Path
    phenotypes: Path
    causal: Path
    holdout_genotypes: Path | None = None
    holdout_phenotypes: Path | None = None


def simulate(
    out: str | Path,
    *,
    num_samples: int = 2000,
    num_variants: int = 2000,
    num_causal: int = 10,
    trait: str = "additive",
    pve: float = 0.5,
    prevalence: float = 0.1,
    seed: int = 1,
    file_format: str = "bed",
    contiguous: bool = False,
    length_mb: float | None = None,
    maf_min: float = 0.01,
    missing_rate: float = 0.0,
    num_holdout: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SimulatedCohort:
    """Writes a cohort with human-like LD and a trait whose causal variants are known.

    ``out`` then holds ``cohort.bed/.bim/.fam`` (or ``.pgen/.pvar/.psam``, or ``.vcf.gz``), ``phenotypes.tsv``
    and ``causal.tsv``; with ``num_holdout`` also a folder ``holdout`` with the cohort and the phenotypes of
    further people of the same population, whose trait follows the same model. Sizes and seed alone settle the
    genotypes, so that every trait is one of the same people; only ``ancestry`` needs others.

    `seed`: the same seed gives the same bytes.
    """
    check_genotypes(
        num_samples=num_samples, num_variants=num_variants, seed=seed, maf_min=maf_min, length_mb=length_mb
    )
    check_trait(trait, num_causal=num_causal, pve=pve, prevalence=prevalence, num_samples=num_samples)
    _check_files(file_format=file_format, missing_rate=missing_rate, num_holdout=num_holdout)
    out = Path(out)
    ancestry = trait == "ancestry"
    with _staged(out) as folder:
        codes, variants = simulate_genotypes(
            num_samples,
            num_variants=num_variants,
            seed=seed,
            contiguous=contiguous,
            length_mb=length_mb,
            maf_min=maf_min,
            from_three_populations=ancestry,
            num_holdout=num_holdout,
            progress=progress,
        )
        populations = population_labels(len(codes)) if ancestry else None
        truth = simulate_trait(
            codes,
            trait=trait,
            num_causal=num_causal,
            pve=pve,
            prevalence=prevalence,
            rng=np.random.default_rng([seed, 1]),
            populations=populations,
            num_holdout=num_holdout,
        )
        _lose_genotypes(codes, rate=missing_rate, rng=np.random.default_rng([seed, 2]))
        # S1, S2, … with as many digits as the last one needs, in no family, since a VCF could not name it.
        width = len(str(len(codes)))
        everyone = Samples.build([f"S{number:0{width}}" for number in range(1, len(codes) + 1)])
        parts = {folder: slice(0, num_samples)}
        if num_holdout:
            parts[folder / "holdout"] = slice(num_samples, None)
        for place, rows in parts.items():
            place.mkdir(exist_ok=True)
            samples = everyone.take(rows)
            _WRITERS[file_format](place / "cohort", codes[rows], variants=variants, samples=samples)
            columns = {"#FID": samples.fid, "IID": samples.iid, "trait": truth.values[rows]}
            if populations is not None:
                columns["population"] = populations[rows]
            _write_tsv(place / "phenotypes.tsv", pd.DataFrame(columns))
        causal = variants.take(truth.causal).to_frame()[["variant_id", "chrom", "pos"]]
        causal = causal.assign(role=truth.roles, effect=truth.effects, pair_effect=truth.pair_effects)
        _write_tsv(folder / "causal.tsv", causal)
    logger.info("%s: %d people, %d variants, trait %s", out, num_samples, num_variants, trait)
    cohort = f"cohort{FILE_FORMATS[file_format]}"
    return SimulatedCohort(
        genotypes=out / cohort,
        phenotypes=out / "phenotypes.tsv",
        causal=out / "causal.tsv",
        holdout_genotypes=out / "holdout" / cohort if num_holdout else None,
        holdout_phenotypes=out / "holdout" / "phenotypes.tsv" if num_holdout else None,
    )


def _check_files(*, file_format: str, missing_rate: float, num_holdout: int) -> None:
    if file_format not in FILE_FORMATS:
        raise ConfigError(
            f"unknown format '{file_format}'", where="format", hint=nearest(file_format, FILE_FORMATS)
        )
    if not 0 <= missing_rate < 1:
        raise ConfigError(
            f"{missing_rate:g} is not at least 0 and under 1", where="missing_rate", hint="give e.g. 0.01"
        )
    if num_holdout < 0:
        raise ConfigError(f"{num_holdout} people", where="holdout", hint="give 0 or more")


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Gives a folder inside ``out`` to write in, and moves what it holds into place when all went well.

    Inside, because ``out`` may be a mount point, onto which no other folder can be renamed.
    """
    staging = out / _STAGING
    made = not out.exists()
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        present = next(out.iterdir(), None)
        if present is not None:
            raise ConfigError(
                f"the folder is not empty (it holds '{present.name}')",
                where=out,
                hint="choose another folder, or empty it",
            )
        staging.mkdir()
    try:
        with writing_to(out):
            yield staging
            for entry in sorted(staging.iterdir()):
                entry.rename(out / entry.name)
            staging.rmdir()
    except BaseException:
        shutil.rmtree(out if made else staging, ignore_errors=True)
        raise


def _lose_genotypes(codes: NDArray[np.uint8], *, rate: float, rng: np.random.Generator) -> None:
    if rate == 0:
        return
    for start in range(0, len(codes), _ROWS_AT_ONCE):
        rows = codes[start : start + _ROWS_AT_ONCE]
        rows[rng.random(rows.shape, dtype=np.float32) < rate] = MISSING


def _write_tsv(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, sep="\t", index=False, float_format="%.9g", lineterminator="\n")
