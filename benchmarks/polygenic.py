"""Sparse effects before a polygenic background, and in families: ours and the peers on the same studies.

usage: python benchmarks/polygenic.py [--seeds tuning|report|200-209] [--cells NAME ...] [--methods NAME ...]
What is already in the work folder is not run again, so that a run can be stopped, split and continued.
`--table` prints what the work folder holds of the seeds; `--report` writes that of the seeds for reports to
benchmarks/results/polygenic.json; `--list` names the cells and methods.
"""

import argparse
import multiprocessing
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from machine import write_results
from mice import REAL_TRAITS, mouse_cells
from polygenic_cells import REPORT_SEEDS, SIMULATED, TUNING_SEEDS
from polygenic_methods import METHODS, judge
from ranking import append, choose, measured, read_cache, seed_list, use_one_thread
from ranking_report import share

from snpdeconv.version import code_version

WORK = Path("build/bench-polygenic")
LIBRARIES = ("numpy", "scipy", "msprime", "pysusie", "susieinf")

CELLS = SIMULATED | mouse_cells()

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What is missing of one cell and seed."""

    cell: str
    seed: int
    methods: tuple[str, ...]
    cache: Path


def run_job(job: Job) -> list[str]:
    """Runs what is missing; a method that fails is told of and tried again by the next run."""
    study = CELLS[job.cell](job.seed)
    failed = []
    for name in job.methods:
        try:
            answer, cost = measured(METHODS[name], study)
            record = {"size": "", "cell": job.cell, "seed": job.seed, "method": name}
            record |= judge(study, answer) | cost
        except Exception:
            failed.append(f"{job.cell}, seed {job.seed}, {name}:\n{traceback.format_exc()}")
            continue
        append(job.cache, record | {"code": code_version(), "at": time.strftime("%Y-%m-%d %H:%M:%S")})
        parts = [f"{time.strftime('%H:%M:%S')} {job.cell:24s} {job.seed} {name:12s} sets {record['sets']}"]
        if "hold" in record:
            parts += [f"hold {record['hold']}", f"found {record['found']} of {record['causal']}"]
            parts += [f"false {record['false']} of {record['reported']}"]
        parts += [f"lambda {record['lambda_gc']:.2f}", f"{record['cpu_seconds']:.1f} s"]
        print(", ".join(parts), flush=True)
    return failed


def run_all(jobs: list[Job], *, workers: int) -> list[str]:
    if workers == 1:
        return [message for job in jobs for message in run_job(job)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        return [message for messages in pool.map(run_job, jobs) for message in messages]


def summary(records: list[Record]) -> Record:
    """One method in one cell: shares and means over runs, with 95 % bootstrap intervals over the runs."""
    means = ("sets", "reported", "found", "lambda_gc", "cpu_seconds", "q_cpu_seconds")
    row = {key: mean(records, key) for key in means if key in records[0]}
    if "hold" in records[0]:
        row["hold"] = share(records, lambda r: (r["hold"], r["sets"]))
        row["false"] = share(records, lambda r: (r["false"], r["reported"]))
    return {
        "runs": len(records),
        **row,
        "runs_with_sets": sum(r["sets"] > 0 for r in records),
        "peak_gib": max(r["peak_gib"] for r in records),
    }


def mean(records: list[Record], key: str) -> Record:
    values = np.array([r[key] for r in records], dtype=np.float64)
    drawn = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def summaries(records: list[Record]) -> dict[str, dict[str, Record]]:
    """By cell and method, in the order of the benchmark."""
    out: dict[str, dict[str, Record]] = {}
    for cell in CELLS:
        for name in dict.fromkeys([*METHODS, *(r["method"] for r in records)]):
            runs = [r for r in records if (r["cell"], r["method"]) == (cell, name)]
            if runs:
                out.setdefault(cell, {})[name] = summary(runs)
    return out


def print_table(records: list[Record]) -> None:
    shown = ("sets", "hold", "found", "false", "lambda_gc")
    rows = [("cell", "method", "runs", *shown, "CPU s")]
    for cell, methods in summaries(records).items():
        for name, row in methods.items():
            figures = [ranged(row.get(key, {})) for key in shown]
            rows.append((cell, name, str(row["runs"]), *figures, f"{row['cpu_seconds']['mean']:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)).rstrip())


def ranged(figure: Record) -> str:
    """A mean or share and its interval; a dash where there is none."""
    if "low" not in figure:
        return "-"
    middle = figure["mean"] if "mean" in figure else figure["share"]
    return f"{middle:.2f} ({figure['low']:.2f}-{figure['high']:.2f})"


def write_report(records: list[Record]) -> None:
    """Writes results/polygenic.json."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    seeds = sorted({r["seed"] for r in records})
    codes = sorted({r["code"] for r in records})
    write_results(
        "polygenic", {"versions": versions, "codes": codes, "seeds": seeds, "cells": summaries(records)}
    )


def seeds_of(text: str) -> list[int]:
    """ "tuning", "report", 200-209 or 200,203."""
    named = {"tuning": TUNING_SEEDS, "report": REPORT_SEEDS}
    return list(named[text]) if text in named else seed_list(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=seeds_of, default=list(TUNING_SEEDS))
    parser.add_argument("--cells", nargs="+", help="names; all by default")
    parser.add_argument("--methods", nargs="+", help="names; all by default")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the records")
    parser.add_argument("--again", action="store_true", help="run also what is there; the newest counts")
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--report", action="store_true", help="write the results file, run nothing")
    parser.add_argument("--list", action="store_true", help="name the cells and methods, run nothing")
    arguments = parser.parse_args()
    use_one_thread()
    if "susie_inf" not in METHODS:
        print("susieinf is not installed: SuSiE-inf is LEFT OUT", file=sys.stderr)
    if CELLS == SIMULATED:
        print("SNPDECONV_MICE names no folder: the cells of real mice are LEFT OUT", file=sys.stderr)
    if arguments.list:
        print("cells:", *CELLS, "methods:", *METHODS, sep="\n  ")
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    cache = arguments.work / "records.jsonl"
    known = read_cache(cache)
    if arguments.table or arguments.report:
        wanted = REPORT_SEEDS if arguments.report else arguments.seeds
        records = [r for r in known.values() if r["seed"] in wanted]
        (write_report if arguments.report else print_table)(records)
        return
    cells = choose(arguments.cells, list(CELLS), what="cell")
    methods = choose(arguments.methods, list(METHODS), what="method")
    jobs = []
    for seed in arguments.seeds:
        for cell in cells:
            if cell in REAL_TRAITS and seed != arguments.seeds[0]:
                continue  # the same study for all seeds
            done = set() if arguments.again else {m for m in methods if ("", cell, seed, m) in known}
            if missing := tuple(m for m in methods if m not in done):
                jobs.append(Job(cell=cell, seed=seed, methods=missing, cache=cache))
    print(f"{sum(len(job.methods) for job in jobs)} runs", flush=True)
    failed = run_all(jobs, workers=arguments.workers)
    for message in failed:
        print(message, file=sys.stderr)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
