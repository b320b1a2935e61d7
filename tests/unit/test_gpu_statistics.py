"""The benchmark of statistics on a GPU, on a CPU and with nothing installed but what a GPU machine has."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ABSENT = (
    "mlflow", "submitit", "pydantic", "bed_reader", "pgenlib", "cyvcf2", "msprime", "pandas", "sklearn",
    "matplotlib", "typer", "rich", "yaml", "safetensors", "psutil",
)  # fmt: skip


@pytest.fixture(scope="module")
def results():
    code = (
        "import json, sys\n"
        f"for name in {ABSENT}:\n"
        "    sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import gpu_statistics\n"
        "print(json.dumps(gpu_statistics.run('cpu', 'small')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_every_part_says_how_long_it_took_and_how_long_it_has_to(results):
    parts = {**results["kernels"], "pairs": results["pair_scan"], "effects": results["single_effects"]}
    assert len(parts) == 6
    for part in parts.values():
        assert part["seconds"] > 0
        assert part["share"] > 0
        assert part["peak_gib"] > 0
    assert results["single_effects"]["passes"] > results["single_effects"]["effects"] > 0


def test_the_answers_are_right(results):
    assert results["pair_scan"]["planted_pair_leads"]
    assert results["pair_scan"]["largest_error_of_t"] < 1e-4
    assert results["kernels"]["X'X of a tile"]["largest_error"] == 0
    assert results["kernels"]["X'y"]["largest_relative_error"] < 1e-6
