"""Single effects, pair scan and their kernels on one GPU, against the floors of the machine that they run on.

usage: python benchmarks/gpu_statistics.py [--device cuda] [--scale full] [--json FILE]
Genotypes are drawn on the device. Needs torch, numpy and scipy only. The matrix rate and the bandwidth of the
floors are measured in the same run. On a CPU the kernels are those of a GPU, the fits those of a CPU.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snpdeconv.epistasis import scan_pairs
from snpdeconv.epistasis.dosages import Dosages
from snpdeconv.epistasis.screen import screen
from snpdeconv.finemapping import Settings, fit_single_effects
from snpdeconv.finemapping.tiles import DeviceTiles
from snpdeconv.genetics.gpu import NUM_TERMS, cached_on_device, codes_by_slot, codes_of, in_order, product
from snpdeconv.genetics.packed import PackedGenotypes

Result = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """Sizes: people and SNPs of each part, the side of the square whose product is timed, vectors at once."""

    effects: tuple[int, int]
    pairs: tuple[int, int]
    kernels: tuple[int, int]
    square: int
    num_vectors: int
    copy_bytes: int


SCALES = {
    "full": Scale((100_000, 100_000), (20_000, 100_000), (100_000, 100_000), 8192, 64, 2**32),
    "small": Scale((1000, 2000), (500, 1000), (1000, 2000), 512, 8, 2**24),
}
# Genotypes whose random numbers are drawn at once.
DRAWN_AT_ONCE = 2**26
NUM_CAUSAL = 20
CHECKED = 64


@dataclass(frozen=True)
class Machine:
    """What a device can do, measured.

    Attributes:
        device: The device.
        matrix_flops: FLOP a second of a large product of bfloat16 numbers; of float32 ones on a CPU.
        bytes_per_s: Bytes read and written a second by a large copy.
    """

    device: torch.device
    matrix_flops: float
    bytes_per_s: float

    @classmethod
    def measured(cls, device: torch.device, scale: Scale) -> Machine:
        """Times a product and a copy."""
        number = torch.float32 if device.type == "cpu" else torch.bfloat16
        square = torch.randn((scale.square, scale.square), device=device).to(number)
        source = torch.ones(scale.copy_bytes, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return cls(
            device=device,
            matrix_flops=2 * scale.square**3 / best_of(lambda: square @ square, device=device),
            bytes_per_s=2 * scale.copy_bytes / best_of(lambda: target.copy_(source), device=device),
        )

    def timed(self, work: Callable[[], Any]) -> tuple[float, float, Any]:
        """Seconds, peak memory in GiB (of this process on a CPU), and what the work gave."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        started = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            peak = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return time.perf_counter() - started, peak / 2**30, result


def best_of(work: Callable[[], Any], *, device: torch.device, times: int = 5) -> float:
    """Least seconds of some runs, after one that is not timed."""
    work()
    seconds = []
    for _ in range(times):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def drawn(num_samples: int, num_variants: int, *, device: torch.device, seed: int) -> Tensor:
    """Random packed genotypes in Hardy-Weinberg proportions, (N, V / 4) uint8 on the device."""
    generator = torch.Generator(device=device).manual_seed(seed)
    width = num_variants // 4
    frequency = torch.empty((4, width), device=device).uniform_(0.05, 0.5, generator=generator)
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=device)[:, None]
    packed = torch.empty((num_samples, width), dtype=torch.uint8, device=device)
    step = max(1, DRAWN_AT_ONCE // num_variants)
    for start in range(0, num_samples, step):
        shape = (min(step, num_samples - start), 4, width)
        codes = torch.zeros(shape, dtype=torch.uint8, device=device)
        for _ in range(2):
            codes += torch.rand(shape, device=device, generator=generator) < frequency
        packed[start : start + step] = (codes << shift).sum(dim=1, dtype=torch.uint8)
    return packed


def trait(packed: Tensor, *, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N,) half of it by additive effects of some SNPs, half noise."""
    rng = np.random.default_rng(seed)
    causal = torch.from_numpy(rng.choice(4 * packed.shape[1], NUM_CAUSAL, replace=False)).to(packed.device)
    dosage = codes_of(packed, causal).double().cpu().numpy()
    score = ((dosage - dosage.mean(axis=0)) / dosage.std(axis=0)) @ rng.normal(size=NUM_CAUSAL)
    return np.asarray(score / score.std() + rng.normal(size=len(score)))


def single_effects(machine: Machine, scale: Scale) -> Result:
    """A whole fit; its floor is to read the packed genotypes once a pass."""
    num_samples, num_variants = scale.effects
    packed = drawn(num_samples, num_variants, device=machine.device, seed=1)
    y = trait(packed, seed=1)
    genotypes = PackedGenotypes(packed.cpu().numpy(), num_variants)
    del packed
    upload, _, _ = machine.timed(lambda: cached_on_device(genotypes, machine.device))
    seconds, peak, fit = machine.timed(
        lambda: fit_single_effects(
            genotypes, y, kind="quantitative", settings=Settings(device=str(machine.device))
        )
    )
    floor = fit.num_passes * genotypes.packed.nbytes / machine.bytes_per_s
    return {
        "people": num_samples,
        "snps": num_variants,
        "effects": len(fit.effects),
        "passes": fit.num_passes,
        "upload_seconds": upload,
        "seconds": seconds,
        "floor_seconds": floor,
        "share": floor / seconds,
        "peak_gib": peak,
    }


def pair_scan(machine: Machine, scale: Scale) -> Result:
    """All pairs scanned; its floor is the arithmetic of the screens' products."""
    num_samples, num_variants = scale.pairs
    packed = drawn(num_samples, num_variants, device=machine.device, seed=2)
    planted = 5, num_variants - 5
    z = codes_of(packed, torch.tensor(planted, device=machine.device)).double().cpu().numpy()
    z = (z - z.mean(axis=0)) / z.std(axis=0)
    residual = np.random.default_rng(2).normal(size=num_samples) + 0.6 * z[:, 0] * z[:, 1]
    genotypes = PackedGenotypes(packed.cpu().numpy(), num_variants)
    del packed
    place: dict[str, Any] = {
        "chrom": np.full(num_variants, "1", dtype=object),
        "position_bp": 20_000 * np.arange(num_variants),
    }
    seconds, peak, found = machine.timed(
        lambda: scan_pairs(genotypes, residual, device=machine.device, **place)
    )
    floor = found.num_flop / machine.matrix_flops
    return {
        "people": num_samples,
        "snps": num_variants,
        "pairs_tested": found.num_tested,
        "planted_pair_leads": len(found) > 0 and tuple(found.pairs[0].tolist()) == planted,
        "seconds": seconds,
        "floor_seconds": floor,
        "share": floor / seconds,
        "peak_gib": peak,
        "largest_error_of_t": _error_of_screen(genotypes, residual, machine.device),
    }


def _error_of_screen(genotypes: PackedGenotypes, residual: Any, device: torch.device) -> float:
    """Largest difference of a screening t from float64, over the strongest pairs of a part of the SNPs."""
    num = min(2048, genotypes.num_variants)
    part = PackedGenotypes(np.ascontiguousarray(genotypes.packed[:, : num // 4]), num)
    dosages = Dosages.of(part, device=device)
    r = torch.from_numpy((residual - residual.mean()).astype(np.float32)).to(device)
    found = screen(
        dosages,
        r,
        variance=None,
        chrom_code=np.zeros(num, dtype=np.int64),
        position_bp=20_000 * np.arange(num),
        min_distance_bp=10_000,
        min_carriers=10.0,
        t_min=3.0,
        keep=1000,
        dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
    )
    used = np.unique(np.concatenate([found.first, found.second]))
    codes = part.codes(columns=used).astype(np.float64)
    z = (codes - dosages.mean[used]) * dosages.inverse_sd[used]
    first, second = (z[:, np.searchsorted(used, side)] for side in (found.first, found.second))
    exact = r.double().cpu().numpy()
    total = exact @ (first * second)
    spread = exact**2 @ (first * second) ** 2
    own = total**2 * dosages.kurtosis[found.first] * dosages.kurtosis[found.second] / len(exact)
    spread = np.maximum(spread - np.minimum(own, 0.9 * spread), exact @ exact)
    return float(np.abs(found.statistic - total / np.sqrt(spread)).max(initial=0.0))


def kernels(machine: Machine, scale: Scale) -> dict[str, Result]:
    """Products of genotypes with vectors and with themselves, each with its two floors."""
    num_samples, num_variants = scale.kernels
    packed = drawn(num_samples, num_variants, device=machine.device, seed=3)
    tiles = DeviceTiles.of(packed, num_variants=num_variants)
    vectors = torch.randn((num_samples, scale.num_vectors), dtype=torch.float64, device=machine.device)
    weight = torch.randn((1, num_variants), dtype=torch.float64, device=machine.device)
    some = torch.arange(0, num_variants, max(1, num_variants // CHECKED), device=machine.device)
    exact = codes_of(packed, some).double()

    def against(found: Tensor, with_vectors: Tensor) -> float:
        size = exact.norm(dim=0)[:, None] * with_vectors.norm(dim=0)
        return float(((found[0][some] - exact.T @ with_vectors) / size).abs().max())

    results = {}
    for name, used in (("X'y", vectors[:, :1]), (f"X'V of {scale.num_vectors} vectors", vectors)):
        seconds, peak, found = _repeated(machine, lambda used=used: tiles.products(used, het=False))
        num_flop = 2.0 * num_samples * num_variants * used.shape[1] * NUM_TERMS
        results[name] = _kernel(machine, seconds, peak, num_flop=num_flop, packed=packed)
        results[name]["largest_relative_error"] = against(found, used)
    seconds, peak, _ = _repeated(machine, lambda: tiles.combine(weight))
    num_flop = 2.0 * num_samples * num_variants * NUM_TERMS
    results["Xb"] = _kernel(machine, seconds, peak, num_flop=num_flop, packed=packed)
    part = packed[:, : min(packed.shape[1], 2048)].contiguous()
    seconds, peak, gram = _repeated(machine, lambda: gram_of_codes(part))
    num_flop = 2.0 * num_samples * (4 * part.shape[1]) ** 2
    results["X'X of a tile"] = _kernel(machine, seconds, peak, num_flop=num_flop, packed=part)
    few = in_order(codes_by_slot(part))[:, :CHECKED].double()
    results["X'X of a tile"]["largest_error"] = float((gram[:CHECKED, :CHECKED] - few.T @ few).abs().max())
    return results


def gram_of_codes(packed: Tensor) -> Tensor:
    """(b, b) float32 sums of products of codes, whole numbers and exact: (N, b / 4) uint8 without missing."""
    codes = in_order(codes_by_slot(packed)).bfloat16()
    return product(codes.T, codes)


def _repeated(machine: Machine, work: Callable[[], Tensor]) -> tuple[float, float, Tensor]:
    _, peak, result = machine.timed(work)
    return best_of(work, device=machine.device, times=3), peak, result


def _kernel(machine: Machine, seconds: float, peak: float, *, num_flop: float, packed: Tensor) -> Result:
    arithmetic, bandwidth = num_flop / machine.matrix_flops, packed.numel() / machine.bytes_per_s
    return {
        "seconds": seconds,
        "arithmetic_floor_seconds": arithmetic,
        "bandwidth_floor_seconds": bandwidth,
        "share": max(arithmetic, bandwidth) / seconds,
        "peak_gib": peak,
    }


def run(device: str = "cuda", scale: str = "full") -> Result:
    """All parts: seconds, floors, share reached of the floor, peak memory and errors.

    Args:
        device: cuda or cpu.
        scale: One of SCALES.
    """
    sizes = SCALES[scale]
    machine = Machine.measured(torch.device(device), sizes)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "scale": scale,
        "matrix_tflops": machine.matrix_flops / 1e12,
        "gigabytes_per_s": machine.bytes_per_s / 1e9,
        "kernels": kernels(machine, sizes),
        "pair_scan": pair_scan(machine, sizes),
        "single_effects": single_effects(machine, sizes),
    }


def main() -> None:
    """Prints the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--scale", default="full", choices=tuple(SCALES))
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    from machine import describe

    results = {"machine": describe(), **run(arguments.device, arguments.scale)}
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
