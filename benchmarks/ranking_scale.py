"""Single effects of a cohort that no float copy of fits: seconds and peak memory of a fresh process.

usage: python benchmarks/ranking_scale.py [--samples 20000] [--variants 100000] [--pairs] [--device cpu]
Genotypes of a simulated panel are tiled along the genome, each tile with its people in another order, and
written packed. `python benchmarks/ranking.py --scale` runs it. Writes benchmarks/results/ranking_scale.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_results
from ranking_cells import replicate
from sklearn.metrics import average_precision_score

from snpdeconv.genetics.packed import PackedGenotypes

PANEL = 2_000
PVE = 0.5
NUM_CAUSAL = 20
CODES_A_BYTE = 4


def write_cohort(folder: Path, *, num_samples: int, num_variants: int) -> None:
    """Packed genotypes, places, a trait and its causal SNPs, tile by tile."""
    study = replicate("thinned", "additive", seed=0)
    tile = study.genotypes.packed
    rng = np.random.default_rng(0)
    num_tiles = num_variants // PANEL
    packed = np.memmap(
        folder / "packed", dtype=np.uint8, mode="w+", shape=(num_samples, num_variants // CODES_A_BYTE)
    )
    for place in range(num_tiles):
        order = np.concatenate([rng.permutation(len(tile)) for _ in range(-(-num_samples // len(tile)))])
        start = place * tile.shape[1]
        packed[:, start : start + tile.shape[1]] = tile[order[:num_samples]]
    genotypes = PackedGenotypes(packed=packed, num_variants=num_variants)
    causal = np.sort(rng.choice(num_tiles, NUM_CAUSAL, replace=False)) * PANEL
    causal += rng.choice(np.flatnonzero(study.causal), NUM_CAUSAL)
    dosage = genotypes.codes(columns=causal).astype(np.float64)
    signal = (dosage - dosage.mean(axis=0)) / dosage.std(axis=0) @ rng.normal(size=NUM_CAUSAL)
    noise = rng.normal(size=num_samples)
    np.savez(
        folder / "study.npz",
        trait=np.sqrt(PVE) * signal / signal.std() + np.sqrt(1 - PVE) * noise / noise.std(),
        causal=np.isin(np.arange(num_variants), causal),
        chrom=np.repeat(np.arange(num_tiles) % 22 + 1, PANEL),
        position_bp=np.tile(study.variants.position_bp, num_tiles)
        + np.repeat(np.arange(num_tiles) // 22, PANEL) * (study.variants.position_bp.max() + 1),
    )


def fit(folder: Path, *, pairs: bool, device: str) -> dict[str, Any]:
    """What the fresh process does and prints."""
    from snpdeconv.finemapping import Settings, joint_credible_sets
    from snpdeconv.finemapping.joint import deconvolve

    study = np.load(folder / "study.npz")
    num_samples, num_variants = len(study["trait"]), len(study["causal"])
    packed = np.memmap(folder / "packed", dtype=np.uint8, mode="r").reshape(num_samples, -1)
    genotypes = PackedGenotypes(packed=packed, num_variants=num_variants)
    wall, cpu = time.perf_counter(), time.process_time()
    found = deconvolve(
        genotypes,
        study["trait"],
        kind="quantitative",
        chrom=study["chrom"].astype(str).astype(object),
        position_bp=study["position_bp"],
        pairs=pairs,
        settings=Settings(device=device),
    )
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    status = Path("/proc/self/status").read_text()
    sets = [study["causal"][one.variants].any() for _, one in joint_credible_sets(found.fits, genotypes)]
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "peak_gib": round(int(status.partition("VmHWM:")[2].split()[0]) / 2**20, 2),
        "auprc": float(average_precision_score(study["causal"], found.score)),
        "credible_sets": len(sets),
        "covering": int(np.sum(sets)),
        "num_pairs": int((found.pairs.pip > 0.5).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--variants", type=int, default=100_000, help=f"a multiple of {PANEL:,}")
    parser.add_argument("--pairs", action="store_true", help="scan all pairs as well")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(fit(arguments.folder, pairs=arguments.pairs, device=arguments.device)))
        return
    if arguments.variants < NUM_CAUSAL * PANEL or arguments.variants % PANEL:
        sys.exit(f"--variants {arguments.variants}: give a multiple of {PANEL}, {NUM_CAUSAL * PANEL} or more")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_cohort(folder, num_samples=arguments.samples, num_variants=arguments.variants)
        command = [sys.executable, __file__, "--folder", temporary, "--device", arguments.device]
        if arguments.pairs:
            command.append("--pairs")
        measured = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    results = json.loads(measured.splitlines()[-1])
    print(results)
    given = {key: value for key, value in vars(arguments).items() if key != "folder"}
    write_results("ranking_scale", {"arguments": given, **results})


if __name__ == "__main__":
    main()
