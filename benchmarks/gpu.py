"""Everything that a GPU is needed to measure, in one call of less than ten minutes.

usage: python benchmarks/gpu.py [--out FILE] [--budget SECONDS] [--device cpu --quick]
Training steps for every size, precision and network against their floors; what compilation, graphs, resident
genotypes and checkpointing are worth; bf16 against fp32 with and without TF32; the batch search's forecast.
Single effects and pairs are gpu_statistics.py's. Needs torch, numpy, psutil and their like alone. The file is
written after each part, so that a run that is cut short keeps what it has. EXPECTED says what each figure
should be, and why.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import describe
from steps import counted, floor_seconds, machine_rates, measure_steps, predicted_peak_gib, random_genotypes

EXPECTED = {
    "cnn_transformer, 10K SNPs, bf16": "at least 100,000 samples/s: .9 GFLOP a sample, 11 % of 800 TFLOP/s",
    "cnn_transformer, 100K SNPs, bf16": "at least 8,000 samples/s: about 9 GFLOP a sample in windows of "
    "attention, 9 % of 800 TFLOP/s; the matrices of the tokens are 25.6 M parameters, 1 GB of traffic a step",
    "bf16 against fp32": "3 times fp32 without TF32, 1.6 times fp32 with it, at most .55 of its memory",
    "older system's batches": "a tenth of its memory: .25 GB (1K), 1.2 (10K), 2.8 (50K), 3.5 (100K)",
    "probe": "within 10 % of the measured peak at every setting, under 10 s a search",
    "resident genotypes": "no slower than streamed; streamed within 10 % of them, as copies are hidden",
    "graphs": "pay where steps are short: 1K SNPs with small batches, nothing above 50K",
}
SIZES = {1000: 2048, 10_000: 1024, 50_000: 256, 100_000: 128, 500_000: 24}
ARCHITECTURES = ("cnn_transformer", "cnn", "gnn")
# What the system that this one replaces said of a 40 GB A100 in bf16: SNPs: (batch, GB, samples/s).
OLDER = {1000: (512, 2.5, 150), 10_000: (64, 12, 80), 50_000: (16, 28, 20), 100_000: (8, 35, 10)}
COMPILED: dict[str, Any] = {}
Row = dict[str, Any]


class Report:
    """Rows by part, on disk after each of them.

    Args:
        path: The JSON file.
        budget_s: No part begins after this time.
        device: Where to measure.
    """

    def __init__(self, path: Path, *, budget_s: float, device: torch.device) -> None:
        self.path, self.device = path, device
        self.failed: list[str] = []
        self.deadline = time.perf_counter() + budget_s
        self.content: dict[str, Any] = {
            "machine": describe(),
            "expected": EXPECTED,
            "skipped": [],
            "failed": self.failed,
        }

    def part(self, name: str, rows: Callable[[], Iterator[Row]]) -> None:
        """Runs a part to its end, its failure or the end of the time."""
        self.content[name] = []
        if time.perf_counter() > self.deadline:
            self.content["skipped"].append(f"{name}: out of time")
            return
        started = time.perf_counter()
        try:
            for row in rows():
                self.content[name].append(row)
                print(name, json.dumps(row), flush=True)
                self.write()
                if time.perf_counter() > self.deadline:
                    self.content["skipped"].append(
                        f"{name}: out of time after {len(self.content[name])} rows"
                    )
                    break
        except Exception:  # the other parts are worth their minutes all the same
            self.failed.append(f"{name}: {traceback.format_exc(limit=3)}")
            print(self.failed[-1], flush=True)
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
        self.write()

    def write(self) -> None:
        """Writes all rows so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def step(
    rates: dict[str, float],
    num_snps: int,
    architecture: str,
    *,
    batch: int,
    precision: str,
    device: torch.device,
    **options: Any,
) -> Row:
    """One setting: speed, memory, and the share of its floor that it reaches."""
    measured = measure_steps(
        num_snps, architecture, batch=batch, precision=precision, device=device, **options
    )
    of_model = {
        name: value for name, value in options.items() if name not in ("compiled", "packed", "least_seconds")
    }
    # Counted at up to 100K SNPs, since that is done on the host; above, it is taken as growing in a line.
    small = min(num_snps, 100_000)
    least = counted(small, architecture, batch=batch, precision=precision, **of_model)
    scale = num_snps / small
    floor = scale * floor_seconds(least, rates, precision=precision)
    return {
        "architecture": architecture,
        "num_snps": num_snps,
        "batch": batch,
        "precision": precision,
        "samples_per_second": round(batch / measured.seconds, 1),
        "ms_a_step": round(measured.seconds * 1e3, 3),
        "peak_gib": round(measured.peak_gib, 3),
        "gflop_a_sample": round(scale * least["gflop"] / batch, 3),
        "floor_share": round(floor / measured.seconds, 3),
        "first_step_s": round(measured.first_seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gpu.json")
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that the script runs")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    report = Report(arguments.out, budget_s=arguments.budget, device=device)
    rates = machine_rates(device)
    report.content["rates"] = rates
    print(rates, flush=True)
    quick = arguments.quick
    sizes = {1000: 8, 2000: 4} if quick else SIZES
    main_size = 2000 if quick else 10_000
    main_batch = sizes[main_size]
    seconds = {"least_seconds": 0.05 if quick else 0.7}
    # The compiler takes longer than the tiny steps of a trial run.
    compiled = None if quick else COMPILED

    def grid(architectures: tuple[str, ...], precisions: tuple[str, ...]) -> Iterator[Row]:
        for architecture in architectures:
            for num_snps, batch in sizes.items():
                for precision in precisions:
                    yield step(
                        rates,
                        num_snps,
                        architecture,
                        batch=batch,
                        precision=precision,
                        device=device,
                        compiled=compiled,
                        **seconds,
                    )

    def older() -> Iterator[Row]:
        for num_snps, (batch, gigabytes, speed) in OLDER.items():
            if num_snps in sizes:
                row = step(
                    rates,
                    num_snps,
                    "cnn_transformer",
                    batch=batch,
                    precision="bf16",
                    device=device,
                    compiled=compiled,
                    **seconds,
                )
                yield row | {"older_gb": gigabytes, "older_samples_per_second": speed}

    def precisions() -> Iterator[Row]:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        try:
            for name, precision, tf32 in (
                ("bf16", "bf16", False),
                ("fp32", "fp32", False),
                ("tf32", "fp32", True),
            ):
                torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
                row = step(
                    rates,
                    main_size,
                    "cnn_transformer",
                    batch=main_batch,
                    precision=precision,
                    device=device,
                    compiled=compiled,
                    **seconds,
                )
                yield row | {"arithmetic": name}
        finally:  # a part that is cut short must not leave TF32 to the next
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before

    def ablations() -> Iterator[Row]:
        host = random_genotypes(4 * main_batch, main_size, device=torch.device("cpu"))
        for name, options in (
            ("as it is", {"compiled": compiled}),
            ("not compiled", {"compiled": None}),
            ("graphs", {"compiled": {"mode": "reduce-overhead"} if not quick else None}),
            ("streamed from the host", {"compiled": compiled, "packed": host}),
            ("checkpointed", {"compiled": compiled, "checkpoint_activations": True}),
        ):
            row = step(
                rates,
                main_size,
                "cnn_transformer",
                batch=main_batch,
                precision="bf16",
                device=device,
                **options,
                **seconds,
            )
            yield row | {"what": name}

    def probe() -> Iterator[Row]:
        for architecture in ARCHITECTURES:
            for num_snps in list(sizes)[:2]:
                for precision in ("fp32", "bf16"):
                    predicted, measured, took = predicted_peak_gib(
                        num_snps,
                        architecture,
                        batch=sizes[num_snps] // 2,
                        precision=precision,
                        device=device,
                    )
                    yield {
                        "architecture": architecture,
                        "num_snps": num_snps,
                        "precision": precision,
                        "predicted_gib": predicted,
                        "measured_gib": measured,
                        "seconds": round(took, 2),
                    }

    # The most telling first: a call may be cut short.
    report.part("training", lambda: grid(("cnn_transformer",), ("bf16",)))
    report.part("precisions", precisions)
    report.part("older", older)
    report.part("ablations", ablations)
    report.part("others", lambda: grid(("cnn", "gnn"), ("bf16",)))
    report.part("probe", probe)
    report.part("slower formats", lambda: grid(("cnn_transformer",), ("fp32", "fp16")))
    if report.content["skipped"]:
        print("SKIPPED:", *report.content["skipped"], sep="\n")
    if report.failed:
        sys.exit(f"{len(report.failed)} parts failed")


if __name__ == "__main__":
    main()
