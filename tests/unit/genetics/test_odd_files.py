"""Files as other programs and species have them: read as they are meant, or refused with the reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from snpdeconv.errors import InputError
from snpdeconv.genetics.harmonise import match_variants
from snpdeconv.genetics.ingest import import_cohort, load_cohort
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.writers import write_bed, write_pgen

RNG = np.random.default_rng(8)
CODES = RNG.integers(0, 3, (21, 10)).astype(np.uint8)


def table(
    chrom=("1",) * 10, counted=("A",) * 10, other=("G",) * 10, position=range(100, 110), name=None
) -> Variants:
    return Variants.build(
        variant_id=list(name or [f"v{n}" for n in range(len(chrom))]),
        chrom=list(chrom), position_bp=list(position), counted_allele=list(counted), other_allele=list(other),
    )  # fmt: skip


def bed(folder: Path, codes=CODES, **columns) -> Path:
    samples = Samples.build([f"p{n}" for n in range(len(codes))], fid=[f"f{n}" for n in range(len(codes))])
    return write_bed(folder / "c", codes, variants=table(**columns), samples=samples)


def vcf(
    path: Path, records: list[tuple[str, ...]], names: list[str], header: str = "", ends: str = "\n"
) -> Path:
    head = '##fileformat=VCFv4.2\n##contig=<ID=1>\n##FORMAT=<ID=GT,Number=1,Type=String,Description="c">\n'
    head += '##FORMAT=<ID=DS,Number=1,Type=Float,Description="d">\n##FORMAT=<ID=GP,Number=G,Type=Float,Description="p">\n'
    columns = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]
    lines = ["\t".join([*columns, *names]), *("\t".join(r) for r in records)]
    path.write_text(head + header + ends.join(lines) + ends)
    return path


def record(
    position: int, *calls: str, form: str = "GT", ref: str = "A", alt: str = "G", chrom: str = "1"
) -> tuple[str, ...]:
    return chrom, str(position), f"v{position}", ref, alt, ".", ".", ".", form, *calls


@pytest.mark.parametrize("suffix", [".bim", ".fam"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, suffix):
    path = bed(tmp_path)
    plain = import_cohort(path, tmp_path / "plain")
    file = path.with_suffix(suffix)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    marked = import_cohort(path, tmp_path / "marked")
    assert marked.digest == plain.digest


@pytest.mark.parametrize("suffix", [".pvar", ".psam"])
def test_a_byte_order_mark_in_the_tables_of_a_pgen(tmp_path, suffix):
    samples = Samples.build([f"p{n}" for n in range(len(CODES))])
    path = write_pgen(tmp_path / "c", CODES, variants=table(), samples=samples)
    plain = import_cohort(path, tmp_path / "plain")
    file = path.with_suffix(suffix)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert import_cohort(path, tmp_path / "marked").digest == plain.digest


@pytest.mark.parametrize("suffix", [".bim", ".fam"])
def test_quoted_tables_are_refused_with_the_reason(tmp_path, suffix):
    file = bed(tmp_path).with_suffix(suffix)
    rows = (line.split("\t") for line in file.read_text().splitlines())
    file.write_text("".join("\t".join(f'"{field}"' for field in row) + "\n" for row in rows))
    with pytest.raises(InputError, match="stand in quotation marks"):
        import_cohort(file.with_suffix(".bed"), tmp_path / "store")


def test_the_codes_of_a_species(tmp_path):
    chrom = ["22", "23", "24", "25", "26", "27", "29", "30", "31", "33"]
    path = bed(tmp_path)
    lines = [line.split("\t") for line in path.with_suffix(".bim").read_text().splitlines()]
    path.with_suffix(".bim").write_text(
        "".join("\t".join([c, *line[1:]]) + "\n" for c, line in zip(chrom, lines, strict=True))
    )
    with pytest.raises(InputError, match=r"chromosome 33 is none .*22 autosomes.*chromosome_set=cow"):
        import_cohort(path, tmp_path / "human")
    cattle = import_cohort(path, tmp_path / "cow", autosomes=29)
    assert cattle.variants.chrom.tolist() == ["22", "23", "24", "25", "26", "27", "29", "X", "Y", "MT"]


def test_a_vcf_has_no_codes(tmp_path):
    path = vcf(
        tmp_path / "c.vcf",
        [record(n, "0/1", "1/1", chrom=c) for n, c in ((5, "chr23"), (6, "chr25"), (7, "chrX"))],
        ["a", "b"],
    )
    assert import_cohort(path, tmp_path / "store").variants.chrom.tolist() == ["23", "25", "X"]


def test_of_two_copies_the_one_with_more_calls_stays(tmp_path):
    codes = CODES.copy()
    codes[:, 4] = 3
    codes[3:, 6] = 3
    path = bed(tmp_path, codes, position=[100, 101, 102, 103, 104, 104, 106, 106, 106, 109])
    store = import_cohort(path, tmp_path / "store")
    assert store.report["duplicate_variants"] == 3
    assert store.variants.variant_id.tolist() == ["v0", "v1", "v2", "v3", "v5", "v7", "v9"]
    assert np.array_equal(store.genotypes.codes(), codes[:, [0, 1, 2, 3, 5, 7, 9]])


def test_calls_of_women_on_y_are_missing(tmp_path):
    sex = np.arange(len(CODES)) % 3
    samples = Samples.build([f"p{n}" for n in range(len(CODES))])
    chrom = ["X"] * 5 + ["Y"] * 5
    for write in (write_bed, write_pgen):
        path = write(tmp_path / write.__name__, CODES, variants=table(chrom=chrom), samples=samples, sex=sex)
        store = import_cohort(path, tmp_path / f"{write.__name__}-store")
        assert np.array_equal(store.genotypes.codes()[:, :5], CODES[:, :5])
        assert (store.genotypes.codes()[sex == 2, 5:] == 3).all()
        assert np.array_equal(store.genotypes.codes()[sex != 2, 5:], CODES[sex != 2, 5:])
        assert store.report["female_y_calls"] == 7 * 5


@pytest.mark.parametrize(
    "columns, what",
    [
        ({"counted": ["A"] * 9 + ["G"]}, "'G' as both alleles"),
        ({"other": ["G"] * 9 + [""]}, "empty allele"),
        ({"chrom": ["1"] * 9 + [""]}, "no chromosome"),
    ],
)
def test_variants_that_are_none(tmp_path, columns, what):
    path = vcf(
        tmp_path / "c.vcf",
        [record(n, "0/1", "1/1", ref=r, alt=a, chrom=c) for n, (a, r, c) in enumerate(zip(
            columns.get("counted", ["A"] * 10), columns.get("other", ["G"] * 10), columns.get("chrom", ["1"] * 10), strict=True), 5)],
        ["a", "b"],
    )  # fmt: skip
    with pytest.raises(InputError, match=what if "chrom" not in columns else "cannot be read|no chromosome"):
        import_cohort(path, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("allele", ["32768", "65537", "70000", "2147483"])
def test_allele_numbers_do_not_wrap_round(tmp_path, allele):
    path = vcf(tmp_path / "c.vcf", [record(5, "0/1", "1/1"), record(6, f"0/{allele}", "1/1")], ["a", "b"])
    with pytest.raises(InputError, match=f"record 2 names allele {allele} of 1 ALT"):
        import_cohort(path, tmp_path / "store")


@pytest.mark.parametrize(
    "names, what",
    [
        (["a", "b"], "12 columns|11 columns and the first record 12"),
        (["a", "", "c"], "sample 2 of 3 has no name"),
        (["a", "b", "c", ""], "sample 4 of 4 has no name"),
        (["a", "b", "c", "d"], "13 columns and the first record 12"),
    ],
)
def test_a_header_with_other_names_than_columns(tmp_path, names, what):
    path = vcf(tmp_path / "c.vcf", [record(5, "0/1", "1/1", "0/0")], names)
    with pytest.raises(InputError, match=what):
        import_cohort(path, tmp_path / "store")


def test_blanks_after_sample_names_are_no_part_of_them(tmp_path):
    path = vcf(tmp_path / "c.vcf", [record(5, "0/1", "1/1", "0/0")], ["a ", " b", "c"])
    assert import_cohort(path, tmp_path / "store").samples.iid.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    "change", ["no format column", "no version", "mark", "utf-16", "blank first", "lower case"]
)
def test_odd_headers_are_refused_in_one_line(tmp_path, change):
    path = vcf(tmp_path / "c.vcf", [record(5, "0/1", "1/1", "0/0")], ["a", "b", "c"])
    text = path.read_text()
    changed = {
        "no format column": text.replace("\tFORMAT\ta", "\ta"), "no version": text.split("\n", 1)[1], "mark": "\ufeff" + text,
        "utf-16": text, "blank first": "\n" + text, "lower case": text.replace("#CHROM", "#chrom"),
    }[change]  # fmt: skip
    path.write_text(changed, encoding="utf-16" if change == "utf-16" else "utf-8")
    with pytest.raises(InputError) as caught:
        import_cohort(path, tmp_path / "store")
    assert "c.vcf" in str(caught.value)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize(
    "form, calls",
    [
        ("DS", ("0.1", "1.2")),
        ("GP", ("1,0,0", "0,.5,.5")),
        ("GT:DS", ("./.:0.1", "0/1:1.2")),
        ("GT:GP", ("./.:1,0,0", "0/1")),
    ],
)
def test_a_dosage_that_would_be_lost_is_refused(tmp_path, form, calls):
    path = vcf(tmp_path / "c.vcf", [record(5, "0/1", "1/1"), record(6, *calls, form=form)], ["a", "b"])
    with pytest.raises(InputError, match=r"record 2 has dosages.*not read yet.*hard-call-threshold"):
        import_cohort(path, tmp_path / "store")


def test_calls_beside_dosages_are_read(tmp_path):
    path = vcf(
        tmp_path / "c.vcf",
        [record(5, "0/1:1.1", "./.:.", form="GT:DS"), record(6, "0/1:1", "1/1", form="GT:DS")],
        ["a", "b"],
    )
    assert import_cohort(path, tmp_path / "store").genotypes.codes().tolist() == [[1, 1], [3, 2]]


@pytest.mark.skipif(shutil.which("plink2") is None, reason="needs plink2")
def test_a_pgen_of_dosages_is_refused_and_its_remedy_works(tmp_path):
    rows = [record(n, *(f"0/1:{d:.2f}" for d in RNG.uniform(0, 2, 12)), form="GT:DS") for n in range(5, 20)]
    vcf(tmp_path / "d.vcf", rows, [f"p{n}" for n in range(12)])

    def plink2(*words: str) -> None:
        subprocess.run(
            ["plink2", "--threads", "1", "--memory", "900", *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    plink2("--vcf", "d.vcf", "dosage=DS", "--make-pgen", "--out", "d")
    with pytest.raises(
        InputError, match=r"dosages for \d+ samples without a call.*--hard-call-threshold 0.499"
    ):
        import_cohort(tmp_path / "d.pgen", tmp_path / "store")
    plink2("--pfile", "d", "--hard-call-threshold", "0.499", "--make-bed", "--out", "called")
    assert (import_cohort(tmp_path / "called.bed", tmp_path / "store").genotypes.codes() == 3).mean() < 0.02


@pytest.mark.parametrize("form", [".pvar without header", ".pvar that lost its header", ".bim and .fam"])
def test_a_pgen_with_other_tables(tmp_path, form):
    samples = Samples.build([f"p{n}" for n in range(len(CODES))], fid=[f"f{n}" for n in range(len(CODES))])
    path = write_pgen(tmp_path / "c", CODES, variants=table(other=["G", "C"] * 5), samples=samples)
    plain = import_cohort(path, tmp_path / "plain")
    pvar = path.with_suffix(".pvar")
    lines = [line for line in pvar.read_text().splitlines() if not line.startswith("#")]
    if form == ".bim and .fam":
        pvar.unlink()
        path.with_suffix(".psam").unlink()
        rows = (line.split("\t") for line in lines)
        path.with_suffix(".bim").write_text(
            "".join(f"{c}\t{i}\t0\t{p}\t{alt}\t{ref}\n" for c, p, i, ref, alt in rows)
        )
        ids = zip(samples.fid, samples.iid, strict=True)
        path.with_suffix(".fam").write_text("".join(f"{f}\t{i}\t0\t0\t0\t-9\n" for f, i in ids))
    elif form == ".pvar that lost its header":
        pvar.write_text("".join(line + "\n" for line in lines))
    else:
        # As plink2 takes it: the columns of a .bim.
        rows = (line.split("\t") for line in lines)
        pvar.write_text("".join(f"{c}\t{i}\t{p}\t{alt}\t{ref}\n" for c, p, i, ref, alt in rows))
    assert load_cohort(path, cache_dir=tmp_path / "cache").digest == plain.digest


def test_untrimmed_alleles_and_pseudo_autosomal_regions_meet():
    model = table(
        chrom=["1", "1", "1", "XY", "X"], position=[100, 200, 300, 400, 500],
        counted=["GAT", "G", "CA", "A", "A"], other=["CAT", "A", "C", "G", "C"],
    )  # fmt: skip
    cohort = table(
        chrom=["1", "1", "1", "X", "XY"], position=[100, 198, 299, 400, 500],
        counted=["G", "TTG", "TCA", "G", "A"], other=["C", "TTA", "TC", "A", "C"],
    )  # fmt: skip
    match = match_variants(model, cohort=cohort)
    assert match.column.tolist() == [0, 1, 2, 3, 4]
    assert match.flip.tolist() == [False, False, False, True, False]
