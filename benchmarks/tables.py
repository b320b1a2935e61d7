"""Writes the README's tables from benchmarks/results/*.json, between the marks that it leaves for them.

usage: python benchmarks/tables.py [--check]     (--check writes nothing and fails where the README differs)
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from speed_tables import gpu, imports, machine_line, throughput, two_ranks

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
START = "<!-- results: benchmarks/tables.py fills in what lies between these marks -->"
END = "<!-- /results -->"


RANKED = {
    "marginal": "marginal",
    "lasso": "lasso",
    "xgboost_shap": "XGBoost + SHAP",
    "susie": "SuSiE",
    "susie_dominance": "SuSiE add + dom",
    "plink2": "plink2",
    "deconvolution": "snpdeconv",
}
TRAITS = {
    "additive": "additive",
    "dominance": "dominance, recessive",
    "epistasis_main": "pairs + main effects",
    "epistasis": "pure pairs",
    "binary": "binary, prevalence .1",
}
CONTROLS = {
    "runs_with_sets_permuted": "runs with any credible set, trait permuted",
    "runs_with_sets_structure": "runs with any credible set, trait of ancestry alone, components given",
    "runs_with_pairs_causal_removed": "runs with any pair, additive trait, causal SNPs not genotyped",
}
NETWORKS = {
    "network_cnn": "cnn",
    "network_cnn_transformer": "cnn_transformer",
    "network_gnn": "gnn",
}
SHARES = {
    "coverage": "95 % credible sets that hold a causal SNP",
    "power": "causal SNPs in a credible set",
    "false_of_q_0.1": "SNPs of q-value up to .1 that are false (r² < .1 with every causal one)",
    "false_pairs": "pairs reported that are false, traits with pairs",
    "pairs_found": "causal pairs found (both SNPs at r² ≥ .8)",
}
"""Rows of the table of errors, as benchmarks/ranking_report.py counts them."""


def ranking(results: dict[str, Any]) -> list[str]:
    cells = results["cells"]
    shown = [name for name in RANKED if any(name in cell["methods"] for cell in cells.values())]
    num_samples, num_variants, num_causal = (int(part) for part in results["size"].split("x"))
    seeds = results["seeds"]
    lines = [
        f"Ranking of {num_causal} causal SNPs among {num_variants:,} in {num_samples:,} simulated people, "
        f"PVE .5: mean area under the precision-recall curve over {len(seeds)} replicates, the same for "
        "every method. SNPs are as dense as on an array (thinned) or as in sequences (contiguous). The last "
        "column is paired over replicates, against the peer of the highest mean, with its 95 % bootstrap "
        "interval.",
        "",
        "| trait | " + " | ".join(RANKED[name] for name in shown) + " | − best peer |",
        "| --- " * (len(shown) + 2) + "|",
    ]
    for name, cell in cells.items():
        if not cell["is_null"]:
            trait, _, panel = name.rpartition(" ")
            row = [_bold_best(cell["methods"], method) for method in shown]
            gained = cell.get("minus_best_peer", {}).get("deconvolution", {})
            interval = (
                f"{gained['mean']:+.3f} ({gained['low']:+.3f} to {gained['high']:+.3f})"
                if gained.get("num")
                else ""
            )
            lines.append(f"| {TRAITS[trait]}, {panel} | " + " | ".join(row) + f" | {interval} |")
    most = max(row["num"] for cell in cells.values() for row in cell["methods"].values())
    fewer = [f"{RANKED[name]} on {num}" for name in shown if (num := _least(cells, name)) < most]
    times = [_mean_cpu(cells, method) for method in shown]
    lines.append("| *CPU seconds* | " + " | ".join(times) + " | |")
    if fewer:
        lines += ["", f"Of {most} replicates: {', '.join(fewer)}."]
    lines += ["", *_networks(cells), *_errors(results["error_control"]), *_large(results["large"])]
    return [*lines, _ranking_note(results)]


BESIDE = {
    "ours": "snpdeconv",
    "ours_without": "snpdeconv, `data.kinship=false`",
    "susie": "SuSiE",
    "susie_inf": "SuSiE-inf",
    "whitened": "SuSiE on whitened data",
}
"""Methods of the benchmark of backgrounds."""


def polygenic(results: dict[str, Any]) -> list[str]:
    """Sets and reports where a background or relatives move the trait, beside sparse effects or alone."""
    lines = [
        "Credible sets before a polygenic background or among relatives (seeds from 3000 on; no choice rests "
        "on those of unrelated people, guards against pairs and close relatives on some of 3000 to 3014): "
        "sets that hold a sparse causal SNP, such SNPs found, and SNPs reported at q ≤ .1 (SuSiE: pip > .9) "
        "that are false (r² < .1 with every sparse one), with 95 % bootstrap intervals over runs.",
        "",
        "| trait | method | runs | runs with sets | hold | found | false | λ<sub>GC</sub> | CPU s |",
        "| --- " * 9 + "|",
    ]
    for cell, methods in results["cells"].items():
        for name in (name for name in BESIDE if name in methods):
            row = methods[name]
            found = f"{row['found']['mean']:.2f}" if "found" in row else ""
            hold, false = (_share_of(row, key) for key in ("hold", "false"))
            lines.append(
                f"| {cell} | {BESIDE[name]} | {row['runs']} | {row['runs_with_sets']} | {hold} | {found} | "
                f"{false} | {row['lambda_gc']['mean']:.2f} | {row['cpu_seconds']['mean']:.1f} |"
            )
    note = "λ<sub>GC</sub> of snpdeconv is that of plain association."
    return [
        *lines,
        "",
        note + " " + machine_line(results["machine"], "benchmarks/polygenic.py --seeds report"),
    ]


def _share_of(row: dict[str, Any], key: str) -> str:
    """A share and its interval in percent; nothing where there is none."""
    figure = row.get(key, {})
    if "low" not in figure:
        return ""
    return f"{100 * figure['share']:.0f} % ({100 * figure['low']:.0f}–{100 * figure['high']:.0f})"


def _networks(cells: dict[str, Any]) -> list[str]:
    """What trained networks predict of people whom nothing has seen, beside lasso on the same studies."""
    lines: list[str] = []
    counts = set()
    for name, cell in cells.items():
        of = {
            method: {seed: one["test"] for seed, one in cell["methods"][method]["replicates"].items()}
            for method in ("lasso", *NETWORKS)
            if "test" in cell["methods"].get(method, {})
        }
        if not of.keys() & NETWORKS.keys():
            continue
        seeds = set.intersection(*(set(values) for values in of.values()))
        counts.add(len(seeds))
        means = [sum(of[m][s] for s in seeds) / len(seeds) if m in of else None for m in ("lasso", *NETWORKS)]
        trait, _, panel = name.rpartition(" ")
        shown = " | ".join("" if mean is None else f"{mean:.3f}" for mean in means)
        lines.append(f"| {TRAITS[trait]}, {panel} | {shown} |")
    if not lines:
        return []
    replicates = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{min(counts)}"
    return [
        "Prediction of 1,000 people whom nothing has seen: R² (AUROC for the binary trait) of trained "
        f"networks, which build on the single effects, and of lasso in the same studies, {replicates} a row.",
        "",
        "| trait | lasso | " + " | ".join(NETWORKS.values()) + " |",
        "| --- " * (2 + len(NETWORKS)) + "|",
        *lines,
        "",
    ]


def _least(cells: dict[str, Any], name: str) -> int:
    counts = [c["methods"][name]["num"] for c in cells.values() if not c["is_null"] and name in c["methods"]]
    return min(counts, default=0)


def _bold_best(methods: dict[str, Any], name: str) -> str:
    means = {other: methods[other]["auprc"] for other in RANKED if "auprc" in methods.get(other, {})}
    if name not in means:
        return ""
    text = f"{means[name]:.3f}".removeprefix("0")
    return f"**{text}**" if means[name] == max(means.values()) else text


def _mean_cpu(cells: dict[str, Any], name: str) -> str:
    times = [
        cell["methods"][name]["cpu_seconds"]
        for cell in cells.values()
        if not cell["is_null"] and name in cell["methods"]
    ]
    return f"{sum(times) / len(times):.1f}" if times else ""


def _errors(control: dict[str, Any]) -> list[str]:
    shown = [name for name in RANKED if name in control]
    if not shown:
        return []
    lines = [
        "| error control, all cells together | " + " | ".join(RANKED[name] for name in shown) + " |",
        "| --- " * (len(shown) + 1) + "|",
    ]
    for key, label in (SHARES | CONTROLS).items():
        row = [_share(control[name].get(key)) for name in shown]
        if any(row):
            lines.append(f"| {label} | " + " | ".join(row) + " |")
    return [*lines, ""]


def _share(counted: Any) -> str:
    """A pooled share with its interval, or runs of runs."""
    if not counted:
        return ""
    if isinstance(counted, list):
        return f"{counted[0]} of {counted[1]}"
    if not counted["of"]:
        return "0 of 0"
    share, low, high = (100 * counted[key] for key in ("share", "low", "high"))
    return f"{share:.1f} % ({low:.1f} to {high:.1f})"


def _large(large: dict[str, Any]) -> list[str]:
    methods = large.get("methods", {})
    if "susie" not in methods or "single_effects" not in methods:
        return []
    parts = [
        f"{label} {methods[name]['seconds']:.1f} s ({methods[name]['cpu_seconds']:.1f} s CPU, "
        f"AUPRC {methods[name]['auprc']:.3f}, {methods[name]['peak_gib']:.2f} GiB)"
        for name, label in (
            ("susie", "SuSiE"),
            ("single_effects", "snpdeconv without pairs"),
            ("deconvolution", "with pairs"),
        )
        if name in methods
    ]
    num_samples, num_variants, num_causal = (int(part) for part in large["size"].split("x"))
    ratio = methods["susie"]["cpu_seconds"] / methods["single_effects"]["cpu_seconds"]
    return [
        f"{num_samples:,} people × {num_variants:,} SNPs, {num_causal} causal, additive, mean of "
        f"{len(large['seeds'])} replicates, each method on one core after the other: {', '.join(parts)}. "
        f"SuSiE takes {ratio:.1f} times as long.",
        "",
    ]


def _ranking_note(results: dict[str, Any]) -> str:
    versions = results["versions"]
    peers = f"pysusie {versions['pysusie']}, xgboost {versions['xgboost-cpu']}"
    return (
        f"{peers}; `make bench-ranking`, one core a method: "
        + machine_line(results["machine"], "").partition(" on ")[2]
    )


def ranking_scale(results: dict[str, Any]) -> list[str]:
    sizes = results["arguments"]
    with_pairs = " with the scan of all pairs" if sizes["pairs"] else ""
    return [
        f"{sizes['variants']:,} SNPs × {sizes['samples']:,} people, tiled: single effects{with_pairs} on "
        f"{sizes['device']} in {results['seconds']:.0f} s ({results['cpu_seconds']:.0f} s CPU) and "
        f"{results['peak_gib']:.2f} GiB, AUPRC {results['auprc']:.3f}.",
        "",
        machine_line(results["machine"], "python benchmarks/ranking.py --scale"),
    ]


def calibration(results: dict[str, Any]) -> list[str]:
    """Counts of runs where chance, or a planted effect, was called something."""
    cells = results["cells"]
    lines = [
        "Small counts, without any effect: runs in which something is called. Half of the SNPs have MAF .02 "
        "to .05; classes are of 50 people each. A Bayes factor above what the likelihood can give: "
        f"{sum(cell.get('above_the_limit', 0) for cell in cells.values())} runs.",
        "",
        "| study | runs | a set, or q ≤ .1 | pip > .5, or a set |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {cell['runs']} | {cell['any_set_or_small_q']} | {cell['pip_over_half_or_set']} |"
        for name, cell in cells.items()
        if not cell["planted"]
    ]
    lines += [
        "",
        "One SNP of odds ratio 3 an allele, MAF .05 to .5: runs in which it is found.",
        "",
        "| study | runs | in a set | q ≤ .1 | saddlepoint, Bonferroni | plink2 Firth, Bonferroni |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {cell['runs']} | {cell['in_set']} | {cell['of_small_q']} | {cell['saddlepoint']} "
        f"| {cell['firth']} |"
        for name, cell in cells.items()
        if cell["planted"]
    ]
    return [*lines, "", machine_line(results["machine"], "python benchmarks/calibration.py")]


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


SECTIONS = {
    "ranking": ranking,
    "ranking_scale": ranking_scale,
    "polygenic": polygenic,
    "calibration": calibration,
    "real_genotypes": real_genotypes,
    "throughput": throughput,
    "two_ranks": two_ranks,
    "imports": imports,
    "gpu": gpu,
}


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
