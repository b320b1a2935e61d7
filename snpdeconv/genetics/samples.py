"""The people of a cohort by family and individual ID, in the order of the genotype rows, or by hashes.

Knows no traits and no genotypes; joining to tables by ID is done by the phenotypes module.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from snpdeconv.errors import InputError

NO_FAMILY = "0"

_SALT_BYTES = 16
_HASH_BYTES = 16
_SCRYPT = {"n": 2**8, "r": 8, "p": 1}
"""0.6 ms a person: a cohort of 100,000 takes a minute of one core."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """N samples. A format without family IDs (VCF) gives the family ``0``, as PLINK 2 does.

    Attributes:
        fid: (N,) str, family IDs.
        iid: (N,) str, individual IDs.
        female: (N,) whether the file says so; None where it says nothing of sex. No store keeps it.
    """

    fid: NDArray[np.object_]
    iid: NDArray[np.object_]
    female: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.iid)

    @classmethod
    def build(
        cls, iid: ArrayLike, *, fid: ArrayLike | None = None, female: ArrayLike | None = None
    ) -> Samples:
        """Makes the table from (N,) sequences; None is for what the source does not tell."""
        individuals = np.asarray(iid, dtype=object)
        families = np.asarray([NO_FAMILY] * len(individuals) if fid is None else fid, dtype=object)
        known = None if female is None else np.asarray(female, dtype=bool)
        return cls(fid=families, iid=individuals, female=known)

    @property
    def has_fid(self) -> bool:
        """Whether any sample has a family ID of its own; if not, IIDs alone name the samples."""
        return bool((self.fid != NO_FAMILY).any())

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Samples:
        """Selects samples."""
        female = None if self.female is None else self.female[index]
        return Samples(fid=self.fid[index], iid=self.iid[index], female=female)

    def among(self, others: Samples) -> NDArray[np.bool_]:
        """(n,) which of others are of this table, by individual ID, and family ID where both have them."""
        if self.has_fid and others.has_fid:
            known = set(zip(self.fid, self.iid, strict=True))
            return np.array([pair in known for pair in zip(others.fid, others.iid, strict=True)], dtype=bool)
        return np.isin(others.iid.astype(str), self.iid.astype(str))

    def id_hint(self, others: Samples) -> str | None:
        """What to do where others share no ID because one side's are FID_IID, as PLINK writes into a VCF.

        None where most IDs of neither side end in ``_`` and one of the other.
        """
        for pasted, plain in ((self.iid, others.iid), (others.iid, self.iid)):
            known = set(plain)
            ends = (name.split("_") for name in pasted)
            found = sum(any("_".join(end[i:]) in known for i in range(1, len(end))) for end in ends)
            if 2 * found >= min(len(pasted), len(plain)) > 0:
                first = next(name for name in pasted if "_" in name)
                return (
                    f"IDs such as '{first}' are FID_IID, as PLINK writes them into a VCF: write it with "
                    "`plink2 --export vcf id-paste=iid` (PLINK 1.9: `--recode vcf-iid`), or name people so "
                    "on both sides"
                )
        return None

    def require_unique(self, *, where: str | Path) -> None:
        """Refuses a cohort in which two samples share family and individual ID."""
        frame = pd.DataFrame({"fid": self.fid, "iid": self.iid})
        repeats = np.flatnonzero(frame.duplicated().to_numpy())
        if len(repeats) == 0:
            return
        second = int(repeats[0])
        first = int(np.flatnonzero((self.fid == self.fid[second]) & (self.iid == self.iid[second]))[0])
        name = f"'{self.iid[second]}'" if not self.has_fid else f"'{self.fid[second]} {self.iid[second]}'"
        raise InputError(
            f"sample ID {name} occurs twice (samples {first + 1} and {second + 1}; "
            f"{len(repeats)} repeated in all)",
            where=where,
            hint="give every sample an ID of its own",
        )

    def write_tsv(self, path: Path) -> None:
        """Writes ``#FID IID``, one line a sample; equal tables give equal bytes."""
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write("#FID\tIID\n")
            file.writelines(f"{fid}\t{iid}\n" for fid, iid in zip(self.fid, self.iid, strict=True))

    @classmethod
    def read_tsv(cls, path: Path) -> Samples:
        """Reads what :meth:`write_tsv` wrote."""
        try:
            frame = pd.read_csv(
                path,
                sep="\t",
                dtype="str",
                na_filter=False,
                quoting=csv.QUOTE_NONE,
                usecols=["#FID", "IID"],
            )
        except ValueError as error:
            raise InputError(f"not a table of samples ({str(error).strip()})", where=path) from error
        return cls.build(frame["IID"].astype(object), fid=frame["#FID"].astype(object))


@dataclass(frozen=True, kw_only=True)
class HashedSamples:
    """Samples that can be recognised by whoever has their IDs, and read by nobody: salted hashes, sorted.

    Whoever can list the IDs that there may be, such as 1 to 5000, can try them all, at 0.6 ms an ID.

    Attributes:
        salt: In hexadecimal, drawn for this table alone.
        individuals: Of the individual IDs.
        pairs: Of family and individual ID; empty where there are no family IDs.
    """

    salt: str
    individuals: tuple[str, ...]
    pairs: tuple[str, ...] = ()

    @classmethod
    def from_samples(cls, samples: Samples) -> HashedSamples:
        """Hashes samples, under a new salt."""
        salt = os.urandom(_SALT_BYTES)
        pairs = _hashes(_pairs(samples), salt=salt) if samples.has_fid else []
        individuals = _hashes(samples.iid, salt=salt)
        return cls(salt=salt.hex(), individuals=tuple(sorted(individuals)), pairs=tuple(sorted(pairs)))

    def __len__(self) -> int:
        return len(self.individuals)

    def among(self, others: Samples) -> NDArray[np.bool_]:
        """As :meth:`Samples.among`: which of (n,) others are of this table."""
        by_pair = bool(self.pairs) and others.has_fid
        known = set(self.pairs if by_pair else self.individuals)
        names = _hashes(_pairs(others) if by_pair else others.iid, salt=bytes.fromhex(self.salt))
        return np.array([name in known for name in names], dtype=bool)


def _pairs(samples: Samples) -> list[str]:
    return [f"{fid}\t{iid}" for fid, iid in zip(samples.fid, samples.iid, strict=True)]


def _hashes(names: Iterable[str], *, salt: bytes) -> list[str]:
    def one(name: str) -> str:
        return hashlib.scrypt(name.encode(), salt=salt, dklen=_HASH_BYTES, **_SCRYPT).hex()

    # hashlib lets go of the interpreter's lock meanwhile.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(one, map(str, names)))
