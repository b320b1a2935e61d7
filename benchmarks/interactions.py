"""What chance gives, and what is found, where the effect of a SNP may depend on a covariate.

usage: python benchmarks/interactions.py [--seeds 4000-4059] [--cells NAME ...] [--report]
Seeds from 200 on are for development, 4000-4059 for the report. A trait has main effects of three SNPs, a
bent effect of the covariate, and a residual whose spread goes with it (even where a cell says so); planted
cells add one interaction. `--cells` takes the start of names; `--report` writes
benchmarks/results/interactions.json.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from machine import write_results
from numpy.typing import NDArray
from scipy import special

from snpdeconv.finemapping import joint_credible_sets
from snpdeconv.finemapping.joint import deconvolve
from snpdeconv.genetics.packed import PackedGenotypes

SEEDS = "4000-4059"
SNPS = 500
LINKED = 0.9  # correlation of neighbouring haplotypes' liabilities within a block of 25 SNPs
BLOCK = 25
MAIN_PVE = 0.03  # of each of three SNPs


@dataclass(frozen=True)
class Cell:
    """A kind of study; `pve` is of the interaction, 0 of a null."""

    people: int
    covariate: Literal["sex", "age"]
    kind: Literal["quantitative", "binary"] = "quantitative"
    pve: float = 0.0
    # logarithm by which the residual's standard deviation grows with a standard deviation of the covariate
    spread: float = 0.5

    @property
    def name(self) -> str:
        """As the results call it."""
        what = f"interaction of PVE {self.pve}" if self.pve else "null"
        even = "" if self.spread or self.kind == "binary" else ", even residual"
        return f"{what}, {self.kind}, {self.covariate}, {self.people} people{even}"


CELLS = [
    *(Cell(people, covariate) for people in (1000, 2000) for covariate in ("sex", "age")),
    Cell(2000, "age", "binary", spread=0.0),
    *(
        Cell(people, covariate, pve=pve, spread=spread)
        for people, pve in ((1000, 0.04), (2000, 0.02))
        for covariate in ("sex", "age")
        for spread in (0.0, 0.5)
    ),
    Cell(2000, "age", "binary", pve=0.04, spread=0.0),
]


def study(cell: Cell, seed: int) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any], int]:
    """Codes, the trait, the covariate and the SNP that interacts with it."""
    rng = np.random.default_rng([seed, cell.people, cell.covariate == "sex", cell.kind == "binary"])
    liability = rng.standard_normal((SNPS, 2, cell.people))
    for v in range(1, SNPS):
        if v % BLOCK:
            liability[v] = LINKED * liability[v - 1] + (1 - LINKED**2) ** 0.5 * liability[v]
    threshold = special.ndtri(rng.uniform(0.03, 0.5, SNPS))[:, None, None]
    codes = (liability < threshold).sum(axis=1).T.astype(np.uint8)
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    e = rng.integers(0, 2, cell.people) if cell.covariate == "sex" else rng.gamma(4.0, size=cell.people)
    e = (e - e.mean()) / e.std()
    chosen = rng.choice(SNPS, 4, replace=False)
    # The first SNP with a main effect is the one that interacts in every second study.
    acting = int(chosen[0] if seed % 2 else chosen[3])
    left = 1 - 3 * MAIN_PVE - cell.pve
    spread = np.exp(cell.spread * e)
    noise = rng.standard_normal(cell.people) * spread / np.sqrt(np.mean(spread**2))
    value = MAIN_PVE**0.5 * z[:, chosen[:3]].sum(axis=1) + left**0.5 * noise
    value += 0.4 * e + 0.3 * e**2 + cell.pve**0.5 * z[:, acting] * e
    if cell.kind == "binary":
        return codes, (value > np.quantile(value, 0.7)).astype(float), e, acting
    return codes, value, e, acting


def run(cell: Cell, seed: int) -> dict[str, Any]:
    codes, target, e, acting = study(cell, seed)
    genotypes = PackedGenotypes.from_codes(codes)
    started = time.process_time()
    found = deconvolve(
        genotypes,
        target,
        kind=cell.kind,
        chrom=np.full(SNPS, "1", dtype=object),
        position_bp=20_000 * np.arange(1, SNPS + 1),
        covariates=e[:, None],
        interactions=[0],
        pairs=False,
    )
    seconds = time.process_time() - started
    interactions, (fit,) = found.interactions, found.fits
    first = len(fit.column_pip) - len(interactions)
    sets = [
        one
        for _, one in joint_credible_sets(found.fits, genotypes)
        if fit.effects[one.effects[0]].columns[0] >= first
    ]
    near = np.abs(interactions.variant - acting) < BLOCK
    true = (interactions.variant // BLOCK == acting // BLOCK) & near
    return {
        "cell": cell.name,
        "seed": seed,
        "reported": bool(sets or (interactions.pip > 0.5).any() or (interactions.q_value <= 0.1).any()),
        "pip_over_half": bool((interactions.pip > 0.5).any()),
        "small_q": bool((interactions.q_value <= 0.1).any()),
        "sets": len(sets),
        "sets_with_it": sum(acting in one.variants for one in sets),
        "pip": float(interactions.pip[interactions.variant == acting].max(initial=0.0)),
        "found": bool((interactions.q_value[true] <= 0.1).any()),
        "elsewhere": bool((interactions.q_value[~true] <= 0.1).any()),
        "seconds": seconds,
    }


def summary(cell: Cell, runs: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {**asdict(cell), "runs": len(runs), "seeds": [runs[0]["seed"], runs[-1]["seed"]]}
    for name in ("reported", "pip_over_half", "small_q", "sets"):
        row[name] = sum(r[name] for r in runs)
    if cell.pve:
        row["found_small_q"] = sum(r["found"] for r in runs)
        row["elsewhere_small_q"] = sum(r["elsewhere"] for r in runs)
        row["pip_of_it_over_half"] = sum(r["pip"] > 0.5 for r in runs)
        row["sets_with_it"] = sum(r["sets_with_it"] for r in runs)
    row["seconds"] = float(np.mean([r["seconds"] for r in runs]))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default=SEEDS)
    parser.add_argument("--cells", nargs="*", default=[""])
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    first, last = map(int, options.seeds.split("-"))
    rows = {}
    for cell in CELLS:
        if cell.name.startswith(tuple(options.cells)):
            rows[cell.name] = summary(cell, [run(cell, seed) for seed in range(first, last + 1)])
            print(json.dumps({cell.name: rows[cell.name]}), flush=True)
    if options.report:
        write_results("interactions", {"cells": rows})


if __name__ == "__main__":
    main()
