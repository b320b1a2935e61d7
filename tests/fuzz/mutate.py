"""Damages files as transfers, editors, spreadsheets and attackers do: bytes, lines, fields, compressed content."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

from snpdeconv.simulation.writers import BgzfWriter

NASTY = (
    "", " ", ".", "-", "0", "-1", "-9", "-999", "1e999", "-inf", "nan", "NA", "1e-320", "9" * 400, "9" * 5000, "2147483648",
    "9223372036854775808", "32768", "1,5", "12.5%", "1,000", "1.0D-3", "0x1f", "1_000", "2024-02-30", "true", "null", "~",
    '"', "'", '"a', "a b", "a,b", "a;b", "\\", "\\n", "\x00", "\x7f", "\x1b[31m", "\ufeff", "é", "\u202e", "🧬", "١٢", "#", "##", "#CHROM",
    "*", "&a", "*a", "!!python/object/apply:os.system [ls]", "{}", "[", "]", "{", ":", "- -", "|", ">", "%TAG", "<<", "=1+1",
    "../../etc/passwd", "A" * 70_000, "IID", "FID", "chr1", "chrX", "25", "NC_000001.11", "ACGT", "<DEL>", "N[1:5[", "0/1", "./.", "7/9",
    "32769/1", "0/0/0", "1|", "0:", "GT", "DS",
)  # fmt: skip
_BYTES = (
    b"\x00",
    b"\xff",
    b"\n",
    b"\r\n",
    b"\r",
    b"\t",
    b" ",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b'"',
    b",",
    b"\x1f\x8b",
    b"\xed\xa0\x80",
)


def mutate(content: bytes, rng: Random) -> bytes:
    """Some damage to a file's content, of one to three kinds."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(_KINDS)(content, rng)
    return content


def mutate_file(path: Path, rng: Random) -> None:
    """Damages a file; what is compressed is damaged as it is, or inside, where a checksum no longer tells."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b" and rng.random() < 0.6:
        inner = mutate(gzip.decompress(content), rng)
        with BgzfWriter(path) as file:
            file.write(inner)
        return
    path.write_bytes(mutate(content, rng))


def _flip_bits(content: bytes, rng: Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 16)) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _set_bytes(content: bytes, rng: Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 2, 8)) if data else 0):
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return bytes(data)


def _set_word(content: bytes, rng: Random) -> bytes:
    """A length, count or offset of a binary format that is far off."""
    if len(content) < 8:
        return content
    at = rng.randrange(len(content) - 4)
    return (
        content[:at]
        + rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 0x10000, len(content))).to_bytes(4, "little")
        + content[at + 4 :]
    )


def _insert(content: bytes, rng: Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice((*_BYTES, rng.randbytes(rng.choice((1, 3, 50))))) + content[at:]


def _cut(content: bytes, rng: Random) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:first] + content[last:] if rng.random() < 0.5 else content[:first]


def _repeat(content: bytes, rng: Random) -> bytes:
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:last] + content[first:]


def _lines(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[other])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines.insert(at, rng.choice((b"", b"\t", b"#", b"##x", b"   ", b"\xff\xfe")))
        case 4:
            lines[at : at + 2] = [b"".join(lines[at : at + 2])]
        case 5:
            lines = [line + b"\r" for line in lines]
        case 6:
            lines[at] = lines[at] * rng.choice((2, 1000))
        case 7:
            lines[at] = b" " + lines[at] + rng.choice((b" ", b"\t", b"\t\t", b","))
    return b"\n".join(lines)


def _fields(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    number = rng.randrange(len(lines))
    delimiter = next((mark for mark in (b"\t", b",", b": ", b"=", b" ") if mark in lines[number]), b"\t")
    rows = range(len(lines)) if rng.random() < 0.2 else (number,)  # a whole column, or one field
    at, what, nasty = rng.randrange(12), rng.randrange(5), rng.choice(NASTY).encode("utf-8", "surrogatepass")
    for row in rows:
        fields = lines[row].split(delimiter)
        place = at % len(fields)
        if what <= 2:
            fields[place] = nasty
        elif what == 3:
            del fields[place]
        else:
            fields.insert(place, fields[place - 1])
        lines[row] = delimiter.join(fields)
    return b"\n".join(lines)


_KINDS = (
    _flip_bits,
    _set_bytes,
    _set_word,
    _insert,
    _cut,
    _repeat,
    _lines,
    _lines,
    _fields,
    _fields,
    _fields,
    _fields,
)
