"""Which people and variants of a cohort a user wants looked at, by lists as PLINK takes them.

Knows no genotypes and no traits. Shapes: N people, V variants of the cohort.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.files import read_whole
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants, normalise_chrom

logger = logging.getLogger(__name__)

MOST_BYTES = 2**30


def wanted_samples(samples: Samples, *, keep: str | None, remove: str | None) -> NDArray[np.bool_]:
    """(N,) people whom `keep` names and `remove` does not: FID and IID a line, or IID alone, header or not.

    Raises:
        InputError: A list cannot be read, or nobody is left.
    """
    wanted = np.ones(len(samples), dtype=bool)
    for option, path in (("--keep", keep), ("--remove", remove)):
        if path is None:
            continue
        listed = _read_samples(Path(path))
        named = listed.among(samples)
        logger.info("%s: %d people listed, %d of them in the cohort", path, len(listed), named.sum())
        wanted &= named if option == "--keep" else ~named
        if not wanted.any():
            mend = None if named.any() else samples.id_hint(listed)
            raise InputError(f"leaves nobody ({option})", where=path, mend=mend or "are the IDs of one form?")
    return wanted


def wanted_variants(
    variants: Variants, *, extract: str | None, exclude: str | None, chrom: str | None
) -> NDArray[np.bool_]:
    """(V,) variants of the chromosomes (``1-4,22,X``) whose IDs `extract` lists and `exclude` does not.

    Raises:
        InputError: A list cannot be read, or no variant is left.
        ConfigError: The chromosomes make no list, or none is in the cohort.
    """
    wanted = np.ones(len(variants), dtype=bool)
    if chrom is not None:
        wanted = np.isin(variants.chrom.astype(str), _chromosomes(chrom))
        if not wanted.any():
            there = ", ".join(map(str, dict.fromkeys(variants.chrom)))
            raise ConfigError(f"no variant is on {chrom}", where="--chr", mend=f"the cohort has {there}")
    for option, path in (("--extract", extract), ("--exclude", exclude)):
        if path is None:
            continue
        listed = _words(Path(path))
        named = np.isin(variants.variant_id.astype(str), listed)
        logger.info("%s: %d variants listed, %d in the cohort", path, len(listed), named.sum())
        wanted &= named if option == "--extract" else ~named
        if not wanted.any():
            raise InputError(
                f"leaves no variant ({option})", where=path, mend="give IDs as the cohort has them"
            )
    return wanted


def _lines(path: Path) -> list[list[str]]:
    mend = "give a list of IDs as text"
    try:
        text = read_whole(path, limit=MOST_BYTES, mend=mend).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, mend="check the path") from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=path, mend=mend) from error
    return [fields for line in text.splitlines() if (fields := line.split())]


def _words(path: Path) -> list[str]:
    return list(dict.fromkeys(word for fields in _lines(path) for word in fields))


def _read_samples(path: Path) -> Samples:
    lines = _lines(path)
    header = [name.lstrip("#") for name in lines[0]] if lines else []
    if header[:1] in (["FID"], ["IID"]):
        del lines[0]
    alone = header[:1] == ["IID"] or (header[:1] != ["FID"] and all(len(fields) == 1 for fields in lines))
    short = next((fields for fields in lines if len(fields) < 2 and not alone), None)
    if short is not None:
        raise InputError(
            f"'{short[0]}' has no IID beside it", where=path, mend="give FID and IID on each line"
        )
    if alone:
        return Samples.build([fields[0] for fields in lines])
    return Samples.build([fields[1] for fields in lines], fid=[fields[0] for fields in lines])


def _chromosomes(text: str) -> list[str]:
    names: list[str] = []
    for part in text.replace(",", " ").split():
        first, dash, last = (normalise_chrom(end) if end != "-" else end for end in part.partition("-"))
        if not dash:
            names.append(first)
        elif first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= 1000:
            names += map(str, range(int(first), int(last) + 1))
        else:
            raise ConfigError(f"'{part}' is no range", where="--chr", mend="write such as 1-4,22,X")
    return names
