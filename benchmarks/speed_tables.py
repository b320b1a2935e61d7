"""The README's tables of speed and memory; benchmarks/tables.py puts them there."""

from typing import Any


def machine_line(machine: dict[str, Any], command: str) -> str:
    """Where and with what a table was made."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    return (
        f"`{command}` on {machine['cores']} cores of {machine['cpu']}{gpu}, torch {machine['torch']}, "
        f"{machine['date']}."
    )


def throughput(results: dict[str, Any]) -> list[str]:
    """Training on a CPU, beside its floors and the plain peer."""
    rows = results["rows"]
    lines = [
        "Training on a CPU at the sizes of the medium preset: samples a second, CPU time of a sample, most "
        "memory (genotypes, parameters, moments, activations), and the share of its floor that a step "
        "reaches: its counted arithmetic at the rate of a large matrix product, or its counted bytes at "
        "that of a copy, measured beside it.",
        "",
        "| SNPs | batch | architecture | format | samples/s | CPU ms a sample | GiB | of the floor |",
        "| --- " * 8 + "|",
    ]
    lines += [
        f"| {row['num_snps']:,} | {row['batch']} | {row['architecture']} | {row['precision']} "
        f"| {_three(row['samples_per_second'])} | {_three(row['cpu_ms_a_sample'])} | {row['peak_gib']:.2f} "
        f"| {100 * row['floor_share']:.0f} % |"
        for row in rows
    ]
    peers = dict(results["plain"])
    ours = peers.pop("ours")
    lines += [
        "",
        "The same transformer written plainly (a DataLoader, one-hot encoding, torch's encoder layers: "
        "`benchmarks/plain.py`), 10,000 SNPs, batch 32, in turns with ours, and how many times as fast and "
        "as small ours is:",
        "",
        "| tokens of | samples/s | CPU ms a sample | GiB | samples/s, ours | CPU, ours | memory, ours |",
        "| --- " * 7 + "|",
    ]
    lines += [
        f"| {patch} SNPs | {_three(peer['samples_per_second'])} | {_three(peer['cpu_ms_a_sample'])} "
        f"| {peer['peak_gib']:.2f} | × {ours['samples_per_second'] / peer['samples_per_second']:.1f} "
        f"| ÷ {peer['cpu_ms_a_sample'] / ours['cpu_ms_a_sample']:.1f} "
        f"| ÷ {peer['peak_gib'] / ours['peak_gib']:.1f} |"
        for patch, peer in peers.items()
    ]
    errors = [abs(row["predicted_gib"] / row["measured_gib"] - 1) for row in results["probe"]]
    return [
        *lines,
        "",
        f"The batch search foretells what a batch takes within {100 * max(errors):.1f} % at {len(errors)} "
        f"settings, in at most {max(row['seconds'] for row in results['probe']):.1f} s each.",
        "",
        machine_line(results["machine"], "python benchmarks/throughput.py"),
    ]


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def two_ranks(results: dict[str, Any]) -> list[str]:
    """The check of docs/scaling.md."""
    return [
        f"Two ranks on one machine take {1e3 * results['two_ranks_step_s']:.0f} ms a step, where the plan of "
        f"[docs/scaling.md](docs/scaling.md) foretells {1e3 * results['foretold_step_s']:.0f}: one rank's "
        f"{1e3 * results['one_rank_step_s']:.0f} and {1e3 * results['exchange_s']:.0f} for the exchange of "
        f"{results['exchanged_mb']:.1f} MB of gradients.",
        "",
        machine_line(results["machine"], "python benchmarks/two_ranks.py"),
    ]


def gpu(results: dict[str, Any]) -> list[str]:
    """Training on a GPU, and beside what the older system claimed."""
    lines = [
        "Training on one GPU:",
        "",
        "| SNPs | batch | architecture | format | samples/s | GiB | of the floor |",
        "| --- " * 7 + "|",
    ]
    lines += [
        f"| {row['num_snps']:,} | {row['batch']} | {row['architecture']} | {row['precision']} "
        f"| {_three(row['samples_per_second'])} | {row['peak_gib']:.2f} | {100 * row['floor_share']:.0f} % |"
        for part in ("training", "others", "slower formats")
        for row in results.get(part, [])
    ]
    older = [
        f"| {row['num_snps']:,} | {row['batch']} | {row['older_samples_per_second']} | "
        f"{_three(row['samples_per_second'])} | {row['older_gb']} | {row['peak_gib']:.2f} |"
        for row in results.get("older", [])
    ]
    if older:
        lines += [
            "",
            "At the batches of the system that this one replaces, which claimed on an A100:",
            "",
            "| SNPs | batch | samples/s, older | ours | GB, older | GiB, ours |",
            "| --- " * 6 + "|",
            *older,
        ]
    gpu_name = results["machine"]["gpu"]
    return [*lines, "", f"`make bench-gpu` on {gpu_name}, torch {results['machine']['torch']}."]


def imports(results: dict[str, Any]) -> list[str]:
    """Imports, and how commands start."""
    bed, vcf, start, memory = (results[key] for key in ("bed", "vcf", "start", "memory"))
    floor = bed["floor_mb_per_second"]
    peaks = ", ".join(f"{name} {value:.0f} MiB" for name, value in memory["peak_mib"].items())
    return [
        f"Import of a `.bed` of {bed['samples']:,} people × {bed['variants']:,} SNPs, cached in memory: "
        f"{bed['mb_per_second']:.0f} MB/s, digests included (beside it: sha256 {floor['sha256']:,.0f}, "
        f"a copy in memory {floor['copy in memory']:,.0f}). Of a `.vcf.gz` of {vcf['samples']:,} × "
        f"{vcf['variants']:,}: {vcf['times_genotype_array']:.2f} times cyvcf2's bare loop over "
        f"`genotype.array()`, {vcf['times_gt_types']:.2f} times that over `gt_types`. Most memory, people × "
        f"SNPs: {peaks}, of which Python, numpy and pandas are {memory['python_numpy_pandas_mib']:.0f}.",
        "",
        f"Commands: `--help` in {start['--help']:.2f} s, `submit` in {start['submit']:.1f} s, `train` at its "
        f"first step after {start['train: first step']:.1f} s, of which "
        f"{start['train: all other imports']:.1f} s are imports and "
        f"{start['train: linear part'] - start['train: data']:.1f} s the fitted part.",
        "",
        machine_line(results["machine"], "python benchmarks/imports.py"),
    ]
