"""What a benchmark ran on, and where its figures go."""

import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from snpdeconv.version import code_version

# Whatever is chosen (a constant, a preset, a threshold) is chosen on the first, and by validation people
# where something is trained; whatever is reported comes from the second. No seed is in both.
TUNING_SEEDS, REPORT_SEEDS = range(7_000, 8_000), range(1_000, 2_000)

RESULTS = Path(__file__).parent / "results"


def describe() -> dict[str, Any]:
    """The machine, its processor, memory and GPU, and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "code": code_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write_results(name: str, results: dict[str, Any]) -> None:
    """Writes results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": describe(), **results}, indent=2) + "\n")
    print(f"written to {path}")
