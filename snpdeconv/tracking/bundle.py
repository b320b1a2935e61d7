"""A model folder that can be checked: SHA256SUMS beside the files, as `sha256sum -c` reads it.

Knows nothing of what the files mean.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from snpdeconv.errors import InputError

CHECKSUMS = "SHA256SUMS"
_MEND = "delete a cached copy to fetch it anew, or train the model again"


def seal(folder: Path) -> str:
    """Writes the checksums of all files of a folder.

    Returns:
        The digest of the folder: SHA-256 of its SHA256SUMS, in hexadecimal.
    """
    text = _checksums(folder)
    sums = folder / CHECKSUMS
    # The sender may be checking a folder that is sealed again: it must never find a half-written list.
    if not sums.is_file() or sums.read_text() != text:
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
    listed_text = (folder / CHECKSUMS).read_text() if (folder / CHECKSUMS).is_file() else ""
    listed = _table(listed_text)
    found = _table(_checksums(folder))
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
                mend=_MEND,
            )
    if hashlib.sha256(listed_text.encode()).hexdigest() != digest:
        raise InputError(
            f"is not the one that was registered (digest {digest[:12]})",
            where=folder / CHECKSUMS,
            mend=_MEND,
        )


def _checksums(folder: Path) -> str:
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / CHECKSUMS:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def _table(text: str) -> dict[str, str]:
    return {line[66:]: line[:64] for line in text.splitlines()}
