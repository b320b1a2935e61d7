from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import shutil
from pathlib import Path

import bed_reader
import cyvcf2
import numpy as np
import pytest

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.genetics import cohort as store_writer
from snpdeconv.genetics import ingest
from snpdeconv.genetics.cohort import open_store
from snpdeconv.genetics.ingest import import_cohort, load_cohort
from snpdeconv.genetics.packed import allele_frequency
from snpdeconv.simulation.writers import write_bed, write_pgen, write_vcf

WRITERS = {"bed": write_bed, "pgen": write_pgen, "vcf": write_vcf}


@pytest.mark.parametrize("num_samples", [1, 4, 7, 13])
def test_one_cohort_in_three_formats_gives_one_store(tmp_path: Path, random_cohort, num_samples: int) -> None:
    codes, variants, samples = random_cohort(num_samples)
    digests = set()
    for kind, write in WRITERS.items():
        source = write(tmp_path / kind, codes, variants=variants, samples=samples)
        cohort = import_cohort(source, tmp_path / f"{kind}.store")
        np.testing.assert_array_equal(cohort.genotypes.codes(), codes)
        assert cohort.variants.to_frame().equals(variants.to_frame())
        assert cohort.source == str(source)
        digests.add(cohort.digest)
    assert len(digests) == 1


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("small", [False, True])
def test_unsorted_source_is_sorted(
    tmp_path: Path, random_cohort, monkeypatch: pytest.MonkeyPatch, kind: str, small: bool
) -> None:
    if small:  # Chunks of four variants, blocks of one sample.
        monkeypatch.setattr(ingest, "_CHUNK_BYTES", 1)
        monkeypatch.setattr(store_writer, "_BLOCK_BYTES", 1)
    codes, variants, samples = random_cohort()
    shuffled = np.random.default_rng(3).permutation(len(variants))
    source = WRITERS[kind](
        tmp_path / "c", codes[:, shuffled], variants=variants.take(shuffled), samples=samples
    )
    cohort = import_cohort(source, tmp_path / "store")
    np.testing.assert_array_equal(cohort.genotypes.codes(), codes)
    assert cohort.variants.to_frame().equals(variants.to_frame())


def test_repeated_variants_are_dropped_and_counted(tmp_path: Path, random_cohort) -> None:
    codes, variants, samples = random_cohort()
    again = np.concatenate([np.arange(22), [3, 20]])
    write_bed(tmp_path / "c", codes[:, again], variants=variants.take(again), samples=samples)
    cohort = import_cohort(tmp_path / "c", tmp_path / "store")
    assert cohort.report["duplicate_variants"] == 2
    np.testing.assert_array_equal(cohort.genotypes.codes(), codes)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("small", [False, True])
def test_variants_without_a_place_are_left_out_and_counted(
    tmp_path: Path, random_cohort, monkeypatch: pytest.MonkeyPatch, kind: str, small: bool
) -> None:
    if small:
        monkeypatch.setattr(ingest, "_CHUNK_BYTES", 1)
    codes, variants, samples = random_cohort()
    chrom, position = variants.chrom.copy(), variants.position_bp.copy()
    unplaced = np.array([0, 1, 2, 3, 9, 21])
    # Two that look like one site, and a whole chunk of four.
    chrom[unplaced[:3]], position[unplaced[:2]] = "0", 0
    position[unplaced[3:]] = [0, 0, 0] if kind == "vcf" else [-5, 0, -100]
    moved = dataclasses.replace(variants, chrom=chrom, position_bp=position)
    source = WRITERS[kind](tmp_path / "c", codes, variants=moved, samples=samples)
    cohort = import_cohort(source, tmp_path / "store")
    assert cohort.report["skipped_unplaced"] == 6
    assert cohort.report["duplicate_variants"] == 0
    kept = np.delete(np.arange(22), unplaced)
    np.testing.assert_array_equal(cohort.genotypes.codes(), codes[:, kept])
    assert cohort.variants.to_frame().equals(variants.take(kept).to_frame())


def test_no_variant_with_a_place(tmp_path: Path, random_cohort) -> None:
    codes, variants, samples = random_cohort()
    nowhere = dataclasses.replace(variants, chrom=np.full(22, "0", dtype=object))
    source = write_bed(tmp_path / "c", codes, variants=nowhere, samples=samples)
    with pytest.raises(InputError, match=r"no variants \(skipped_unplaced 22\)"):
        import_cohort(source, tmp_path / "store")


def test_import_into_the_folder_one_is_in(
    tmp_path: Path, random_cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, variants, samples = random_cohort()
    source = write_bed(tmp_path / "c", codes, variants=variants, samples=samples)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_cohort(source, ".")
    assert (tmp_path / "here" / "store.json").is_file()
    np.testing.assert_array_equal(
        load_cohort(tmp_path / "here", cache_dir=tmp_path / "cache").genotypes.codes(), codes
    )


def test_import_of_a_store_says_that_it_is_one(tmp_path: Path, written) -> None:
    import_cohort(written("bed"), tmp_path / "store")
    with pytest.raises(InputError, match="store: is imported already"):
        import_cohort(tmp_path / "store", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("kind", WRITERS)
def test_repeated_sample_ids_are_refused(tmp_path: Path, random_cohort, kind: str) -> None:
    codes, variants, samples = random_cohort(4)
    table = {"bed": "c.fam", "pgen": "c.psam", "vcf": "c.vcf.gz"}[kind]
    source = WRITERS[kind](tmp_path / "c", codes, variants=variants, samples=samples)
    if kind == "vcf":
        text = "\n".join(
            [
                cyvcf2.VCF(str(source)).raw_header.rstrip().replace("S3", "S1"),
                "1\t5\t.\tA\tC\t.\t.\t.\tGT" + 4 * "\t0/1",
            ]
        )
        source = tmp_path / "c.vcf"
        source.write_text(text + "\n")
        table = "c.vcf"
    else:
        path = tmp_path / table
        path.write_text(path.read_text().replace("S3", "S1"))
    with pytest.raises(InputError, match=rf"{table}: sample ID 'S1' occurs twice \(samples 2 and 4"):
        import_cohort(source, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_cohorts_without_variants_or_samples(tmp_path: Path) -> None:
    (tmp_path / "e.bed").write_bytes(b"\x6c\x1b\x01")
    (tmp_path / "e.bim").touch()
    (tmp_path / "e.fam").write_text("F I 0 0 0 -9\n")
    with pytest.raises(InputError, match=r"e\.bed: no variants"):
        import_cohort(tmp_path / "e", tmp_path / "store")
    (tmp_path / "e.bim").write_text("1 rs1 0 1 A C\n")
    (tmp_path / "e.fam").write_text("")
    with pytest.raises(InputError, match=r"e\.fam: no samples"):
        import_cohort(tmp_path / "e", tmp_path / "store")
    (tmp_path / "e.vcf").write_text(
        "##fileformat=VCFv4.2\n##contig=<ID=1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tA\n"
        "1\t5\t.\tA\t.\t.\t.\t.\tGT\t0/0\n1\t6\t.\tA\tC\t.\t.\t.\n"
    )
    with pytest.raises(InputError, match=r"e\.vcf: no variants \(skipped_no_alt 1, skipped_no_gt 1\)"):
        import_cohort(tmp_path / "e.vcf", tmp_path / "store")
    assert not list(tmp_path.glob("*store*"))


def test_failure_in_mid_import_leaves_nothing_behind(
    tmp_path: Path, random_cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 1)
    codes, variants, samples = random_cohort()
    source = write_vcf(tmp_path / "in" / "c", codes, variants=variants, samples=samples)
    text = cyvcf2.VCF(str(source)).raw_header + "".join(map(str, cyvcf2.VCF(str(source)))).replace(
        "\tX\t", "\t"
    )
    broken = tmp_path / "in" / "broken.vcf"
    broken.write_text(text[: text.rindex("\t")])
    with pytest.raises(InputError, match="record 22 cannot be read"):
        load_cohort(broken, cache_dir=tmp_path / "cache")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_cohort(source, tmp_path / "cache" / "store", progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


def test_progress_tells_variants_and_their_total(
    tmp_path: Path, random_cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", 8 * 13)
    codes, variants, samples = random_cohort()
    told: dict[str, list[tuple[int, int]]] = {}
    for kind, write in WRITERS.items():
        source = write(tmp_path / kind, codes, variants=variants, samples=samples)
        calls = told.setdefault(kind, [])
        import_cohort(
            source, tmp_path / f"{kind}.store", progress=lambda *call, calls=calls: calls.append(call)
        )
    assert told["bed"] == told["pgen"] == [(8, 22), (16, 22), (22, 22)]
    assert told["vcf"] == [(8, 0), (16, 0), (22, 0)]


class TestImportFolder:
    def test_same_import_again_opens_the_store(self, tmp_path: Path, written) -> None:
        source = written("bed")
        first = import_cohort(source, tmp_path / "store")
        inode = (tmp_path / "store").stat().st_ino
        assert import_cohort(source, tmp_path / "store").digest == first.digest
        assert (tmp_path / "store").stat().st_ino == inode

    def test_empty_folder_is_taken(self, tmp_path: Path, written) -> None:
        (tmp_path / "store").mkdir()
        assert len(import_cohort(written("bed"), tmp_path / "store").variants) == 22

    @pytest.mark.parametrize("content", ["file", "folder", "other store", "other options"])
    def test_anything_else_is_kept(self, tmp_path: Path, written, content: str) -> None:
        source, out = written("bed"), tmp_path / "store"
        if content == "file":
            out.write_text("precious")
        elif content == "folder":
            (out / "precious").mkdir(parents=True)
        elif content == "other store":
            import_cohort(source, out)
            source = written("bed", seed=1)
        else:
            import_cohort(source, out, multiallelic="skip")
        with pytest.raises(InputError, match="store: exists already and is not this cohort's store"):
            import_cohort(source, out)
        assert out.exists()

    def test_misspelt_option(self, tmp_path: Path, written) -> None:
        with pytest.raises(ConfigError, match="did you mean 'split'"):
            import_cohort(written("bed"), tmp_path / "store", multiallelic="splitt")  # type: ignore[arg-type]


def load_after_the_others(source: Path, cache: Path, barrier, results) -> None:
    cohort = load_cohort(source, cache_dir=cache, progress=lambda done, total: barrier.wait(timeout=60))
    results.put((cohort.digest, cohort.genotypes.codes().sum()))


class TestCache:
    def test_content_decides_not_the_name(self, tmp_path: Path, written) -> None:
        source = written("bed")
        first = load_cohort(source, cache_dir=tmp_path / "cache")
        for suffix in (".bed", ".bim", ".fam"):
            source.with_suffix(suffix).rename(tmp_path / f"renamed{suffix}")

        def fail(done: int, total: int) -> None:
            raise AssertionError("imported again")

        again = load_cohort(tmp_path / "renamed", cache_dir=tmp_path / "cache", progress=fail)
        assert again.digest == first.digest
        assert again.path == first.path
        assert again.source == str(tmp_path / "renamed.bed")
        assert len(list((tmp_path / "cache").iterdir())) == 1

    @pytest.mark.parametrize(("kind", "table"), [("bed", ".bim"), ("bed", ".fam"), ("pgen", ".psam")])
    def test_change_in_any_file_is_another_cohort(
        self, tmp_path: Path, written, kind: str, table: str
    ) -> None:
        source = written(kind)
        load_cohort(source, cache_dir=tmp_path / "cache")
        path = source.with_suffix(table)
        path.write_text(path.read_text().replace("rs3", "rsX").replace("S3", "SX"))
        cohort = load_cohort(source, cache_dir=tmp_path / "cache")
        assert "rsX" in cohort.variants.variant_id or "SX" in cohort.samples.iid
        load_cohort(source, cache_dir=tmp_path / "cache", multiallelic="skip")
        assert len(list((tmp_path / "cache").iterdir())) == 3

    def test_store_folder_is_opened(self, tmp_path: Path, written) -> None:
        store = import_cohort(written("pgen"), tmp_path / "store")
        assert load_cohort(tmp_path / "store", cache_dir=tmp_path / "cache").digest == store.digest
        assert not (tmp_path / "cache").exists()

    def test_two_processes_at_once_end_with_one_store(self, tmp_path: Path, written) -> None:
        source = written("bed")
        context = multiprocessing.get_context("spawn")
        # Both are in the middle of their import before either may finish.
        barrier, results = context.Barrier(2), context.Queue()
        arguments = (source, tmp_path / "cache", barrier, results)
        workers = [context.Process(target=load_after_the_others, args=arguments) for _ in range(2)]
        for worker in workers:
            worker.start()
        answers = {results.get(timeout=120) for _ in workers}
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        assert len(answers) == 1
        (store,) = (tmp_path / "cache").iterdir()
        assert load_cohort(source, cache_dir=tmp_path / "cache").path == store

    def test_unreadable_file(self, tmp_path: Path, written) -> None:
        source = written("bed")
        source.with_suffix(".fam").unlink()
        source.with_suffix(".fam").mkdir()
        with pytest.raises(InputError, match=r"cohort\.fam: cannot be read \(Is a directory\)"):
            load_cohort(source, cache_dir=tmp_path / "cache")


def test_real_cohort_equals_what_bed_reader_reads(tmp_path: Path, real_data: Path) -> None:
    source = real_data / "hapmap3" / "hapmap3.bed"
    cohort = load_cohort(source, cache_dir=tmp_path)
    dosage = bed_reader.open_bed(source, num_threads=1).read(dtype="int8")
    bim = [line.split() for line in source.with_suffix(".bim").read_text().splitlines()]
    place = {name: column for column, (_, name, *_) in enumerate(bim)}
    assert len(place) == len(cohort.variants)
    columns = [place[name] for name in cohort.variants.variant_id]
    np.testing.assert_array_equal(cohort.genotypes.codes(), np.where(dosage < 0, 3, dosage)[:, columns])
    assert cohort.variants.counted_allele.tolist() == [bim[column][4] for column in columns]
    expected = np.nanmean(np.where(dosage < 0, np.nan, dosage), axis=0)[columns] / 2
    np.testing.assert_allclose(allele_frequency(cohort.genotypes.counts()), expected)
    assert (np.diff(cohort.variants.position_bp[cohort.variants.chrom == "2"]) >= 0).all()

    some = slice(0, 3000)
    packed, variants = cohort.genotypes.take(columns=some), cohort.variants.take(some)
    for kind, write in WRITERS.items():
        pieces = (codes for _, codes in packed.column_chunks(max_variants=700))
        again = write(tmp_path / kind, pieces, variants=variants, samples=cohort.samples)
        other = load_cohort(again, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(other.genotypes.packed, packed.packed)
        assert other.variants.to_frame().equals(variants.to_frame())
        assert other.samples.iid.tolist() == cohort.samples.iid.tolist()


@pytest.mark.parametrize("name", ["genotypes.bin", "variants.tsv", "samples.tsv", "store.json"])
def test_a_damaged_cached_store_is_noticed_and_imported_again(written, tmp_path, caplog, name) -> None:
    source = written("bed")
    sound = load_cohort(source, cache_dir=tmp_path / "cache")
    codes, digest, file = sound.genotypes.codes().copy(), sound.digest, sound.path / name
    rng = np.random.default_rng(3)
    size = file.stat().st_size
    for place in rng.integers(0, size, 12):
        content = bytearray(file.read_bytes())
        content[place] ^= 1 << rng.integers(8)
        kept = file.stat()
        file.write_bytes(bytes(content))
        os.utime(
            file, ns=(kept.st_atime_ns, kept.st_mtime_ns)
        )  # the time that a program can set says nothing
        caplog.clear()
        again = load_cohort(source, cache_dir=tmp_path / "cache")
        assert again.digest == digest
        assert np.array_equal(again.genotypes.codes(), codes)
        if name != "store.json":
            assert "damaged store" in caplog.text
            assert "imported again" in caplog.text


def test_a_sound_store_is_digested_once(written, tmp_path, monkeypatch) -> None:
    store = import_cohort(written("bed"), tmp_path / "store").path
    digested = []
    monkeypatch.setattr(
        "snpdeconv.genetics.cohort.hashlib.sha256", lambda: digested.append(1) or hashlib.new("sha256")
    )
    open_store(store)
    assert not digested
    copy = shutil.copytree(store, tmp_path / "copy")
    open_store(copy)
    open_store(copy)
    assert digested == [1]
