"""What htslib does not tell about a VCF: its sample names before it is opened, whether it is complete,
and how a broken record reads. Decodes no genotypes.
"""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import zlib
from pathlib import Path

from snpdeconv.errors import InputError
from snpdeconv.genetics.bgzf import BGZF_END

_GZIP_MAGIC = b"\x1f\x8b"
_BCF_MAGIC = b"BCF\x02"
_BGZF_SUBFIELD = b"BC\x02\x00"
_FIXED_COLUMNS = 9
_LOOK_AHEAD_BYTES = 2**20


def read_sample_names(path: Path) -> list[str]:
    """Reads the sample names from the header.

    Args:
        path: A VCF or BCF, compressed or not.

    Returns:
        The names in order, at least one.

    Raises:
        InputError: There is no header, no sample, or a name occurs twice.
    """
    try:
        with _open(path) as file:
            header = _bcf_header(file) if file.peek(4)[:4] == _BCF_MAGIC else file
            columns = next((line for line in header if line[:1] != b"#" or line[:6] == b"#CHROM"), b"")
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"the header cannot be read ({error})", where=path) from error
    if columns[:6] != b"#CHROM":
        raise InputError("not a VCF or BCF: no #CHROM line before the first record", where=path)
    names = columns.rstrip(b"\r\n\0").decode("utf-8", errors="replace").split("\t")[_FIXED_COLUMNS:]
    if not names:
        raise InputError("a VCF without samples: the #CHROM line has no sample columns", where=path)
    return names


def require_complete(path: Path) -> None:
    """Refuses a BGZF file that lacks its end: htslib would only warn, and give fewer records.

    Args:
        path: Any file; one that is not BGZF passes.

    Raises:
        InputError: The end-of-file block is missing.
    """
    with path.open("rb") as file:
        start = file.read(18)
        if not (start.startswith(_GZIP_MAGIC) and _BGZF_SUBFIELD in start):
            return
        file.seek(max(0, path.stat().st_size - len(BGZF_END)))
        if file.read() != BGZF_END:
            raise InputError(
                "cut off: the end-of-file block is missing", where=path, mend="copy the file again"
            )


def describe_record(path: Path, number: int) -> str:
    """Shows the text of a record that htslib cannot parse.

    Args:
        path: A VCF; a BCF has no text to show.
        number: The record, 1 for the first.

    Returns:
        Something to append to an error message, or nothing.
    """
    try:
        with _open(path) as file:
            if file.peek(4)[:4] == _BCF_MAGIC:
                return ""
            numbered = enumerate(file, start=1)
            records = ((n, line) for n, line in numbered if line[:1] != b"#")
            line_number, line = next(itertools.islice(records, number - 1, None))
            file.read(
                _LOOK_AHEAD_BYTES
            )  # Fails where htslib failed: at a damaged block, of which this is part.
    except (OSError, EOFError, zlib.error, StopIteration):
        return ": the file ends within it or is damaged there"
    columns = line.count(b"\t") + 1
    begin = line[:40].decode("utf-8", errors="replace").rstrip("\r\n").replace("\t", " ")
    return f" (line {line_number}, {columns} columns: '{begin}…')"


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _bcf_header(file: gzip.GzipFile | io.BufferedReader) -> list[bytes]:
    (length,) = struct.unpack("<I", file.read(9)[5:])
    return file.read(length).splitlines()
