"""The benchmark of polygenic backgrounds: relatives share what relatives do, answers are counted right."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the benchmarks."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    "kind, between",
    [
        ("sibships", {(0, 1): 0.5, (2, 3): 0.5, (0, 4): 0}),
        ("cousins", {(0, 1): 0.5, (0, 2): 0.125, (1, 7): 0.125, (0, 8): 0}),
    ],
)
def test_dropped_genes_are_shared_as_the_pedigree_says(module, kind, between):
    relatives, cells = module("relatives"), module("polygenic_cells")
    pedigree = relatives.sibships(60, size=4) if kind == "sibships" else relatives.cousins(30)
    people = relatives.drop(pedigree, num_chromosomes=3, rng=np.random.default_rng(5))
    z = cells.standardised(people.alleles.sum(axis=1, dtype=np.uint8))
    size = 4 if kind == "sibships" else 8
    firsts = np.arange(0, 240 - size, size)
    for (one, other), expected in between.items():
        kinship = np.mean(z[firsts + one] * z[firsts + other])
        assert kinship == pytest.approx(expected, abs=0.07)


def test_a_gamete_keeps_what_lies_together_together(module):
    relatives = module("relatives")
    pedigree = relatives.sibships(20, size=4)
    rng = np.random.default_rng(6)
    people = relatives.drop(pedigree, num_chromosomes=2, rng=rng)
    switches = relatives._switch_probability(people)
    assert len(people.position_bp) == len(switches) == 2 * relatives.STRETCHES * relatives.STRETCH_SNPS
    starts = np.flatnonzero(np.diff(people.chromosome, prepend=-1))
    assert (switches[starts] == 0.5).all()
    within = np.delete(switches, starts).reshape(-1)
    assert within.max() == pytest.approx((1 - np.exp(-0.5)) / 2, abs=0.01)  # 25 cM between stretches
    assert np.median(within) < 1e-3


def test_sets_and_reported_snps_are_counted_against_the_sparse_snps(module):
    cells, methods = module("polygenic_cells"), module("polygenic_methods")
    rng = np.random.default_rng(7)
    codes = rng.binomial(2, 0.4, size=(500, 30)).astype(np.uint8)
    codes[:, 11] = codes[:, 10]  # stands for a causal SNP
    study = cells.Study(
        genotypes=cells.PackedGenotypes.from_codes(codes),
        trait=rng.normal(size=500),
        kind="quantitative",
        variants=None,
        causal=np.array([3, 10, 20]),
    )
    reported = np.zeros(30, dtype=bool)
    reported[[3, 11, 25, 26]] = True
    sets = (np.array([2, 3]), np.array([10, 11]), np.array([10, 12]), np.array([25]))
    answer = methods.Answer(sets=sets, reported=lambda: reported, lambda_gc=1.0, extra={})
    record = methods.judge(study, answer)
    assert (record["sets"], record["hold"], record["found"], record["causal"]) == (4, 3, 2, 3)
    assert (record["reported"], record["false"]) == (4, 2)


def test_records_become_a_table(module, monkeypatch, tmp_path, capsys):
    pytest.importorskip("pysusie")
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    where = f"--work {tmp_path} --seeds 200 --methods ours susie whitened --cells".split()
    words = [*where, "polygenic .3"]
    runner = module("polygenic")
    monkeypatch.setattr(sys, "argv", ["polygenic.py", *words])
    runner.main()
    assert "3 runs" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    _, plain, white = sorted(records, key=lambda record: record["method"])
    assert all({"sets", "reported", "false", "q_cpu_seconds"} <= record.keys() for record in records)
    assert plain["lambda_gc"] > 1.5 > white["lambda_gc"]
    assert 0 < plain["hold"] <= plain["sets"]
    monkeypatch.setattr(sys, "argv", ["polygenic.py", *words, "--table"])
    runner.main()
    assert f"{plain['hold'] / plain['sets']:.2f} (" in capsys.readouterr().out
