from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from snpdeconv.errors import InputError, ResourceError
from snpdeconv.genetics import cohort as store_writer
from snpdeconv.genetics.cohort import Cohort, StoreWriter, is_store, open_store
from snpdeconv.genetics.packed import pack
from snpdeconv.genetics.samples import Samples


def make_store(path: Path, random_cohort, *, batches=(8, 5, 9), order=None, seed: int = 0) -> Cohort:
    codes, variants, samples = random_cohort(num_variants=sum(batches), seed=seed)
    chosen = np.arange(sum(batches)) if order is None else order
    with StoreWriter(path, samples=samples) as writer:
        for piece in np.split(np.arange(sum(batches)), np.cumsum(batches)[:-1]):
            writer.append(pack(np.ascontiguousarray(codes.T[piece])), variants=variants.take(piece))
        return writer.finish(
            order=chosen,
            import_key=f"key {seed}",
            source="here.bed",
            report={"dropped": 3},
        )


@pytest.mark.parametrize("block_bytes", [1, 20, 2**26])
@pytest.mark.parametrize("batches", [(22,), (8, 4, 8), (8, 5, 9), (1, 1, 1)])
def test_store_holds_what_was_appended(
    tmp_path: Path, random_cohort, monkeypatch: pytest.MonkeyPatch, batches, block_bytes: int
) -> None:
    monkeypatch.setattr(store_writer, "_BLOCK_BYTES", block_bytes)
    cohort = make_store(tmp_path / "s", random_cohort, batches=batches)
    codes, variants, samples = random_cohort(num_variants=sum(batches))
    np.testing.assert_array_equal(cohort.genotypes.codes(), codes)
    assert isinstance(cohort.genotypes.packed, np.memmap)
    assert cohort.variants.to_frame().equals(variants.to_frame())
    assert cohort.samples.iid.tolist() == samples.iid.tolist()
    assert cohort.report == {"dropped": 3}
    assert cohort.source == "here.bed"
    assert sorted(file.name for file in (tmp_path / "s").iterdir()) == [
        "genotypes.bin",
        "samples.tsv",
        "store.json",
        "variants.tsv",
        "verified.json",
    ]


def test_order_permutes_and_drops_variants(tmp_path: Path, random_cohort) -> None:
    order = np.random.default_rng(0).permutation(22)[:17]
    cohort = make_store(tmp_path / "s", random_cohort, order=order)
    codes, variants, _ = random_cohort(num_variants=22)
    np.testing.assert_array_equal(cohort.genotypes.codes(), codes[:, order])
    assert cohort.variants.variant_id.tolist() == variants.variant_id[order].tolist()
    # The slots after the last variant hold "missing", whatever the columns left out held.
    assert (cohort.genotypes.packed[:, -1] >> 2 == 0b111111).all()


def test_digest_tells_content_not_way_of_writing(tmp_path: Path, random_cohort) -> None:
    one = make_store(tmp_path / "a", random_cohort, batches=(22,))
    same = make_store(tmp_path / "b", random_cohort, batches=(3, 19))
    other = make_store(tmp_path / "c", random_cohort, batches=(22,), seed=1)
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 64


def test_nothing_remains_of_an_unfinished_store(tmp_path: Path, random_cohort) -> None:
    codes, variants, samples = random_cohort()
    writer = StoreWriter(tmp_path / "deep" / "s", samples=samples)

    def interrupted_import() -> None:
        with writer:
            writer.append(pack(np.ascontiguousarray(codes.T)), variants=variants)
            assert list((tmp_path / "deep").iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_import()
    assert list((tmp_path / "deep").iterdir()) == []


def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on file size fails in the same place and the same way as a full disk.
    script = (
        "import resource, sys; from pathlib import Path; import numpy as np\n"
        "from snpdeconv.errors import ResourceError\n"
        "from snpdeconv.genetics.samples import Samples\n"
        "from snpdeconv.genetics.cohort import StoreWriter\n"
        "from snpdeconv.genetics.variants import Variants\n"
        "nothing = Variants.concat([])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n"
        "    with StoreWriter(Path(sys.argv[1]), samples=Samples.build(['a', 'b'])) as writer:\n"
        "        for _ in range(100): writer.append(np.zeros((4000, 1), np.uint8), variants=nothing)\n"
        "except ResourceError as error: print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "s")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "s: cannot be written (File too large); free some space" in run.stdout
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ResourceError, match=r"s: cannot be written \((Not a directory|File exists)\)"),
        StoreWriter(tmp_path / "file" / "s", samples=Samples.build(["a"])),
    ):
        pass


def test_leftovers_of_a_killed_import_are_removed_a_day_later(tmp_path: Path, random_cohort) -> None:
    for name in (".s.old.partial", ".s.new.partial", ".other.old.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "panels.bin").touch()
    long_ago = time.time() - 2 * 24 * 3600
    for path in (tmp_path / ".s.old.partial", tmp_path / ".s.old.partial" / "panels.bin"):
        os.utime(path, (long_ago, long_ago))
    os.utime(tmp_path / ".other.old.partial", (long_ago, long_ago))
    make_store(tmp_path / "s", random_cohort)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.old.partial", ".s.new.partial", "s"]


def test_store_made_meanwhile_of_the_same_content_is_taken(tmp_path: Path, random_cohort) -> None:
    first = make_store(tmp_path / "s", random_cohort)
    written_at = (tmp_path / "s" / "store.json").stat().st_mtime_ns
    second = make_store(tmp_path / "s", random_cohort)
    assert first.digest == second.digest
    assert (tmp_path / "s" / "store.json").stat().st_mtime_ns == written_at
    with pytest.raises(InputError, match="is there already and is not this cohort's store"):
        make_store(tmp_path / "s", random_cohort, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_memory_does_not_grow_with_the_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_cohort
) -> None:
    monkeypatch.setattr(store_writer, "_BLOCK_BYTES", 2**19)
    samples = Samples.build([str(n) for n in range(8000)])
    batch = np.zeros((40, len(samples)), dtype=np.uint8)
    peaks = []
    for num_batches in (10, 100):
        num_variants = num_batches * len(batch)
        _, variants, _ = random_cohort(num_samples=1, num_variants=num_variants)
        tracemalloc.start()
        with StoreWriter(tmp_path / str(num_batches), samples=samples) as writer:
            for first in range(0, num_variants, len(batch)):
                table = variants.take(slice(first, first + len(batch)))
                writer.append(pack(batch), variants=table)
            cohort = writer.finish(order=np.arange(num_variants), import_key="", source="", report={})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    grown = cohort.genotypes.packed.nbytes - cohort.genotypes.packed.nbytes // 10
    table = 600 * (4000 - 400)  # The table of variants is in memory; about 600 bytes a row with its copies.
    assert peaks[1] - peaks[0] < table < grown / 3


@pytest.mark.parametrize("name", ["genotypes.bin", "variants.tsv", "samples.tsv"])
def test_missing_or_shortened_file_is_noticed(tmp_path: Path, random_cohort, name: str) -> None:
    make_store(tmp_path / "s", random_cohort)
    file = tmp_path / "s" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1] if name.endswith("tsv") else whole[:-1])
    with pytest.raises(InputError, match=r"s: damaged store: its content is not what was imported"):
        open_store(tmp_path / "s")
    file.unlink()
    with pytest.raises(InputError, match=rf"{name}: a file of the store is missing"):
        open_store(tmp_path / "s")


def test_description_of_another_kind_is_refused(tmp_path: Path, random_cohort) -> None:
    make_store(tmp_path / "s", random_cohort)
    description = tmp_path / "s" / "store.json"
    content = json.loads(description.read_text())
    description.write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(InputError, match="store format 99, this program reads format 1; import"):
        open_store(tmp_path / "s")
    for junk in ("{", "[]", "{}"):
        description.write_text(junk)
        with pytest.raises(InputError, match=r"store\.json: is damaged|store format None"):
            open_store(tmp_path / "s")
    assert is_store(tmp_path / "s")
    assert not is_store(tmp_path)
