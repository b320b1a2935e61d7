"""A model folder that can be checked: SHA256SUMS beside the files, as `sha256sum -c` reads it.

Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from snpdeconv.errors import InputError
from snpdeconv.files import read_whole

CHECKSUMS = "SHA256SUMS"
MEND = "delete a cached copy to fetch it anew, or train the model again"
MOST_BYTES = 2 * 2**30
"""Bytes that the files of a model may have together; one of a million SNPs has 100 million."""
_MOST_FILES = 100
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^\x00-\x1f\\]{1,300})")


def seal(folder: Path) -> str:
    """Writes the checksums of all files of a folder.

    Returns:
        The digest of the folder: SHA-256 of its SHA256SUMS, in hexadecimal.
    """
    text = _checksums(folder)
    sums = folder / CHECKSUMS
    # The sender may be checking a folder that is sealed again: it must never find a half-written list.
    if not sums.is_file() or sums.read_bytes() != text.encode():
        sums.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(folder: Path, *, digest: str) -> None:
    """Checks that a folder holds exactly the files, byte for byte, that were sealed.

    Args:
        folder: The model folder.
        digest: What `seal` gave.

    Raises:
        InputError: A file is missing, changed or new.
    """
    sums = folder / CHECKSUMS
    text = read_whole(sums, limit=2**20, mend=MEND) if sums.is_file() else b""
    of_sums = hashlib.sha256(text).hexdigest()
    listed = _table(text.decode(errors="replace"), where=sums)
    found = _table(_checksums(folder), where=sums)
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            what = (
                "is missing"
                if name not in found
                else "is not listed"
                if name not in listed
                else "has changed"
            )
            raise InputError(
                f"{what}: SHA-256 {found.get(name, 'none')}, in {CHECKSUMS} {listed.get(name, 'none')}",
                where=folder / name,
                mend=MEND,
            )
    if of_sums != digest:
        raise _another(sums, digest)


def listed(text: bytes, *, where: str, digest: str) -> list[str]:
    """The names in a list of checksums that came from a store.

    Raises:
        InputError: It is not the list that was sealed, or names what is no file of a model.
    """
    if hashlib.sha256(text).hexdigest() != digest:
        raise _another(where, digest)
    return list(_table(text.decode(errors="replace"), where=where))


def _another(where: str | Path, digest: str) -> InputError:
    return InputError(f"is not the one that was registered (digest {digest[:12]})", where=where, mend=MEND)


def _checksums(folder: Path) -> str:
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / CHECKSUMS:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def _table(text: str, *, where: str | Path) -> dict[str, str]:
    table = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or any(part in ("", ".", "..") for part in match["name"].split("/")):
            raise InputError(f"is no list of checksums ({line[:100]!r})", where=where, mend=MEND)
        table[match["name"]] = match["digest"]
    if len(table) > _MOST_FILES:
        raise InputError(f"lists {len(table)} files", where=where, mend=MEND)
    return table
