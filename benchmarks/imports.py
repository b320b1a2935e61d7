"""Imports against what they cannot do without, their memory, and how long commands take to start.

usage: python benchmarks/imports.py [--quick]
Random genotypes: neither import depends on what they are. Everything is made in a temporary folder and thus
cached in memory. Writes benchmarks/results/imports.json.
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_results
from numpy.typing import NDArray
from random_bed import write_random_bed

from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants
from snpdeconv.launch.control import cancel
from snpdeconv.launch.records import find_record
from snpdeconv.simulation.writers import write_vcf

IMPORT = """
import json, sys, time
from pathlib import Path
from snpdeconv.genetics.ingest import import_cohort
started = time.perf_counter()
import_cohort(sys.argv[1], sys.argv[2])
seconds = time.perf_counter() - started
# Not ru_maxrss, which starts with the size of the process that started this one.
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(json.dumps([seconds, int(peak) / 2**10]))
"""

IMPORTS_ALONE = """
import json
from pathlib import Path
import snpdeconv.genetics.ingest, snpdeconv.genetics.formats.plink, snpdeconv.genetics.formats.vcf
peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]
print(json.dumps([0, int(peak) / 2**10]))
"""

# One process, the loops in turn with ours: what else the machine does meets all of them.
VCF = """
import json, shutil, statistics, sys, time
import cyvcf2
from snpdeconv.genetics.ingest import import_cohort
source, out, repeats = sys.argv[1], sys.argv[2], int(sys.argv[3])
def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
def gt_types():
    for record in cyvcf2.VCF(source): record.gt_types
def genotype_array():
    for record in cyvcf2.VCF(source): record.genotype.array()
def ours():
    import_cohort(source, out)
    shutil.rmtree(out)
print(json.dumps([{work.__name__: timed(work) for work in (ours, gt_types, genotype_array)}
                  for _ in range(repeats)]))
"""

FIRST_STEP = """
import json, os, sys, time
began = float(sys.argv[1])
marks = {"interpreter": time.time() - began}
def mark(name):
    marks[name] = time.time() - began
from snpdeconv import cli
mark("command line")
import torch
mark("torch")
from snpdeconv.pipelines import train, fit
mark("all other imports")
def told(module, function, name):
    original = getattr(module, function)
    def call(*arguments, **options):
        result = original(*arguments, **options)
        mark(name)
        return result
    setattr(module, function, call)
told(train, "prepare", "data")
told(fit, "fit_linear_part", "linear part")
def step(*arguments, **options):
    mark("first step")
    marks["MLflow was imported"] = "mlflow" in sys.modules
    print(json.dumps(marks), flush=True)
    os._exit(0)
torch.optim.AdamW.step = step
sys.argv = ["snpdeconv", *sys.argv[2:]]
cli.main()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the sizes, one repetition")
    arguments = parser.parse_args()
    scale, repeats = (10, 1) if arguments.quick else (1, 3)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["SNPDECONV_HOME"] = str(folder / "home")
        results = {
            "arguments": vars(arguments),
            "start": start(folder, repeats=repeats),
            "bed": bed(folder, num_samples=20_000, num_variants=50_000 // scale, repeats=repeats),
            "vcf": vcf(folder, num_samples=2000, num_variants=10_000 // scale, repeats=repeats),
            "memory": memory(folder, scale=scale),
        }
    print(json.dumps(results, indent=2))
    write_results("imports", results)


def bed(folder: Path, *, num_samples: int, num_variants: int, repeats: int) -> dict[str, Any]:
    """A .bed, and the same bytes read, digested twice and written, which no import can do without."""
    source, out = folder / "speed.bed", folder / "store"
    write_random_bed(source.with_suffix(""), num_samples=num_samples, num_variants=num_variants)
    size_mb = source.stat().st_size / 1e6
    seconds, floor = [], []
    for _ in range(repeats):
        seconds.append(run(IMPORT, source, out)[0])
        shutil.rmtree(out)
        floor.append(bare(source, folder / "written"))
    source.unlink()
    median = statistics.median(seconds)
    medians = {name: statistics.median(one[name] for one in floor) for name in floor[0]}
    needed = medians["read"] + 2 * medians["sha256"] + medians["write"]
    return {
        "samples": num_samples,
        "variants": num_variants,
        "size_mb": round(size_mb),
        "seconds": rounded(median),
        "mb_per_second": round(size_mb / median),
        "floor_mb_per_second": {name: round(size_mb / value) for name, value in medians.items()},
        "times_read_two_digests_and_write": rounded(median / needed),
    }


def bare(source: Path, scratch: Path) -> dict[str, float]:
    """Seconds of what is done to all bytes of a file, each alone."""
    content = np.empty(source.stat().st_size, dtype=np.uint8)
    with source.open("rb", buffering=0) as file:
        read = timed(lambda: file.readinto(content.data))
    seconds = {
        "read": read,
        "sha256": timed(lambda: hashlib.sha256(content.data)),
        "write": timed(lambda: content.tofile(scratch)),
        "copy in memory": timed(content.copy),
    }
    scratch.unlink()
    return seconds


def vcf(folder: Path, *, num_samples: int, num_variants: int, repeats: int) -> dict[str, Any]:
    """A .vcf.gz, and a bare loop of cyvcf2 over it."""
    source = write_random_vcf(folder / "speed", num_samples=num_samples, num_variants=num_variants)
    rounds = run(VCF, source, folder / "store", repeats)
    source.unlink()
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    return {
        "samples": num_samples,
        "variants": num_variants,
        "seconds": {name: rounded(value) for name, value in medians.items()},
        "times_gt_types": rounded(statistics.median(one["ours"] / one["gt_types"] for one in rounds)),
        "times_genotype_array": rounded(
            statistics.median(one["ours"] / one["genotype_array"] for one in rounds)
        ),
    }


def memory(folder: Path, *, scale: int) -> dict[str, Any]:
    """Peak resident memory at ten times the variants."""
    peaks: dict[str, Any] = {}
    for num_variants in (50_000 // scale, 500_000 // scale):
        source = folder / "memory.bed"
        write_random_bed(source.with_suffix(""), num_samples=6000, num_variants=num_variants)
        peaks[f"bed, 6000 x {num_variants}"] = round(run(IMPORT, source, folder / "store")[1])
        shutil.rmtree(folder / "store")
        source.unlink()
    for num_variants in (10_000 // scale, 100_000 // scale):
        source = write_random_vcf(folder / "memory", num_samples=500, num_variants=num_variants)
        peaks[f"vcf.gz, 500 x {num_variants}"] = round(run(IMPORT, source, folder / "store")[1])
        shutil.rmtree(folder / "store")
        source.unlink()
    return {"peak_mib": peaks, "python_numpy_pandas_mib": round(run(IMPORTS_ALONE)[1])}


def start(folder: Path, *, repeats: int) -> dict[str, Any]:
    """Seconds of commands, and of a training up to each thing that comes before its first optimiser step."""
    cohort, command = folder / "cohort", [str(Path(sys.executable).with_name("snpdeconv"))]
    subprocess.run(
        [*command, "simulate", str(cohort), "--samples", "300", "--variants", "500"],
        check=True,
        capture_output=True,
    )
    submit = [*command, "submit", "small_cpu", "--data", str(cohort), "--cluster", "local"]
    seconds: dict[str, Any] = {
        "--help": statistics.median(spent([*command, "--help"]) for _ in range(repeats)),
        "submit --dry-run": statistics.median(spent([*submit, "--dry-run"]) for _ in range(repeats)),
    }
    runs = []
    for number in range(repeats):
        runs.append(spent([*submit, "--out", str(folder / f"run{number}")]))
        cancel(find_record(None))
    seconds["submit"] = statistics.median(runs)
    words = ("train", "--genotypes", cohort / "cohort.bed", "--phenotypes", cohort / "phenotypes.tsv")
    marks = [
        run(FIRST_STEP, time.time(), *words, "--trait", "trait", "--out", folder / f"first{number}")
        for number in range(repeats)
    ]
    for name in marks[0]:
        values = [one[name] for one in marks]
        seconds[f"train: {name}"] = values[0] if isinstance(values[0], bool) else statistics.median(values)
    return {name: value if isinstance(value, bool) else rounded(value) for name, value in seconds.items()}


def write_random_vcf(prefix: Path, *, num_samples: int, num_variants: int) -> Path:
    rng = np.random.default_rng(1)

    def chunks() -> Iterator[NDArray[np.uint8]]:
        for first in range(0, num_variants, 1000):
            frequency = rng.beta(0.5, 2.0, min(1000, num_variants - first)).astype(np.float32)
            drawn = rng.random((2, num_samples, len(frequency)), dtype=np.float32) < frequency
            yield drawn.sum(axis=0, dtype=np.uint8)

    place = np.arange(num_variants)
    variants = Variants.build(
        variant_id=[f"rs{v}" for v in place],
        chrom=["1"] * num_variants,
        position_bp=1000 + 30 * place,
        counted_allele=["A"] * num_variants,
        other_allele=["G"] * num_variants,
    )
    samples = Samples.build([f"S{n}" for n in range(num_samples)])
    return write_vcf(prefix, chunks(), variants=variants, samples=samples)


def run(script: str, *arguments: object) -> Any:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def spent(command: list[str]) -> float:
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def rounded(value: float) -> float:
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main()
