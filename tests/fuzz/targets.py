"""What is fuzzed: every kind of file that a user hands to the program, with the command that reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import cyvcf2
import numpy as np
from fuzz.harness import Target
from fuzz.mutate import NASTY, mutate

from snpdeconv.config import load_config, preset_text
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.writers import write_bed, write_pgen, write_vcf

PEOPLE, SNPS = 60, 24


def cohort(folder: Path, write: Callable[..., Path] = write_bed) -> Path:
    """A small cohort of one format, with a trait, covariates and blocks, everything in good order."""
    rng = np.random.default_rng(5)
    codes = rng.binomial(2, rng.uniform(0.2, 0.5, SNPS), (PEOPLE, SNPS)).astype(np.uint8)
    codes[rng.random(codes.shape) < 0.01] = 3
    number = np.arange(SNPS)
    variants = Variants.build(
        variant_id=[f"rs{n}" for n in number],
        chrom=np.where(number < 12, "1", np.where(number < 20, "X", "25")).tolist(),
        position_bp=1000 * (number + 1),
        counted_allele=["ACGT"[n % 4] for n in number],
        other_allele=["CATG"[n % 4] for n in number],
    )
    samples = Samples.build([f"i{n}" for n in range(PEOPLE)])
    genotypes = write(folder / "c", codes, variants=variants, samples=samples)
    trait = codes[:, 3] + rng.standard_normal(PEOPLE)
    age = rng.integers(30, 70, PEOPLE)
    rows = zip(samples.iid, trait, trait > np.median(trait), age, strict=True)
    (folder / "p.tsv").write_text(
        "#FID\tIID\ty\tcase\tsite\n"
        + "".join(f"0\t{i}\t{y:.4f}\t{c + 1}\t{'abc'[a % 3]}\n" for i, y, c, a in rows)
    )
    (folder / "c.csv").write_text(
        "IID,age,site\n" + "".join(f"{i},{a},{'xyz'[a % 3]}\n" for i, a in zip(samples.iid, age, strict=True))
    )
    (folder / "b.tsv").write_text(
        "chrom\tstart\tend\tname\n1\t1\t6500\ta\n1\t6501\t13000\tb\nX\t1\t90000\tc\nXY\t1\t90000\td\n"
    )
    return genotypes


def plain_vcf(folder: Path) -> None:
    """As text."""
    import gzip

    path = cohort(folder, write_vcf)
    (folder / "c.vcf").write_bytes(gzip.decompress(path.read_bytes()))
    path.unlink()


def bcf(folder: Path) -> None:
    """In two bytes a call and more."""
    path = cohort(folder, write_vcf)
    source = cyvcf2.VCF(str(path))
    writer = cyvcf2.Writer(str(folder / "c.bcf"), source, mode="wb")
    for record in source:
        writer.write_record(record)
    writer.close()
    path.unlink()


def cohort_import(name: str, make: Callable[[Path], object], files: tuple[str, ...]) -> Target:
    return Target(f"import-{name}", ("import", files[0], "store"), files, make, out="store")  # type: ignore[arg-type]


def ranking(name: str, files: tuple[str, ...], *more: str) -> Target:
    words = ("rank", "--genotypes", "c.bed", "--phenotypes", "p.tsv", "--out", "r", *more)
    return Target(f"rank-{name}", words, files, cohort, out="r")  # type: ignore[arg-type]


def with_preset(folder: Path) -> None:
    """A preset of one's own."""
    cohort(folder)
    text = preset_text("small_cpu")
    (folder / "mine.yaml").write_text(text)


def with_setting(folder: Path) -> None:
    """Words for `--set`, one a line."""
    cohort(folder)
    (folder / "set.txt").write_text("data.maf_min=0.05")


def damage_setting(path: Path, rng: Random) -> None:
    """Any setting, with any value."""
    key = rng.choice(
        [
            f"{name}.{key}"
            for name, section in SETTINGS.items()
            if isinstance(section, dict)
            for key in section
        ]
    )
    path.write_text(f"{key}={rng.choice(NASTY)}") if rng.random() < 0.6 else path.write_bytes(
        key.encode() + b"=" + rng.choice(YAML)
    )
    if rng.random() < 0.2:
        damage_yaml(path, rng)


SETTINGS = load_config("small_cpu").model_dump()


def damage_yaml(path: Path, rng: Random) -> None:
    """What is nasty in YAML, beside what is nasty in any text."""
    content = path.read_bytes()
    for _ in range(rng.choice((0, 1, 2))):
        content = content.replace(rng.choice(content.split()), rng.choice(YAML), 1)
    path.write_bytes(mutate(content, rng) if rng.random() < 0.6 else content)


YAML = (
    b"!!python/object/apply:os.system ['true']", b"!!timestamp 2024-13-45", b"2024-13-45", b"2024-02-30T25:61:61Z", b"!!binary '*'", b"!!int x",
    b"!!float y", b"!!bool z", b"!!set {a, b}", b"!!omap [a: 1]", b"!!pairs [a]", b"!!null 1", b"!x y", b"? [a, b]\n: c", b"{[a]: b}", b"{{a: b}: c}",
    b"[" * 2000, b"{a: " * 2000, b"- " * 3000, b"9" * 5000, b"1e" + b"9" * 5000, b"0x" + b"f" * 6000, b"1:" * 3000 + b"1", b"&a [*a, *a]", b"*nobody",
    b"&a {<<: *a}", b"<<: [1]", b"<<: 3", b"a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b,*b,*b,*b]", b"%YAML 9.9\n---", b"---\n---",
    b"\x00", b"\xff\xfe", b"\x85", "\u2028".encode(), b"\t- a", b"'", b'"\\x', b"|\n", b">-", b"@", b"`", b"0o777", b"1_0", b".inf", b".nan", b"-.inf", b"1e999", b"~",
)  # fmt: skip

MARGINAL = ("--method", "marginal")
QUICK = ("--set", "interpretation.num_permutations=1", "--set", "interpretation.pairs=false")
TARGETS = [
    cohort_import("bed", cohort, ("c.bed", "c.bim", "c.fam")),
    cohort_import("pgen", lambda folder: cohort(folder, write_pgen), ("c.pgen", "c.pvar", "c.psam")),
    cohort_import("vcf", plain_vcf, ("c.vcf",)),
    cohort_import("vcfgz", lambda folder: cohort(folder, write_vcf), ("c.vcf.gz",)),
    cohort_import("bcf", bcf, ("c.bcf",)),
    ranking("trait", ("p.tsv",), "--trait", "y", *MARGINAL),
    ranking("cases", ("p.tsv",), "--trait", "case", *MARGINAL),
    ranking("classes", ("p.tsv",), "--trait", "site", *MARGINAL),
    ranking("covariates", ("c.csv",), "--trait", "y", "--covariates", "c.csv", *MARGINAL),
    Target(
        "preset",
        (
            "rank",
            "--genotypes",
            "c.bed",
            "--phenotypes",
            "p.tsv",
            "--trait",
            "y",
            "--out",
            "r",
            *MARGINAL,
            "--preset",
            "mine.yaml",
        ),
        ("mine.yaml",),
        with_preset,
        out="r",
        damage=damage_yaml,
    ),
    Target(
        "set",
        (
            "rank",
            "--genotypes",
            "c.bed",
            "--phenotypes",
            "p.tsv",
            "--trait",
            "y",
            "--out",
            "r",
            *MARGINAL,
            "--set",
            "@set.txt",
        ),
        ("set.txt",),
        with_setting,
        out="r",
        damage=damage_setting,
    ),
    ranking(
        "fit",
        ("p.tsv", "c.csv", "c.bed"),
        "--trait",
        "y",
        "--covariates",
        "c.csv",
        "--method",
        "single_effects",
        *QUICK,
    ),
    ranking(
        "fit-cases",
        ("p.tsv", "c.csv", "c.bed"),
        "--trait",
        "case",
        "--covariates",
        "c.csv",
        "--method",
        "single_effects",
        *QUICK,
    ),
    ranking(
        "fit-classes",
        ("p.tsv", "c.csv", "c.bed"),
        "--trait",
        "site",
        "--covariates",
        "c.csv",
        "--method",
        "single_effects",
        *QUICK,
    ),
    ranking("blocks", ("b.tsv",), "--trait", "y", "--blocks", "b.tsv", *MARGINAL),
]
