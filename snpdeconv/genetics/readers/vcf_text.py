"""What htslib does not tell about a VCF: its sample names before it is opened, whether it is complete,
and how a broken record reads. Decodes no genotypes.
"""

from __future__ import annotations

import codecs
import gzip
import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from snpdeconv.errors import InputError
from snpdeconv.genetics.bgzf import BGZF_END

_GZIP_MAGIC = b"\x1f\x8b"
_BCF_MAGIC = b"BCF\x02"
_BGZF_SUBFIELD = b"BC\x02\x00"
_FIXED_COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")
# Bytes of a value by its type: three sizes of whole numbers, floats, characters. Type 0 has none.
_BCF_WIDTH = {1: 1, 2: 2, 3: 4, 5: 4, 7: 1}
_LENGTH_FOLLOWS = 15
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TAB = b"\t"
_LONGEST_LINE = 2**28
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
            is_bcf = file.peek(4)[:4] == _BCF_MAGIC
            header = iter(_bcf_header(file)) if is_bcf else _lines(file)
            columns = next((line for line in header if line[:1] != b"#" or line[:6] == b"#CHROM"), b"")
            record = b"" if is_bcf else next(header, b"")
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"the header cannot be read ({error})", where=path) from error
    if columns[:2] in _UTF_16 or columns[:3] == codecs.BOM_UTF8:
        raise InputError(
            "starts with a byte-order mark", where=path, mend="save it as plain UTF-8, or run dos2unix on it"
        )
    if columns[:6] != b"#CHROM":
        raise InputError("not a VCF or BCF: no #CHROM line before the first record", where=path)
    fields = columns.rstrip(b"\r\n\0").decode("utf-8", errors="replace").split("\t")
    names = [name.strip(" ") for name in fields[len(_FIXED_COLUMNS) :]]
    fixed = tuple(fields[: len(_FIXED_COLUMNS)])
    if not names and fixed in (_FIXED_COLUMNS, _FIXED_COLUMNS[:-1]):
        raise InputError("a VCF without samples: the #CHROM line has no sample columns", where=path)
    if fixed != _FIXED_COLUMNS:
        raise InputError(
            f"the #CHROM line begins {' '.join(fixed)}",
            where=path,
            mend=f"it must be {' '.join(_FIXED_COLUMNS)} and the samples, between single tabs",
        )
    if "" in names:
        raise InputError(
            f"sample {names.index('') + 1} of {len(names)} has no name in the #CHROM line",
            where=path,
            mend="name it, or take out the tab too much",
        )
    if record.strip() and record.count(b"\t") + 1 != len(fields):
        raise InputError(
            f"the #CHROM line has {len(fields)} columns and the first record {record.count(_TAB) + 1}",
            where=path,
            mend="name every sample, once",
        )
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


def require_sound_bcf(path: Path) -> None:
    """Refuses a BCF with a field of a sample that has no type: htslib would end the whole program there.

    Args:
        path: Any file; one that is no BCF passes.

    Raises:
        InputError: A record has such a field, or is cut off.
    """
    with _open(path) as file:
        number = 0
        try:
            if file.peek(4)[:4] != _BCF_MAGIC:
                return
            _bcf_header(file)
            while head := file.read(8):
                number += 1
                shared_bytes, sample_bytes = struct.unpack("<II", head)
                if max(shared_bytes, sample_bytes) > _LONGEST_LINE * 8:
                    raise EOFError
                shared, fields = file.read(shared_bytes), file.read(sample_bytes)
                (counts,) = struct.unpack_from("<I", shared, 20)
                _walk_fields(fields, num_samples=counts & 0xFFFFFF, num_fields=counts >> 24)
        except (OSError, EOFError, zlib.error, struct.error, IndexError, KeyError) as error:
            raise InputError(
                f"record {number} cannot be read: a field of its samples is damaged",
                where=path,
                mend="check it with `bcftools view`, or copy the file again",
            ) from error


def _walk_fields(fields: bytes, *, num_samples: int, num_fields: int) -> None:
    """Goes over the FORMAT fields of a BCF record; KeyError where one has no type of the specification."""
    at = 0
    for _ in range(num_fields):
        at += 1 + _BCF_WIDTH[fields[at] & 15]  # which field it is
        kind, length = fields[at] & 15, fields[at] >> 4
        at += 1
        if length == _LENGTH_FOLLOWS:
            width = _BCF_WIDTH[fields[at] & 15]
            length = int.from_bytes(fields[at + 1 : at + 1 + width], "little")
            at += 1 + width
        at += _BCF_WIDTH[kind] * length * num_samples
    if at > len(fields):
        raise EOFError


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
            numbered = enumerate(_lines(file), start=1)
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
    if length > _LONGEST_LINE:
        raise EOFError(f"of {length} bytes")
    return file.read(length).splitlines()


def _lines(file: gzip.GzipFile | io.BufferedReader) -> Iterator[bytes]:
    """Lines, but no gigabytes without a line break."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise EOFError(f"a line of over {_LONGEST_LINE} bytes")
        yield line
