"""Random genotypes as PLINK files: neither an import nor a training step depends on what they are."""

from pathlib import Path

import numpy as np


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
