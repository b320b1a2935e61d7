"""Writes the README's tables from benchmarks/results/*.json, between the marks that it leaves for them.

usage: python benchmarks/tables.py [--check]     (--check writes nothing and fails where the README differs)
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
START = "<!-- results: benchmarks/tables.py fills in what lies between these marks -->"
END = "<!-- /results -->"


def machine_line(machine: dict[str, Any], command: str) -> str:
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"`{command}` on {machine['cores']} cores of {machine['cpu']}{gpu}, torch {machine['torch']}, "
        f"{machine['date']}."
    )


def real_genotypes(results: dict[str, Any]) -> list[str]:
    seeds = len({run["seed"] for run in results["runs"]})
    lines = [
        "Ancestry of 957 people of HapMap 3 (14,389 SNPs) on test people never seen, mean macro-F1 over "
        f"{seeds} split{'s' if seeds > 1 else ''}, against 20 principal components and logistic regression "
        "on the same splits. The networks get no components.",
        "",
        "| trait | architecture | macro-F1 | components + regression | minutes |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row['trait']} | {row['architecture']} | {row['macro_f1']:.3f} "
        f"| {row['components_macro_f1']:.3f} | {row['seconds'] / 60:.1f} |"
        for row in results["mean"]
    ]
    options = results["arguments"]
    command = " ".join(
        [
            "python benchmarks/real_genotypes.py FOLDER --seeds",
            *map(str, options["seeds"]),
            *(f"--set {setting}" for setting in options["set"]),
        ]
    )
    return [*lines, "", machine_line(results["machine"], command)]


def scale(results: dict[str, Any]) -> list[str]:
    sizes = results["arguments"]
    imported, step = results["import"], results["step"]
    network = f"{step['parameters_million']:.1f} million parameters, batch {sizes['batch']}"
    return [
        f"{sizes['variants']:,} SNPs × {sizes['samples']:,} people on a CPU: import of the `.bed` in "
        f"{imported['seconds']:.1f} s and {imported['peak_gib']:.2f} GiB; a training step of "
        f"`cnn_transformer` at the medium preset's sizes ({network}) in {step['peak_gib']:.2f} GiB.",
        "",
        machine_line(results["machine"], "python benchmarks/scale.py"),
    ]


SECTIONS = {"real_genotypes": real_genotypes, "scale": scale}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    parts = []
    for name, section in SECTIONS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            parts.append("\n".join(section(json.loads(path.read_text()))))
    text = README.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    filled = f"{before}{START}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}"
    if arguments.check:
        sys.exit(
            0 if filled == text else "README.md is not what benchmarks/results say: run benchmarks/tables.py"
        )
    README.write_text(filled)


if __name__ == "__main__":
    main()
