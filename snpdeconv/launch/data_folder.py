"""What a user means by a folder, or by one file of it: the cohort, its tables and the trait."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics.readers import ACCEPTED, find_files
from snpdeconv.genetics.store import is_store
from snpdeconv.genetics.tables import ID_COLUMNS, read_table
from snpdeconv.pipelines.inputs import Inputs

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
                mend="name it with --phenotypes",
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
                mend=nearest(name, columns) if columns else "it has ID columns only",
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
        raise ConfigError("there is no table", where="--trait", mend="give --phenotypes too")
    for table in tables.values():
        if not table.is_file():
            raise InputError("no such file", where=table, mend="check the path")
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
        raise InputError(f"holds several cohorts ({names})", where=data, mend="name one of them")
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
        raise InputError("holds no cohort", where=data, mend=f"it may hold {ACCEPTED}")
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
            mend="name it with --trait",
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
            raise InputError(f"holds several tables ({names})", where=folder, mend="name one of them")
        if found:
            return found[0]
    return None
