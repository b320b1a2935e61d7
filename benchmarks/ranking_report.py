"""From records to figures: means, paired intervals against the best peer, error control, as one JSON.

Knows no method but which are peers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, describe
from numpy.typing import NDArray
from ranking_cells import GRID, Cell
from ranking_peers import PEERS

Record = dict[str, Any]
NUM_DRAWS = 10_000
LIBRARIES = ("numpy", "scikit-learn", "pysusie", "xgboost-cpu")
LARGE = {"size": "5000x10000x20", "cell": "additive thinned"}


def _version(library: str) -> str:
    """A peer that is not installed has taken no part."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "not installed"


def write_report(
    records: dict[tuple[str, str, int, str], Record], *, size: str, seeds: list[int], path: Path | None
) -> None:
    """Writes results/ranking.json, or ``path``, of the records of one size and of these seeds."""
    chosen = [r for r in records.values() if r["size"] == size and r["seed"] in seeds]
    cells = {}
    for cell in GRID:
        of_cell = [r for r in chosen if r["cell"] == cell.name]
        if of_cell:
            cells[cell.name] = _cell(cell, of_cell)
    ours = [r for r in chosen if r["method"] not in PEERS]
    large = [r for r in records.values() if r["size"] == LARGE["size"] and r["cell"] == LARGE["cell"]]
    report = {
        "machine": describe(),
        "versions": {name: _version(name) for name in LIBRARIES},
        "code": sorted({r["code"] for r in ours}),
        "size": size,
        "seeds": sorted({r["seed"] for r in chosen}),
        "cells": cells,
        "error_control": {
            name: _error_control([r for r in chosen if r["method"] == name])
            for name in dict.fromkeys(r["method"] for r in chosen if "sets" in r)
        },
        "large": _large(large),
    }
    target = path or RESULTS / "ranking.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1) + "\n")
    if len(report["code"]) > 1:
        print(f"records of several versions of the code: {', '.join(report['code'])}")
    print(f"written to {target}")


def _cell(cell: Cell, records: list[Record]) -> Record:
    """Means and replicates of each method, and ours minus each cell's best peer on the same replicates."""
    by_method: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        by_method.setdefault(record["method"], []).append(record)
    out: Record = {
        "is_null": cell.is_null,
        "methods": {name: _summary(of_method) for name, of_method in by_method.items()},
    }
    scored = {name: {r["seed"]: r["auprc"] for r in rs if "auprc" in r} for name, rs in by_method.items()}
    scored = {name: by_seed for name, by_seed in scored.items() if by_seed}
    peers = [name for name in scored if name in PEERS]
    if peers:
        # Of slow methods fewer replicates may be there: the best is sought where all peers have been.
        common = set.intersection(*(set(scored[name]) for name in peers)) or set(scored[peers[0]])
        means = {name: _mean(scored[name].get(seed, 0.0) for seed in common) for name in peers}
        best = max(means, key=means.__getitem__)
        out["best_peer"] = best
        out["minus_best_peer"] = {
            name: paired(by_seed, scored[best]) for name, by_seed in scored.items() if name not in PEERS
        }
    return out


def _summary(records: list[Record]) -> Record:
    row: Record = {"num": len(records)}
    if "auprc" in records[0]:
        row["auprc"] = _mean(r["auprc"] for r in records)
        for measure in ("recall", "ld_recall"):
            for top in records[0][measure]:
                row[f"{measure}_{top}"] = _mean(r[measure][top] for r in records)
    if "test" in records[0]:
        row["test"] = _mean(r["test"] for r in records)
    row["seconds"] = _mean(r["seconds"] for r in records)
    row["cpu_seconds"] = _mean(r["cpu_seconds"] for r in records)
    row["peak_gib"] = max(r["peak_gib"] for r in records)
    if "sets" in records[0]:
        row["sets"] = [sum(r["sets"]["covering"] for r in records), sum(r["sets"]["num"] for r in records)]
        row["runs_with_sets"] = sum(r["sets"]["num"] > 0 for r in records)
    if "pairs" in records[0]:
        row["pairs"] = {
            key: sum(r["pairs"][key] for r in records)
            for key in ("num", "exact", "true", "false", "found", "of")
        }
        row["runs_with_pairs"] = sum(r["pairs"]["num"] > 0 for r in records)
    if "q" in records[0]:
        row["q"] = {
            level: [sum(r["q"][level][part] for r in records) for part in (1, 0)]
            for level in records[0]["q"]
            if level != "cpu_seconds"
        }
    row["replicates"] = {
        str(r["seed"]): {key: r[key] for key in ("auprc", "test", "cpu_seconds") if key in r} for r in records
    }
    return row


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Record:
    """Mean difference in AUPRC over the seeds that both have, with its 95 % bootstrap interval."""
    gained = np.array([auprc - theirs[seed] for seed, auprc in ours.items() if seed in theirs])
    if not len(gained):
        return {"num": 0}
    draws = gained[_draws(len(gained))].mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"num": len(gained), "mean": float(gained.mean()), "low": float(low), "high": float(high)}


def _error_control(records: list[Record]) -> Record:
    """Coverage, power, calibration of q and what is reported where nothing is to be found."""
    null = {cell.name: cell for cell in GRID if cell.is_null}
    real = [r for r in records if r["cell"] not in null]
    out: Record = {}
    if real:
        out["coverage"] = share(real, lambda r: (r["sets"]["covering"], r["sets"]["num"]))
        out["power"] = share(real, lambda r: (r["sets"]["causal_found"], _num_causal(r)))
        if "q" in real[0]:
            for level in ("0.05", "0.1", "0.2"):
                out[f"false_of_q_{level}"] = share(real, lambda r, at=level: r["q"][at][::-1])
        paired_cells = [r for r in real if "pairs" in r and r["pairs"]["of"]]
        if paired_cells:
            out["false_pairs"] = share(paired_cells, lambda r: (r["pairs"]["false"], r["pairs"]["num"]))
            out["pairs_found"] = share(paired_cells, lambda r: (r["pairs"]["found"], r["pairs"]["of"]))
    for name, kinds in (("permuted", ("permuted",)), ("structure", ("",))):
        runs = [r for r in records if r["cell"] in null and null[r["cell"]].control in kinds]
        if runs:
            out[f"runs_with_sets_{name}"] = [sum(r["sets"]["num"] > 0 for r in runs), len(runs)]
            if "pairs" in runs[0]:
                out[f"runs_with_pairs_{name}"] = [sum(r["pairs"]["num"] > 0 for r in runs), len(runs)]
    removed = [r for r in records if "causal removed" in r["cell"] and "pairs" in r]
    if removed:
        out["runs_with_pairs_causal_removed"] = [sum(r["pairs"]["num"] > 0 for r in removed), len(removed)]
    return out


def _num_causal(record: Record) -> int:
    return int(record["size"].split("x")[2])


def share(records: list[Record], parts: Any) -> Record:
    """Pooled share with an interval from whole replicates drawn again."""
    seeds = sorted({r["seed"] for r in records})
    counts = np.array([np.sum([parts(r) for r in records if r["seed"] == seed], axis=0) for seed in seeds])
    part, whole = counts.sum(axis=0)
    if not whole:
        return {"part": 0, "of": 0}
    drawn = counts[_draws(len(counts))].sum(axis=1)
    low, high = np.quantile(drawn[:, 0] / np.maximum(drawn[:, 1], 1), [0.025, 0.975])
    interval = {"low": float(low), "high": float(high)}
    return {"share": float(part / whole), **interval, "part": int(part), "of": int(whole)}


def _large(records: list[Record]) -> Record:
    """The large cell: AUPRC and times of each method over the seeds that all have."""
    if not records:
        return {}
    names = list(dict.fromkeys(r["method"] for r in records))
    of_all = set.intersection(*({r["seed"] for r in records if r["method"] == name} for name in names))
    rows = {}
    for name in names:
        mine = [r for r in records if r["method"] == name and r["seed"] in of_all]
        rows[name] = {key: _mean(r[key] for r in mine) for key in ("auprc", "seconds", "cpu_seconds")}
        rows[name]["peak_gib"] = max(r["peak_gib"] for r in mine)
    return {**LARGE, "seeds": sorted(of_all), "methods": rows}


def _draws(num: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(num, size=(NUM_DRAWS, num))


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
