"""The files of a run, by absolute path, so that a job started elsewhere finds them again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.files import read_record
from snpdeconv.genetics.samples import HashedSamples, Samples

_LISTS = ("keep", "remove", "extract", "exclude")
# Unused, these are no part of a digest: it names a run of the versions before them alike.
_LATER = (*_LISTS, "chrom", "covariate_columns")


@dataclass(frozen=True)
class Inputs:
    """Where a run's cohort and tables are.

    Attributes:
        genotypes: A .bed, .pgen or VCF file, a PLINK prefix, or an imported folder.
        phenotypes: Table with IID (and #FID) and the trait.
        trait: The trait's column.
        covariates: Table of covariates.
        blocks: Table of LD blocks or haploblocks.
        groups: Column of the phenotype table that names families or other groups.
        held_out: Table of the people to test on, or their hashes; drawn from the cohort where there is none.
        covariate_columns: Those of the covariate table that are used, with commas; all by default.
        keep: List of the only people used.
        remove: List of people left out.
        extract: List of the only variants used.
        exclude: List of variants left out.
        chrom: The only chromosomes used, such as ``1-4,22,X``.
    """

    genotypes: str
    phenotypes: str
    trait: str
    covariates: str | None = None
    blocks: str | None = None
    groups: str | None = None
    held_out: str | None = None
    covariate_columns: str | None = None
    keep: str | None = None
    remove: str | None = None
    extract: str | None = None
    exclude: str | None = None
    chrom: str | None = None

    @classmethod
    def from_paths(
        cls,
        *,
        genotypes: str | Path,
        phenotypes: str | Path,
        trait: str,
        covariates: str | Path | None = None,
        blocks: str | Path | None = None,
        groups: str | None = None,
        held_out: str | Path | None = None,
        selection: Mapping[str, str | Path | None] | None = None,
    ) -> Inputs:
        """Resolves the paths and checks that the tables are there.

        Args:
            genotypes: The cohort.
            phenotypes: Its table.
            trait: The column.
            covariates: As above.
            blocks: As above.
            groups: As above.
            held_out: As above.
            selection: The fields from `covariate_columns` on, by name.

        Raises:
            InputError: A table does not exist.
        """
        chosen = dict(selection or {})
        lists = [chosen.get(name) for name in _LISTS]
        if chosen.get("covariate_columns") is not None and covariates is None:
            raise ConfigError("there is no table", where="--covariate-columns", mend="give --covariates too")
        for table in (phenotypes, covariates, blocks, held_out, *lists):
            if table is not None and not Path(table).exists():
                raise InputError("no such file", where=table, mend="check the path")
            if table is not None and not Path(table).is_file():
                raise InputError("is not a regular file", where=table, mend="give the path of a table")
        return cls(
            genotypes=str(Path(genotypes).absolute()),
            phenotypes=str(Path(phenotypes).absolute()),
            trait=trait,
            covariates=None if covariates is None else str(Path(covariates).absolute()),
            blocks=None if blocks is None else str(Path(blocks).absolute()),
            groups=groups,
            held_out=None if held_out is None else str(Path(held_out).absolute()),
            **{
                name: str(Path(value).absolute()) if name in _LISTS else str(value)
                for name, value in chosen.items()
                if value is not None
            },
        )

    def table_digests(self) -> dict[str, str]:
        """SHA-256 of each table that there is."""
        digests = {}
        for table in ("phenotypes", "covariates", "blocks", "held_out", *_LISTS):
            if (path := getattr(self, table)) is not None:
                with Path(path).open("rb") as file:
                    digests[table] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests

    def digest(self, *, genotypes_digest: str) -> str:
        """Names what the files hold, not where they lie.

        Args:
            genotypes_digest: The imported cohort's digest.
        """
        content = {k: v for k, v in asdict(self).items() if v is not None or k not in _LATER}
        content |= {"genotypes": genotypes_digest, **self.table_digests()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_held_out(path: Path) -> Samples | HashedSamples:
    """The people to test on: a table of IDs, or the hashes that a model carries.

    Raises:
        InputError: It is neither.
    """
    if path.suffix != ".json":
        return Samples.read_tsv(path)
    return read_record(path, HashedSamples, mend="give a table with the columns #FID IID")
