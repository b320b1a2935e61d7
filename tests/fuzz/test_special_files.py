"""Pipes, devices, folders and bombs in place of files: one line at once, in little memory, nothing half-written."""

import gzip
import os
import shutil

import pytest
from fuzz.harness import faults, listing
from fuzz.targets import MARGINAL, cohort

RANK = ("rank", "--genotypes", "c.bed", "--phenotypes", "p.tsv", "--trait", "y", "--out", "r", *MARGINAL)
WORDS = {
    "p.tsv": RANK,
    "c.csv": (*RANK, "--covariates", "c.csv"),
    "b.tsv": (*RANK, "--blocks", "b.tsv"),
    "b.bed.gz": (*RANK, "--blocks", "b.bed.gz"),
    "mine.yaml": (*RANK, "--preset", "mine.yaml"),
    "c.bed": ("import", "c.bed", "store"),
    "c.bim": ("import", "c.bed", "store"),
    "c.fam": ("import", "c.bed", "store"),
    "d.vcf": ("import", "d.vcf", "store"),
    "d.vcf.gz": ("import", "d.vcf.gz", "store"),
}


@pytest.mark.parametrize("kind", ["pipe", "zero", "folder", "sparse", "bomb"])
@pytest.mark.parametrize("name", WORDS)
def test_what_is_no_file(name, kind, server, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    cohort(folder)
    path = folder / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(40 * 2**30)
    else:
        block = gzip.compress(b"1\t" * 2**23)
        path.write_bytes(block * 256)  # 4 GiB in 4 MB
    before = listing(folder)
    ended = server.run(folder, WORDS[name])
    found = faults(ended, before=before, after=listing(folder), out=None)
    shutil.rmtree(folder)
    assert ended["code"] == 2, ended["err"]
    assert not found, found
    assert ended["gib"] < 1.5
