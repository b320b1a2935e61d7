"""Checks the arithmetic of docs/scaling.md with two ranks on one machine.

usage: python benchmarks/two_ranks.py [--snps 10000] [--batch 16]
A step of two ranks should take as long as one rank's step with the same samples a rank, and the exchange of
the gradients on top of it, where nothing hides it: four bytes a parameter each way. Measures the three, one
thread a rank, and writes benchmarks/results/two_ranks.json.
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
from torch import distributed as dist

CPU = torch.device("cpu")
NUM_STEPS = 12


def worker(num_snps: int, batch: int) -> None:
    """Steps of one of the ranks, or of the only one; the first rank prints what they took."""
    from steps import make_model, make_window, random_genotypes

    from snpdeconv.device import choose_precision
    from snpdeconv.training import distributed
    from snpdeconv.training.data import PackedLoader

    torch.set_num_threads(1)
    distributed.init_from_environment(device=CPU)
    ranks = distributed.world_size()
    model = make_model(num_snps, "cnn_transformer").train()
    packed = random_genotypes(4 * batch * ranks, num_snps, device=CPU)
    loader = PackedLoader(
        packed,
        torch.zeros(len(packed)),
        batch_size=batch * ranks,
        rank=distributed.rank(),
        world_size=ranks,
    )
    precision = choose_precision(CPU, requested="fp32")
    parallel = distributed.data_parallel(model, CPU)
    window = make_window(model, parallel=parallel, precision=precision, device=CPU)
    seconds = []
    while len(seconds) < NUM_STEPS:
        for own in loader:
            started = time.perf_counter()
            window.run([own])
            seconds.append(time.perf_counter() - started)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    exchange = 0.0
    if ranks > 1:
        gradients = torch.zeros(parameters)
        times = []
        for _ in range(5):
            started = time.perf_counter()
            dist.all_reduce(gradients)
            times.append(time.perf_counter() - started)
        exchange = statistics.median(times)
    if distributed.is_first():
        print(
            json.dumps(
                {
                    "step_s": statistics.median(seconds[3:]),
                    "exchange_s": exchange,
                    "exchanged_mb": 4 * parameters / 1e6,
                }
            )
        )
    distributed.shut_down()


def launch(ranks: int, num_snps: int, batch: int) -> dict[str, float]:
    """Runs the worker on so many ranks."""
    words = ["--worker", str(num_snps), str(batch)]
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [*start, __file__, *words], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--snps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=16, help="samples of a rank")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    alone = launch(1, arguments.snps, arguments.batch)
    two = launch(2, arguments.snps, arguments.batch)
    foretold = alone["step_s"] + two["exchange_s"]
    result: dict[str, Any] = {
        "num_snps": arguments.snps,
        "batch_a_rank": arguments.batch,
        "one_rank_step_s": alone["step_s"],
        "exchange_s": two["exchange_s"],
        "exchanged_mb": two["exchanged_mb"],
        "foretold_step_s": foretold,
        "two_ranks_step_s": two["step_s"],
        "ratio": two["step_s"] / foretold,
    }
    result = {name: float(f"{value:.3g}") for name, value in result.items()}
    print(result)
    from machine import write_results

    write_results("two_ranks", result)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
