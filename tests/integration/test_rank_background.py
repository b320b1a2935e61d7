"""A polygenic trait ranked as a user does: the background is found, told and left out of the findings."""

import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.simulation.simulate import simulate

NUM = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A trait of one strong SNP before an infinitesimal background, and one of two SNPs alone."""
    folder = tmp_path_factory.mktemp("background") / "files"
    simulate(folder, num_samples=NUM, num_variants=400, num_causal=2, pve=0.3, seed=5, length_mb=25)
    codes = load_cohort(folder / "cohort.bed", cache_dir=folder / "cache").genotypes.codes().astype(float)
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    rng = np.random.default_rng(2)
    background, noise = z @ rng.normal(size=z.shape[1]), rng.normal(size=NUM)
    trait = 0.5 * z[:, 200] + 0.7 * background / background.std() + 0.5 * noise
    table = pd.read_csv(folder / "phenotypes.tsv", sep="\t", dtype=str).assign(polygenic=trait)
    table.to_csv(folder / "phenotypes.tsv", sep="\t", index=False)
    return folder


def ranked(run, folder, out, trait, *more):
    """The metrics of a ranking and what was printed of it."""
    done = run(
        "rank", "--genotypes", folder / "cohort.bed", "--phenotypes", folder / "phenotypes.tsv",
        "--trait", trait, "--method", "single_effects", "--out", out,
        "--set", "interpretation.num_permutations=2", *more,
    )  # fmt: skip
    assert done.code == 0, done.err
    return json.loads((out / "metrics.json").read_text())["single_effects"], done


def test_a_background_is_found_and_left_out_of_the_sets(run, folder, tmp_path):
    without, _ = ranked(run, folder, tmp_path / "without", "polygenic", "--set", "data.kinship=false")
    found, done = ranked(run, folder, tmp_path / "auto", "polygenic")
    assert "background_heritability" not in without
    assert 0.4 < found["background_heritability"] < 0.9
    assert 0 < found["background_heritability_error"] < 0.2
    assert "polygenic background: the kinship of the genotypes explains" in done.err
    assert f"polygenic background: {found['background_heritability']:.2f} of the rest" in done.out
    assert found["credible_sets"] < without["credible_sets"]
    assert without["pairs_searched"] == 1
    assert found["pairs_searched"] == 0
    assert "--set interpretation.pairs=true looks for them" in done.err
    sets = pd.read_csv(tmp_path / "auto" / "credible_sets.tsv", sep="\t")
    assert sets["existence"].between(1 / 3, 1).all()
    assert sets.loc[0, "existence"] > 0.99


def test_a_sparse_trait_has_none_unless_asked_for(run, folder, tmp_path):
    found, done = ranked(run, folder, tmp_path / "auto", "trait")
    assert "background_heritability" not in found
    assert "polygenic background" not in done.err + done.out
    same, _ = ranked(run, folder, tmp_path / "false", "trait", "--set", "data.kinship=false")
    assert same == found
    assert (tmp_path / "auto" / "ranking.tsv").read_bytes() == (
        tmp_path / "false" / "ranking.tsv"
    ).read_bytes()
    asked, _ = ranked(run, folder, tmp_path / "true", "trait", "--set", "data.kinship=true")
    assert asked["background_heritability"] < 0.3


def test_another_word_is_one_line(run, folder, tmp_path):
    done = run(
        "rank", "--genotypes", folder / "cohort.bed", "--phenotypes", folder / "phenotypes.tsv",
        "--trait", "trait", "--out", tmp_path / "out", "--set", "data.kinship=maybe",
    )  # fmt: skip
    assert done.code == 2
    assert "data.kinship: should be auto, true or false" in done.err
    assert "Traceback" not in done.err


def test_association_is_in_the_unit_of_the_trait(run, folder, tmp_path):
    table = pd.read_csv(folder / "phenotypes.tsv", sep="\t").assign(pressure=lambda t: 120 + 15 * t["trait"])
    table.to_csv(folder / "pressure.tsv", sep="\t", index=False)
    done = run(
        "rank", "--genotypes", folder / "cohort.bed", "--phenotypes", folder / "pressure.tsv",
        "--trait", "pressure", "--method", "marginal", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = pd.read_csv(tmp_path / "out" / "association.tsv", sep="\t")
    assert list(found) == [
        "variant_id", "chrom", "pos", "effect_allele", "other_allele", "effect_allele_frequency", "n", "beta",
        "standard_error", "neg_log10_p",
    ]  # fmt: skip
    assert (found["n"] == NUM).all()
    cohort = load_cohort(folder / "cohort.bed", cache_dir=folder / "cache")
    codes = cohort.genotypes.codes().astype(float)
    place = {name: number for number, name in enumerate(cohort.variants.variant_id)}
    for row in found.iloc[::80].itertuples():
        dosage = codes[:, place[row.variant_id]]
        slope = stats.linregress(dosage, table["pressure"])
        assert row.beta == pytest.approx(slope.slope, rel=1e-4)
        assert row.standard_error == pytest.approx(slope.stderr, rel=1e-3)
        assert row.neg_log10_p == pytest.approx(-np.log10(slope.pvalue), rel=1e-3)
        assert row.effect_allele_frequency == pytest.approx(dosage.mean() / 2, rel=1e-4)
        assert row.effect_allele == cohort.variants.counted_allele[place[row.variant_id]]


@pytest.mark.skipif(
    shutil.which("plink2") is None, reason="plink2 is not installed, and is what is compared with"
)
def test_association_is_that_of_plink2(run, tmp_path):
    """Beside covariates, in unrelated people of whom a few genotypes are missing."""
    files = tmp_path / "files"
    simulate(files, num_samples=500, num_variants=300, num_causal=3, seed=8, maf_min=0.1, missing_rate=0.002)
    people = pd.read_csv(files / "cohort.fam", sep=r"\s+", header=None, dtype=str)[1]
    rng = np.random.default_rng(3)
    covariates = pd.DataFrame({"#IID": people, "age": rng.normal(50, 9, 500), "dose": rng.normal(size=500)})
    covariates.to_csv(files / "covariates.tsv", sep="\t", index=False)
    done = run(
        "rank", "--genotypes", files / "cohort.bed", "--phenotypes", files / "phenotypes.tsv",
        "--trait", "trait", "--covariates", files / "covariates.tsv", "--method", "marginal",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = pd.read_csv(tmp_path / "out" / "association.tsv", sep="\t", index_col="variant_id")
    plink = [
        "plink2", "--bfile", files / "cohort", "--pheno", files / "phenotypes.tsv", "--pheno-name", "trait",
        "--covar", files / "covariates.tsv", "--covar-variance-standardize", "--threads", "1",
        "--glm", "hide-covar", "log10", "cols=chrom,pos,a1freq,nobs,beta,se,p", "--out", tmp_path / "plink",
    ]  # fmt: skip
    subprocess.run([*map(str, plink)], check=True, capture_output=True)
    theirs = pd.read_csv(tmp_path / "plink.trait.glm.linear", sep="\t", index_col="ID").loc[found.index]
    swapped = (found["effect_allele"] != theirs["A1"]).to_numpy()
    assert (found["n"] == theirs["OBS_CT"]).all()
    frequency = np.where(swapped, 1 - theirs["A1_FREQ"], theirs["A1_FREQ"])
    np.testing.assert_allclose(found["effect_allele_frequency"], frequency, atol=1e-5)
    # plink2 leaves out people without a call, who are at the mean here.
    called = (found["n"] == 500).to_numpy()
    assert 50 < called.sum() < 250
    sign = np.where(swapped, -1, 1)[called]
    ours, theirs = found[called], theirs[called]
    np.testing.assert_allclose(ours["beta"], sign * theirs["BETA"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours["standard_error"], theirs["SE"], rtol=1e-4)
    np.testing.assert_allclose(ours["neg_log10_p"], theirs["LOG10_P"], rtol=1e-3, atol=1e-5)
