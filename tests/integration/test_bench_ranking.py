"""The ranking benchmark runs, goes on where it stopped, and its records become a report and tables."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = ["--samples", "400", "--variants", "200", "--causal", "4", "--seeds", "3"]
CELLS = ["--cells", "additive thinned", "additive permuted thinned"]
METHODS = ["--methods", "marginal", "deconvolution"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Types a command of the benchmark, whose records go to a folder of the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "RAYON_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }.items():
        monkeypatch.setenv(name, value)

    def run(*words: object) -> None:
        monkeypatch.setattr(
            sys, "argv", ["ranking.py", "--work", str(tmp_path), *SIZES, *CELLS, *map(str, words)]
        )
        importlib.import_module("ranking").main()

    return run


def test_a_small_benchmark_goes_from_records_to_tables(run, tmp_path, capsys):
    run(*METHODS)
    assert "4 runs" in capsys.readouterr().out
    run(*METHODS)
    assert "0 runs" in capsys.readouterr().out

    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    found = {(r["cell"], r["method"]): r for r in records}
    real, peer = (found["additive thinned", method] for method in ("deconvolution", "marginal"))
    assert real["auprc"] > peer["auprc"] > 0.02  # 4 of 200 by chance
    assert real["test"] > 0.3  # of an R² of .5
    assert 0 < real["sets"]["covering"] <= real["sets"]["num"]
    assert real["q"]["0.05"][0] <= real["q"]["0.2"][0]
    null = found["additive permuted thinned", "deconvolution"]
    assert "auprc" not in null
    assert null["sets"]["covering"] == 0

    run("--report", "--out", tmp_path / "ranking.json")
    report = json.loads((tmp_path / "ranking.json").read_text())
    gained = report["cells"]["additive thinned"]["minus_best_peer"]["deconvolution"]
    assert gained["mean"] == pytest.approx(real["auprc"] - peer["auprc"])
    table = "\n".join(importlib.import_module("tables").ranking(report))
    assert f"| additive, thinned | {peer['auprc']:.3f}".replace(" 0.", " .") in table
