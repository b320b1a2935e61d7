"""The main job at 100,000 SNPs on a laptop: import of a .bed, and a training step of the medium preset.

usage: python benchmarks/scale.py [--samples 2000] [--variants 100000] [--batch 16]
Random genotypes: neither import nor a step depends on what they are. Writes benchmarks/results/scale.json.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import write_results

STEP = """
import json, resource, sys, time
import torch
from snpdeconv.config import load_config
from snpdeconv.models.factory import create_gpu_optimized_model
from snpdeconv.training.data import PackedLoader
from snpdeconv.training.trainer import MultiGPUSNPTrainer
num_samples, num_variants, batch = map(int, sys.argv[1:])
config = load_config("medium_gpu").model
model = create_gpu_optimized_model(
    num_variants, encoding_dim=config.encoding_dim, architecture="cnn_transformer", width=config.width,
    num_layers=config.num_layers, num_heads=config.num_heads, patch=config.patch, dropout=config.dropout,
)
packed = torch.randint(0, 256, (num_samples, num_variants // 4), dtype=torch.uint8)
y = torch.randn(num_samples)
train = PackedLoader(packed, y, rows=torch.arange(3 * batch), batch_size=batch, shuffle=True)
val = PackedLoader(packed, y, rows=torch.arange(batch), batch_size=batch)
trainer = MultiGPUSNPTrainer(model, train, val, loss="mse")
started = time.perf_counter()
trainer.train(1, 1)
seconds = (time.perf_counter() - started) / 3
print(json.dumps({
    "seconds_a_step": round(seconds, 2), "samples_per_second": round(batch / seconds, 2),
    "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    "parameters_million": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
}))
"""

IMPORT = """
import json, resource, sys, time
from pathlib import Path
from snpdeconv.genetics.ingest import import_cohort
started = time.perf_counter()
import_cohort(Path(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps({
    "seconds": round(time.perf_counter() - started, 2),
    "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
}))
"""


def write_random_bed(prefix: Path, *, num_samples: int, num_variants: int) -> None:
    rng = np.random.default_rng(1)
    codes = np.array([0b00, 0b10, 0b11], dtype=np.uint8)
    with prefix.with_suffix(".bed").open("wb") as bed:
        bed.write(b"\x6c\x1b\x01")
        for _ in range(0, num_variants, 1000):
            drawn = codes[rng.integers(3, size=(min(1000, num_variants), num_samples // 4, 4))]
            bed.write(np.bitwise_or.reduce(drawn << np.array([0, 2, 4, 6], dtype=np.uint8), axis=2).tobytes())
    prefix.with_suffix(".bim").write_text(
        "".join(f"1\trs{i}\t0\t{1000 + 30 * i}\tA\tG\n" for i in range(num_variants))
    )
    prefix.with_suffix(".fam").write_text("".join(f"0 S{i} 0 0 0 -9\n" for i in range(num_samples)))


def run(script: str, *arguments: object) -> dict[str, float]:
    import json

    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--variants", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        prefix = Path(temporary) / "random"
        write_random_bed(prefix, num_samples=arguments.samples, num_variants=arguments.variants)
        imported = run(IMPORT, prefix.with_suffix(".bed"), Path(temporary) / "store")
        print("import", imported)
        step = run(STEP, arguments.samples, arguments.variants, arguments.batch)
        print("training step", step)
    write_results("scale", {"arguments": vars(arguments), "import": imported, "step": step})


if __name__ == "__main__":
    main()
