"""Two checkouts side by side on one machine: imports, training, ranking and start-up, and how they compare.

usage: python benchmarks/old_beside_new.py --old CHECKOUT [--new CHECKOUT] [--quick]
They take turns, so that what else the machine does meets both alike; figures are medians.
A ratio is new over old of a speed: below 1 is slower. Of commands the processor's seconds stand beside the
clock's, which a busy machine spoils. Random genotypes where no result depends on them. Writes
results/old_beside_new.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkout import COMMAND, HERE, Checkout
from imports import write_random_vcf
from machine import write_results
from random_bed import write_random_bed

ARCHITECTURES = ("cnn", "cnn_transformer", "gnn")

# Each checkout's own benchmark says how it is called; the figure is of the work alone, without start-up.
IMPORT = """
import json, shutil, sys
sys.path.insert(0, sys.argv[1] + "/benchmarks")
import imports
seconds = imports.run(imports.IMPORT, *sys.argv[2:])[0]
shutil.rmtree(sys.argv[3])
print(json.dumps(seconds))
"""
Figures = dict[str, float]


def measurements(folder: Path, *, quick: bool) -> dict[str, Callable[[Checkout], Figures]]:
    """What is measured of a checkout, by name; each gives figures by name."""
    home = folder / "home"
    bed, vcf, cohort = folder / "random.bed", folder / "random", folder / "cohort"
    write_random_bed(bed.with_suffix(""), num_samples=20_000, num_variants=5000 if quick else 50_000)
    vcf = write_random_vcf(vcf, num_samples=2000, num_variants=1000 if quick else 10_000)
    samples, variants = (400, 500) if quick else (2000, 2000)
    simulated = ("simulate", cohort, "--samples", samples, "--variants", variants)
    Checkout(HERE).command(*simulated, home=home)
    inputs = (
        "--genotypes",
        cohort / "cohort.bed",
        "--phenotypes",
        cohort / "phenotypes.tsv",
        "--trait",
        "trait",
    )
    size = {bed: bed.stat().st_size / 1e6, vcf: 2000 * (1000 if quick else 10_000) / 4 / 1e6}

    def imported(source: Path) -> Callable[[Checkout], Figures]:
        def measure(checkout: Checkout) -> Figures:
            seconds = checkout.script(IMPORT, checkout.root, source, folder / "store", home=home)
            return {"mb_per_second": size[source] / seconds}

        return measure

    def trained(architecture: str) -> Callable[[Checkout], Figures]:
        def measure(checkout: Checkout) -> Figures:
            script = checkout.root / "benchmarks" / "throughput.py"
            words = (script, "--part", "ours", architecture, 1000 if quick else 10_000, 32, "fp32")
            told = checkout.script_file(*words, home=home)
            return {
                "samples_per_second": told["samples_per_second"],
                "samples_per_cpu_second": 1e3 / told["cpu_ms_a_sample"],
            }

        return measure

    def started(*words: str) -> Callable[[Checkout], Figures]:
        def measure(checkout: Checkout) -> Figures:
            spent = [checkout.seconds_of([checkout.python, *words], home=home) for _ in range(5)]
            return _per_second({name: statistics.median(one[name] for one in spent) for name in spent[0]})

        return measure

    def ranked(checkout: Checkout) -> Figures:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            out, own_home = Path(fresh) / "ranking", Path(fresh) / "home"
            return _per_second(checkout.seconds("rank", *inputs, "--out", out, home=own_home))

    return {
        "import .bed": imported(bed),
        "import .vcf.gz (MB of packed genotypes)": imported(vcf),
        **{f"train {name}": trained(name) for name in ARCHITECTURES},
        "rank": ranked,
        "snpdeconv --help": started("-c", COMMAND, "--help"),
        "snpdeconv train --help": started("-c", COMMAND, "train", "--help"),
        "import snpdeconv": started("-c", "import snpdeconv"),
    }


def _per_second(seconds: Figures) -> Figures:
    return {"runs_per_second": 1 / seconds["wall"], "runs_per_cpu_second": 1 / seconds["cpu"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, default=HERE)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="what starts so, such as import or train")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes; nothing is written, as with --only"
    )
    arguments = parser.parse_args()
    checkouts = {name: Checkout(getattr(arguments, name).resolve()) for name in ("old", "new")}
    commits = {side: checkout.commit() for side, checkout in checkouts.items()}
    taken: dict[str, dict[str, list[Figures]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, measure in measurements(Path(temporary), quick=arguments.quick).items():
            if arguments.only and not name.startswith(tuple(arguments.only)):
                continue
            turns: dict[str, list[Figures]] = {"old": [], "new": []}
            for turn in range(arguments.repeats):
                for side in ("old", "new") if turn % 2 == 0 else ("new", "old"):
                    turns[side].append(measure(checkouts[side]))
            taken[name] = turns
            print(
                f"{name:<42}",
                *(f"{key} {one['ratio']:.3f}" for key, one in summary(turns).items()),
                flush=True,
            )
    results: dict[str, Any] = {
        "commits": commits,
        "repeats": arguments.repeats,
        "figures": {name: summary(turns) for name, turns in taken.items()},
    }
    print(json.dumps(results, indent=2))
    if not (arguments.quick or arguments.only):
        write_results("old_beside_new", results)


def summary(turns: dict[str, list[Figures]]) -> dict[str, Figures]:
    """Medians of old and new, and new over old."""
    told = {}
    for figure in turns["old"][0]:
        old, new = (statistics.median(one[figure] for one in turns[side]) for side in ("old", "new"))
        told[figure] = {"old": _rounded(old), "new": _rounded(new), "ratio": round(new / old, 3)}
    return told


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
