"""A .bim as PLINK writes it is cut by numpy, any other one line by line: both give the same table."""

from __future__ import annotations

from pathlib import Path

import pytest

from snpdeconv.errors import InputError
from snpdeconv.genetics.formats import plink
from snpdeconv.genetics.formats.plink import Bim
from snpdeconv.genetics.variants import Variants

ROWS = [(str(1 + v // 40), f"rs{v}", "0", str(v * v + 1), "ACGT"[v % 4], "CGTA"[v % 4]) for v in range(100)]
PLAIN = "".join("\t".join(row) + "\n" for row in ROWS)


def check_and_read(path: Path, text: str, *, max_variants: int = 33) -> tuple[Bim, Variants]:
    path.write_bytes(text.encode())
    table = Bim.check(path)
    pieces = list(table.chunks(max_variants))
    assert [len(piece) for piece in pieces[:-1]] == [max_variants] * (len(pieces) - 1)
    variants = Variants.concat(pieces)
    assert table.num_variants == len(variants)
    return table, variants


@pytest.mark.parametrize("block_bytes", [1, 100, 2**20])
@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (PLAIN, True),
        (PLAIN.removesuffix("\n"), True),
        (PLAIN.replace("\t", " "), False),
        (PLAIN.replace("\t", "  \t"), False),
        (PLAIN.replace("\n", "\r\n"), False),
        (" " + PLAIN, False),
        (PLAIN.replace("rs7\t", "rs7\t\t", 1), False),
    ],
)
def test_all_ways_to_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, plain: bool, block_bytes: int
) -> None:
    monkeypatch.setattr(plink, "_BLOCK_BYTES", block_bytes)
    table, variants = check_and_read(tmp_path / "c.bim", text)
    assert table.plain is plain
    assert variants.variant_id.tolist() == [row[1] for row in ROWS]
    assert variants.chrom.tolist() == [row[0] for row in ROWS]
    assert variants.position_bp.tolist() == [int(row[3]) for row in ROWS]
    assert variants.counted_allele.tolist() == [row[4] for row in ROWS]
    assert variants.other_allele.tolist() == [row[5] for row in ROWS]


@pytest.mark.parametrize(
    ("old", "new"),
    [("rs7\t", "rsé\t"), ("\t50\t", "\t-50\t"), ("rs7\t", "rs\x7f7\t"), ("\t50\t", "\t٥\t")],
    ids=["not ASCII", "negative", "a control character", "digits of another script"],
)
def test_what_numpy_does_not_cut_is_read_line_by_line(tmp_path: Path, old: str, new: str) -> None:
    text = PLAIN.replace(old, new, 1)
    table, variants = check_and_read(tmp_path / "c.bim", text)
    assert not table.plain
    rows = [line.split("\t") for line in text.splitlines()]
    assert variants.variant_id.tolist() == [row[1] for row in rows]
    assert variants.position_bp.tolist() == [int(row[3]) for row in rows]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t0\t50\t", "\t50\t", "c.bim:8: 5 columns where 6"),
        ("\t50\t", "\t5O\t", "c.bim:8: position '5O' is not a number"),
        ("\t50\t", "\t1234567890123456789\t", "c.bim:8: position '1234567890123456789'"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_and_read(tmp_path / "c.bim", PLAIN.replace(old, new, 1))


def test_empty(tmp_path: Path) -> None:
    assert check_and_read(tmp_path / "c.bim", "")[0].num_variants == 0
