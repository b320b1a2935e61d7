"""The files of a run, by absolute path, so that a job started elsewhere finds them again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from snpdeconv.errors import InputError
from snpdeconv.files import read_record
from snpdeconv.genetics.samples import HashedSamples, Samples


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
    """

    genotypes: str
    phenotypes: str
    trait: str
    covariates: str | None = None
    blocks: str | None = None
    groups: str | None = None
    held_out: str | None = None

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
    ) -> Inputs:
        """Resolves the paths and checks that the tables are there.

        Raises:
            InputError: A table does not exist.
        """
        for table in (phenotypes, covariates, blocks, held_out):
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
        )

    def table_digests(self) -> dict[str, str]:
        """SHA-256 of each table that there is."""
        digests = {}
        for table in ("phenotypes", "covariates", "blocks", "held_out"):
            if (path := getattr(self, table)) is not None:
                with Path(path).open("rb") as file:
                    digests[table] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests

    def digest(self, *, genotypes_digest: str) -> str:
        """Names what the files hold, not where they lie.

        Args:
            genotypes_digest: The imported cohort's digest.
        """
        content = {**asdict(self), "genotypes": genotypes_digest, **self.table_digests()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_held_out(path: Path) -> Samples | HashedSamples:
    """The people to test on: a table of IDs, or the hashes that a model carries.

    Raises:
        InputError: It is neither.
    """
    if path.suffix != ".json":
        return Samples.read_tsv(path)
    return read_record(path, HashedSamples, mend="give a table with the columns #FID IID")
