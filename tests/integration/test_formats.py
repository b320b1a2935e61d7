"""The same people as .bed, .pgen and .vcf.gz, shuffled, and with alleles swapped, are predicted alike."""

import numpy as np
import pandas as pd
import pytest
from command_line import train_words

from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.writers import write_bed, write_pgen, write_vcf


def swapped(codes, variants, which):
    """The same genotypes with the other allele counted at some variants."""
    codes = codes.copy()
    codes[:, which] = np.array([2, 1, 0, 3], dtype=np.uint8)[codes[:, which]]
    counted, other = variants.counted_allele.copy(), variants.other_allele.copy()
    counted[which], other[which] = variants.other_allele[which], variants.counted_allele[which]
    return codes, Variants(
        variant_id=variants.variant_id,
        chrom=variants.chrom,
        position_bp=variants.position_bp,
        counted_allele=counted,
        other_allele=other,
    )


@pytest.mark.parametrize("components", [0, 3])
def test_identical_predictions(run, cohort, tmp_path, components):
    more = ("--name", "m", "--set", f"data.num_components={components}")
    trained = run(*train_words(cohort, tmp_path / "run", *more))
    assert trained.code == 0, trained.err

    held_out = load_cohort(cohort / "holdout" / "cohort.bed", cache_dir=tmp_path / "cache")
    codes = held_out.genotypes.codes().copy()
    rng = np.random.default_rng(4)
    codes[rng.random(codes.shape) < 0.02] = 3
    shuffled = rng.permutation(len(codes))
    some = rng.random(len(held_out.variants)) < 0.5
    other_codes, other_variants = swapped(codes[shuffled], held_out.variants, some)
    files = {
        "bed": write_bed(tmp_path / "a", codes, variants=held_out.variants, samples=held_out.samples),
        "pgen": write_pgen(tmp_path / "b", codes, variants=held_out.variants, samples=held_out.samples),
        "vcf": write_vcf(
            tmp_path / "c", other_codes, variants=other_variants, samples=held_out.samples.take(shuffled)
        ),
    }
    predicted = {}
    for name, path in files.items():
        out = tmp_path / f"{name}.tsv"
        done = run("predict", "--model", "m@champion", "--genotypes", path, "--out", out)
        assert done.code == 0, done.err
        predicted[name] = pd.read_csv(out, sep="\t", dtype=str).set_index("IID")["prediction"]
    assert predicted["bed"].nunique() > 50
    assert predicted["pgen"].equals(predicted["bed"])
    assert predicted["vcf"].index.tolist() != predicted["bed"].index.tolist()
    assert predicted["vcf"][predicted["bed"].index].equals(predicted["bed"])


def test_training_on_any_format_tests_and_ranks_alike(run, cohort, tmp_path):
    source = load_cohort(cohort / "cohort.bed", cache_dir=tmp_path / "cache")
    codes = source.genotypes.codes()
    order = np.random.default_rng(1).permutation(len(codes))
    paths = [
        cohort / "cohort.bed",
        write_pgen(
            tmp_path / "c", codes[order], variants=source.variants, samples=source.samples.take(order)
        ),
    ]
    rankings = []
    for place, path in enumerate(paths):
        out = tmp_path / f"run{place}"
        done = run(*train_words(cohort, out, "--genotypes", path))
        assert done.code == 0, done.err
        rankings.append(pd.read_csv(out / "ranking.tsv", sep="\t").set_index("variant_id"))
    pd.testing.assert_series_equal(
        rankings[0]["marginal"].sort_index(), rankings[1]["marginal"].sort_index(), rtol=1e-4
    )
