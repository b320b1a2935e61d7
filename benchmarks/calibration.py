"""What chance gives where counts are small: binary traits with few cases, and many classes of few people.

usage: python benchmarks/calibration.py [--seeds 5000-5199] [--cells NAME ...] [--seconds N]
Seeds 0-199 are for development, those from 5000 on for the report. What is in the work folder is not run
again, so that a run can be stopped and continued; `--list` names the cells, `--report` writes those of
which the work folder has runs to benchmarks/results/calibration.json, where the others stay as they are.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from machine import RESULTS, describe, write_results
from numpy.typing import NDArray
from scipy import special

from snpdeconv.config import load_config
from snpdeconv.finemapping import joint_credible_sets
from snpdeconv.finemapping.fdr import permutation_scores, q_values
from snpdeconv.finemapping.joint import deconvolve
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.writers import write_bed
from snpdeconv.stats.association import marginal_association

WORK = Path("build/bench-calibration/runs.jsonl")
SEEDS = "5000-5199"
LINKED = 0.7  # correlation of neighbouring haplotypes' liabilities
SMALL_Q = 0.1
ODDS_RATIO = 3.0
CLASS_SIZE = 50
CASES = (10, 15, 20, 50)


@dataclass(frozen=True)
class Cell:
    """A kind of study: so many cases among so many people, or so many classes."""

    people: int
    snps: int
    cases: int = 0
    classes: int = 0
    planted: bool = False

    @property
    def name(self) -> str:
        """As the results call it."""
        if self.classes:
            return f"{self.classes} classes"
        planted = "planted" if self.planted else "null"
        return f"{planted}, {self.cases} cases of {self.people}, {self.snps} SNPs"


CELLS = [
    *(
        Cell(people, snps, cases)
        for people in (2000, 5000)
        for snps in (300, 1000)
        for cases in (10, 15, 20, 50)
    ),
    *(Cell(CLASS_SIZE * classes, 300, classes=classes) for classes in (3, 10, 30)),
    *(Cell(2000, 300, cases, planted=True) for cases in CASES),
]


def study(cell: Cell, seed: int) -> tuple[NDArray[np.uint8], NDArray[Any], int]:
    """Codes, the trait and the causal SNP or -1; half of the SNPs have MAF .02 to .05."""
    rng = np.random.default_rng([seed, cell.people, cell.snps, cell.cases, cell.classes])
    frequency = rng.permutation(
        np.where(
            np.arange(cell.snps) % 2, rng.uniform(0.02, 0.05, cell.snps), rng.uniform(0.05, 0.5, cell.snps)
        )
    )
    liability = rng.standard_normal((cell.snps, 2, cell.people))
    for v in range(1, cell.snps):
        liability[v] = LINKED * liability[v - 1] + (1 - LINKED**2) ** 0.5 * liability[v]
    codes = (liability < special.ndtri(frequency)[:, None, None]).sum(axis=1).T.astype(np.uint8)
    if cell.classes:
        return codes, rng.permutation(np.repeat(np.arange(cell.classes), CLASS_SIZE)), -1
    causal = int(rng.choice(np.flatnonzero(frequency > 0.05))) if cell.planted else -1
    odds = ODDS_RATIO ** codes[:, causal].astype(float) if cell.planted else np.ones(cell.people)
    case = np.zeros(cell.people)
    case[rng.choice(cell.people, cell.cases, replace=False, p=odds / odds.sum())] = 1
    return codes, case, causal


def run(cell: Cell, seed: int) -> dict[str, Any]:
    codes, target, causal = study(cell, seed)
    genotypes = PackedGenotypes.from_codes(codes)
    place = 10_000 * np.arange(1, cell.snps + 1)
    how: dict[str, Any] = {"chrom": np.full(cell.snps, "1", dtype=object), "position_bp": place}
    kind: Any = "multiclass" if cell.classes else "binary"
    started = time.process_time()
    found = deconvolve(genotypes, target, kind=kind, **how)
    sets = joint_credible_sets(found.fits, genotypes)
    small_q = (
        _small_q(genotypes, target, found, how) if _may_be_small(genotypes, found) else np.zeros(cell.snps)
    )
    record: dict[str, Any] = {
        "cell": cell.name,
        "seed": seed,
        "sets": len(sets),
        "largest_pip": float(found.pip.max()),
        "small_q": int(small_q.sum()),
        "seconds": time.process_time() - started,
    }
    if not cell.classes:
        share = cell.cases / cell.people
        lost = -(cell.cases * np.log10(share) + (cell.people - cell.cases) * np.log10(1 - share))
        strongest = max((effect.log_bayes_factor for effect in found.fits[0].effects), default=0.0)
        record |= {"log10_bayes_factor": float(strongest / np.log(10)), "most": float(lost)}
    if cell.planted:
        enough = -np.log10(0.05 / cell.snps)
        association = marginal_association(genotypes, target, kind="binary").neg_log10_p
        record |= {
            "in_set": any(causal in one.variants for _, one in sets),
            "of_small_q": bool(small_q[causal]),
            "saddlepoint": bool(association[causal] > enough),
            "firth": bool(firth(codes, target)[causal] > enough),
        }
    return record


def _may_be_small(genotypes: PackedGenotypes, found: Any) -> bool:
    """Whether any q-value could be small: none is below what the posterior says, whatever decoys say."""
    without_decoys = np.zeros((1, len(found.pip)))
    return bool((q_values(genotypes, found, np.tile(without_decoys, (1000, 1))) <= SMALL_Q).any())


def _small_q(
    genotypes: PackedGenotypes, target: NDArray[Any], found: Any, how: dict[str, Any]
) -> NDArray[Any]:
    num_draws = load_config("small_cpu").interpretation.num_permutations
    decoys = permutation_scores(genotypes, target, found, **how, draws=range(num_draws))
    return np.asarray(q_values(genotypes, found, decoys) <= SMALL_Q)


def firth(codes: NDArray[np.uint8], case: NDArray[np.float64]) -> NDArray[np.float64]:
    """-log10 p of plink2's Firth regression; 0 where it gives none."""
    num_people, num_snps = codes.shape
    names = np.array([f"i{n}" for n in range(num_people)], dtype=object)
    variants = Variants.build(
        variant_id=[f"rs{v}" for v in range(num_snps)],
        chrom=["1"] * num_snps,
        position_bp=list(range(1, num_snps + 1)),
        counted_allele=["A"] * num_snps,
        other_allele=["C"] * num_snps,
    )
    with tempfile.TemporaryDirectory() as temporary:
        prefix = Path(temporary) / "cohort"
        write_bed(prefix, codes, variants=variants, samples=Samples(fid=names, iid=names))
        table = pd.DataFrame({"#FID": names, "IID": names, "case": case.astype(int)})
        table.to_csv(f"{prefix}.tsv", sep="\t", index=False)
        command = ["plink2", "--threads", "1", "--memory", "800", "--bfile", prefix, "--out", prefix, "--1"]
        command += ["--pheno", f"{prefix}.tsv", "--glm", "firth", "allow-no-covars"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        result = pd.read_csv(f"{prefix}.case.glm.firth", sep="\t").set_index("ID")
    p = result["P"].reindex(variants.variant_id).fillna(1.0).to_numpy()
    return np.asarray(-np.log10(np.maximum(p, 1e-300)))


def report(records: list[dict[str, Any]]) -> None:
    by_cell = defaultdict(list)
    for record in records:
        if record["seed"] >= int(SEEDS.partition("-")[0]):
            by_cell[record["cell"]].append(record)
    path = RESULTS / "calibration.json"
    before = json.loads(path.read_text()) if path.exists() else {"machine": {}, "cells": {}}
    # A cell says where it was measured: the file's own machine is that of the last report.
    kept = {name: {"measured": before["machine"]} | cell for name, cell in before["cells"].items()}
    measured = describe()
    cells = {}
    for cell in CELLS:
        runs = by_cell[cell.name]
        if not runs:
            if cell.name in kept:
                cells[cell.name] = kept[cell.name]
            continue
        row: dict[str, Any] = {
            "runs": len(runs),
            "seeds": [min(r["seed"] for r in runs), max(r["seed"] for r in runs)],
        }
        row["any_set_or_small_q"] = sum(r["sets"] > 0 or r["small_q"] > 0 for r in runs)
        row["pip_over_half_or_set"] = sum(r["largest_pip"] > 0.5 or r["sets"] > 0 for r in runs)
        row["seconds"] = float(np.mean([r["seconds"] for r in runs]))
        if not cell.classes:
            row["above_the_limit"] = sum(r["log10_bayes_factor"] > r["most"] for r in runs)
            row["largest_log10_bayes_factor"] = max(r["log10_bayes_factor"] for r in runs)
        for name in ("in_set", "of_small_q", "saddlepoint", "firth"):
            if cell.planted:
                row[name] = sum(r[name] for r in runs)
        cells[cell.name] = row | {"planted": cell.planted, "classes": cell.classes, "measured": measured}
    write_results("calibration", {"cells": cells})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", default=SEEDS)
    parser.add_argument("--cells", nargs="+", help="parts of names of cells")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run after so long")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--list", action="store_true")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(cell.name for cell in CELLS))
        return
    WORK.parent.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in WORK.read_text().splitlines()] if WORK.exists() else []
    if arguments.report:
        report(records)
        return
    known = {(record["cell"], record["seed"]) for record in records}
    first, _, last = arguments.seeds.partition("-")
    started = time.monotonic()
    for seed in range(int(first), int(last or first) + 1):
        for cell in CELLS:
            chosen = not arguments.cells or any(part in cell.name for part in arguments.cells)
            if not chosen or (cell.name, seed) in known:
                continue
            if time.monotonic() - started > arguments.seconds:
                return
            record = run(cell, seed)
            with WORK.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, flush=True)


if __name__ == "__main__":
    main()
