"""The files that a user named, or that lie in a folder; what is missing is told before work begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics.cohort import is_store
from snpdeconv.genetics.formats import ACCEPTED, find_files
from snpdeconv.genetics.samples import ID_COLUMNS, read_table
from snpdeconv.pipelines.run_folder import Inputs

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
    groups: str | None = None,
    **others: str | Path | None,
) -> Inputs:
    """The inputs of a run from a folder such as `simulate` writes, an imported cohort, or a genotype file.

    Tables that are not named lie beside the genotypes; the trait is the table's only column, or called trait.
    `others` are further fields of `Inputs`.
    """
    cohorts = find_all_genotypes(data)
    if len(cohorts) > 1:
        names = ", ".join(path.name for path in cohorts)
        raise InputError(f"holds several cohorts ({names})", where=data, hint="name one of them")
    genotypes = cohorts[0]
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
            trait=trait or _find_trait(phenotypes, groups=groups),
            covariates=covariates or _only(place, _COVARIATES),
            groups=groups,
            **others,
        )
    )


def check_inputs(inputs: Inputs) -> Inputs:
    """Refuses, before anything is queued or loaded, files and columns that are not there."""
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
    """Refuses a cohort that is not there, or not whole."""
    if not is_store(path):
        find_files(path)


def check_tables(tables: Mapping[str, Path], *, trait: str | None) -> None:
    """Refuses tables for a prediction that are not there, and a trait that is not in its table."""
    if trait is not None and "phenotypes" not in tables:
        raise ConfigError("there is no table", where="--trait", hint="give --phenotypes too")
    for table in tables.values():
        if not table.is_file():
            raise InputError("no such file", where=table, hint="check the path")
    if trait is not None:
        _check_columns(tables["phenotypes"], {"--trait": trait})


def find_all_genotypes(data: Path) -> list[Path]:
    """All cohorts of a folder, by name, or what was named itself."""
    if not data.is_dir() or is_store(data):
        return [data]
    matches = {path for pattern in _GENOTYPES for path in data.glob(pattern)}
    # A .bed may be a table of blocks as well.
    found = sorted(path for path in matches if path.suffix != ".bed" or path.with_suffix(".bim").exists())
    found += sorted(path for path in data.iterdir() if path.is_dir() and is_store(path))
    if not found:
        raise InputError("holds no cohort", where=data, hint=f"it may hold {ACCEPTED}")
    return found


def _find_trait(phenotypes: Path, *, groups: str | None) -> str:
    """The table's only column besides the IDs, or the one called trait."""
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


def _only(folder: Path, patterns: tuple[str, ...]) -> Path | None:
    for pattern in patterns:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(f"holds several tables ({names})", where=folder, hint="name one of them")
        if found:
            return found[0]
    return None
