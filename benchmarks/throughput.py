"""What the processor trains a second, and what that takes of memory, against its floor and a plain peer.

usage: python benchmarks/throughput.py [--quick]
Every figure is taken in a process of its own. Writes benchmarks/results/throughput.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

NUM_PEOPLE, NUM_SNPS, BATCH = 2000, 10_000, 32
ARCHITECTURES = ("cnn", "cnn_transformer", "gnn")
# As many samples as a laptop takes at once at every size.
GROWTH = {1000: 128, 10_000: 32, 50_000: 8, 100_000: 4, 500_000: 4}
CPU = torch.device("cpu")


def ours(architecture: str, num_snps: int, batch: int, precision: str) -> dict[str, Any]:
    """Steps of our training on packed genotypes of a cohort."""
    from steps import machine_rates, measure_steps, random_genotypes

    num_people = NUM_PEOPLE if num_snps <= NUM_SNPS else 64
    packed = random_genotypes(num_people, num_snps, device=CPU)
    measured = measure_steps(
        num_snps, architecture, batch=batch, precision=precision, device=CPU, packed=packed, least_seconds=3
    )
    peak = measured.peak_gib + packed.numel() / 2**30  # the genotypes were there before
    return {
        "samples_per_second": batch / measured.seconds,
        "cpu_ms_a_sample": 1e3 * measured.cpu_seconds / batch,
        "peak_gib": peak,
        **machine_rates(CPU, precisions=(precision,)),
    }


def floor(architecture: str, num_snps: int, batch: int, precision: str) -> dict[str, Any]:
    """The arithmetic and the bytes of a step."""
    from steps import counted

    return counted(num_snps, architecture, batch=batch, precision=precision)


def plain(patch: int) -> dict[str, Any]:
    """Steps of the plain peer: the same sizes, tokens of ``patch`` SNPs."""
    from plain import train

    from snpdeconv.device import GIB, PeakMemory

    with PeakMemory(CPU) as memory:
        genotypes = torch.randint(0, 3, (NUM_PEOPLE, NUM_SNPS), dtype=torch.int8)
        target = torch.randn(NUM_PEOPLE)
        sizes: dict[str, Any] = {
            "patch": patch,
            "width": 128,
            "num_layers": 4,
            "num_heads": 8,
            "dropout": 0.2,
        }
        seconds, cpu_seconds = [], []
        started, cpu_started = time.perf_counter(), time.process_time()
        for _ in train(genotypes, target, batch=BATCH, num_steps=6, device=CPU, **sizes):
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
            started, cpu_started = time.perf_counter(), time.process_time()
    return {
        "samples_per_second": BATCH / statistics.median(seconds[2:]),
        "cpu_ms_a_sample": 1e3 * statistics.median(cpu_seconds[2:]) / BATCH,
        "peak_gib": memory.growth_bytes() / GIB,
    }


def probe(architecture: str, num_snps: int, batch: int, precision: str) -> dict[str, Any]:
    """The batch search's forecast against the truth."""
    from steps import predicted_peak_gib

    predicted, measured, seconds = predicted_peak_gib(
        num_snps, architecture, batch=batch, precision=precision, device=CPU
    )
    return {"predicted_gib": predicted, "measured_gib": measured, "seconds": seconds}


def in_process(part: str, *arguments: object) -> dict[str, Any]:
    """One part in a process of its own."""
    words = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    # As the snpdeconv command sets it: threads that spin while they wait slow each other on a shared machine.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rounded = {name: float(f"{value:.4g}") for name, value in result.items()}
    print(part, *arguments, rounded, flush=True)
    return rounded


def run_part(part: str, arguments: list[str]) -> None:
    torch.set_num_threads(min(2, torch.get_num_threads()))
    given = [int(word) if word.isdigit() else word for word in arguments]
    print(json.dumps({"ours": ours, "floor": floor, "plain": plain, "probe": probe}[part](*given)))


def row(architecture: str, num_snps: int, batch: int, precision: str) -> dict[str, Any]:
    """A setting's speed and memory, and the share of its floor that it reaches."""
    from steps import floor_seconds

    setting = (architecture, num_snps, batch, precision)
    taken, least = in_process("ours", *setting), in_process("floor", *setting)
    seconds = batch / taken["samples_per_second"]
    return {
        "architecture": architecture,
        "num_snps": num_snps,
        "batch": batch,
        "precision": precision,
        **taken,
        **least,
        "floor_share": round(floor_seconds(least, taken, precision=precision) / seconds, 3),
    }


def beside_plain() -> dict[str, Any]:
    """The plain peer and ours in turns, medians of three: what else the machine does meets all alike."""
    turns: dict[str, list[dict[str, Any]]] = {"32": [], "64": [], "ours": []}
    for _ in range(3):
        for patch in ("32", "64"):
            turns[patch].append(in_process("plain", patch))
        turns["ours"].append(in_process("ours", "cnn_transformer", NUM_SNPS, BATCH, "fp32"))
    return {
        name: {key: statistics.median(turn[key] for turn in taken) for key in taken[0]}
        for name, taken in turns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes alone, and nothing is written")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run_part(arguments.part[0], arguments.part[1:])
        return
    growth = {1000: 16, 2000: 8} if arguments.quick else GROWTH
    peers = {} if arguments.quick else beside_plain()
    rows = [
        row(architecture, num_snps, batch, "fp32")
        for num_snps, batch in growth.items()
        for architecture in ARCHITECTURES
    ]
    if not arguments.quick:
        rows += [row(architecture, NUM_SNPS, BATCH, "bf16") for architecture in ARCHITECTURES]
    probes = [
        {"architecture": architecture, "num_snps": num_snps, "batch": batch, "precision": precision}
        | in_process("probe", architecture, num_snps, batch, precision)
        for architecture in ARCHITECTURES
        for num_snps, batch in ([(1000, 8)] if arguments.quick else [(1000, 256), (10_000, 64)])
        for precision in ("fp32", "bf16")
    ]
    if arguments.quick:
        return
    from machine import write_results

    write_results("throughput", {"plain": peers, "rows": rows, "probe": probes})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
