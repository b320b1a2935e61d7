"""Components equal a singular value decomposition, part populations, and place people they have not seen."""

import numpy as np
import pytest
from bed_reader import open_bed
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from snpdeconv.errors import InputError
from snpdeconv.genetics import pca
from snpdeconv.genetics.packed import PackedGenotypes, allele_frequency
from snpdeconv.genetics.pca import fit_components
from snpdeconv.genetics.phenotypes import load_trait
from snpdeconv.genetics.qc import filter_variants
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import normalise_chroms


def populations(*, num_samples, num_variants, num_populations=2, missing=0.02, seed=0):
    """Codes and population of people whose allele frequencies drifted apart (Balding-Nichols, F_ST .1)."""
    rng = np.random.default_rng(seed)
    ancestral = rng.uniform(0.1, 0.9, num_variants)
    spread = (1 - 0.1) / 0.1
    frequency = rng.beta(ancestral * spread, (1 - ancestral) * spread, (num_populations, num_variants))
    population = np.arange(num_samples) % num_populations
    codes = rng.binomial(2, frequency[population]).astype(np.uint8)
    codes[rng.random(codes.shape) < missing] = 3
    return codes, population


def standardised(codes, frequency):
    dosage = np.where(codes == 3, np.nan, codes.astype(np.float64))
    z = (dosage - 2 * frequency) / np.sqrt(2 * frequency * (1 - frequency))
    return np.nan_to_num(z, nan=0.0)


def fit(codes, *, rows=None, num_components=3, seed=0, chrom=None, **options):
    genotypes = PackedGenotypes.from_codes(codes)
    rows = np.arange(len(codes)) if rows is None else rows
    kept = filter_variants(genotypes.counts(rows=rows), maf_min=0.0, missing_max=0.9)
    return fit_components(
        genotypes,
        rows=rows,
        columns=np.flatnonzero(kept.keep),
        # A chromosome each, that chance among few people does not look like LD.
        chrom=np.array([f"c{v}" for v in range(codes.shape[1])], dtype=object) if chrom is None else chrom,
        frequency=kept.frequency,
        num_components=num_components,
        seed=seed,
        **options,
    )


@pytest.mark.parametrize("exact_max_samples", [1000, 10], ids=["exact", "randomized"])
def test_they_are_the_singular_vectors(exact_max_samples, monkeypatch):
    monkeypatch.setattr(pca, "_WORK_BYTES", 4 * 80 * 100)  # several chunks
    codes, _ = populations(num_samples=80, num_variants=331, num_populations=4)
    components = fit(codes, exact_max_samples=exact_max_samples)
    frequency = allele_frequency(PackedGenotypes.from_codes(codes).counts())
    z = standardised(codes[:, components.columns], frequency[components.columns])
    left, values, right = np.linalg.svd(z, full_matrices=False)
    np.testing.assert_allclose(np.abs((components.loadings * right[:3].T).sum(axis=0)), 1, atol=1e-4)
    np.testing.assert_allclose(components.score_sd, values[:3] / np.sqrt(80), rtol=1e-4)
    np.testing.assert_allclose(components.variance_share, values[:3] ** 2 / (values**2).sum(), rtol=1e-4)
    scores = components.project(PackedGenotypes.from_codes(codes))
    sign = np.sign((scores * left[:, :3]).sum(axis=0))
    np.testing.assert_allclose(scores, left[:, :3] * sign * np.sqrt(80), atol=0.02)


def test_signs_are_fixed():
    codes, _ = populations(num_samples=60, num_variants=200)
    loadings = fit(codes).loadings
    assert (loadings[np.abs(loadings).argmax(axis=0), np.arange(3)] > 0).all()
    other = fit(codes[::-1]).loadings
    np.testing.assert_allclose(loadings[:, 0], other[:, 0], atol=1e-4)


def test_a_seed_gives_the_same_components():
    codes, _ = populations(num_samples=60, num_variants=200)
    one, two, other = (fit(codes, seed=seed, exact_max_samples=10).loadings for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_people_not_fitted_on_fall_among_their_population():
    codes, population = populations(num_samples=240, num_variants=1500, num_populations=3)
    train, rest = np.arange(150), np.arange(150, 240)
    components = fit(codes, rows=train, num_components=2)
    scores = components.project(PackedGenotypes.from_codes(codes))
    np.testing.assert_allclose(scores[train].std(axis=0), 1, rtol=1e-3)
    centre = np.stack([scores[train][population[train] == which].mean(axis=0) for which in range(3)])
    nearest = ((scores[rest, None] - centre) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == population[rest]).all()
    # They shrink towards 0, and little, because the two components stand clear of the noise.
    ratio = np.abs(scores[rest]).mean() / np.abs(scores[train]).mean()
    assert 0.7 < ratio < 1.05


def test_nothing_of_other_people_leaks_in():
    codes, _ = populations(num_samples=90, num_variants=300)
    changed = codes.copy()
    changed[60:] = 2 - np.minimum(changed[60:], 2)
    one, two = (fit(c, rows=np.arange(60)) for c in (codes, changed))
    np.testing.assert_array_equal(one.loadings, two.loadings)
    rows = np.array([70, 3])
    alone = one.project(PackedGenotypes.from_codes(codes), rows=rows)
    np.testing.assert_allclose(alone, one.project(PackedGenotypes.from_codes(codes))[rows], atol=1e-6)


def test_a_person_without_genotypes_stands_in_the_middle():
    codes, _ = populations(num_samples=60, num_variants=200)
    nobody = PackedGenotypes.from_codes(np.full((1, 200), 3, dtype=np.uint8))
    np.testing.assert_array_equal(fit(codes).project(nobody), np.zeros((1, 3)))


def test_variants_are_thinned_evenly():
    codes, population = populations(num_samples=60, num_variants=901, missing=0.0)
    components = fit(codes, max_variants=300)
    assert len(components.columns) == 300
    gaps = np.diff(components.columns)
    assert gaps.min() >= 1
    assert gaps.max() <= 5
    score = components.project(PackedGenotypes.from_codes(codes))[:, 0]
    assert abs(np.corrcoef(score, population)[0, 1]) > 0.95


def test_sex_is_no_component():
    codes, _ = populations(num_samples=80, num_variants=300, num_populations=1)
    male = np.arange(80) % 3 == 0
    codes[:, 200:] = np.where(male[:, None], 2 * (codes[:, 200:] > 1), codes[:, 200:])
    codes[:, 250:280] = np.where(male[:, None], 2, 0)
    chrom = np.array(
        ["1"] * 100 + ["22"] * 100 + ["X"] * 50 + ["Y"] * 30 + ["XY"] * 10 + ["MT"] * 10, dtype=object
    )
    components = fit(codes, chrom=chrom)
    assert components.columns.max() < 200
    scores = components.project(PackedGenotypes.from_codes(codes))
    assert max(abs(np.corrcoef(score, male)[0, 1]) for score in scores.T) < 0.5


def test_autosomes_of_other_species_take_part():
    codes, _ = populations(num_samples=80, num_variants=120, num_populations=3)
    chrom = np.array(["1"] * 40 + ["29"] * 40 + ["X"] * 40, dtype=object)  # cattle
    assert set(fit(codes, chrom=chrom).columns // 40) == {0, 1}
    chrom[40:80] = "23"  # of people: X by its number
    assert set(fit(codes, chrom=chrom).columns // 40) == {0}


def test_without_autosomes_all_take_part():
    codes, _ = populations(num_samples=80, num_variants=60, num_populations=3)
    assert set(fit(codes, chrom=np.array(["X"] * 30 + ["contig7"] * 30, dtype=object)).columns // 30) == {
        0,
        1,
    }


def test_variants_in_ld_count_once():
    codes, population = populations(num_samples=200, num_variants=120, missing=0.0)
    haplotype = np.random.default_rng(5).binomial(2, 0.5, (200, 1)).astype(np.uint8)
    codes = np.hstack([codes[:, :60], np.tile(haplotype, 50), codes[:, 60:]])
    chrom = np.array(["1"] * 60 + ["2"] * 50 + ["3"] * 60, dtype=object)
    components = fit(codes, num_components=1, chrom=chrom)
    assert [column for column in components.columns if 60 <= column < 110] == [60]
    score = components.project(PackedGenotypes.from_codes(codes))[:, 0]
    assert abs(np.corrcoef(score, population)[0, 1]) > 0.9
    dosage = codes[:, components.columns].astype(float)
    r2 = np.corrcoef(dosage, rowvar=False) ** 2 * (
        chrom[components.columns, None] == chrom[components.columns]
    )
    assert (r2 - np.eye(len(r2))).max() <= 0.2 + 1e-6


def test_too_many_components():
    codes, _ = populations(num_samples=10, num_variants=200)
    with pytest.raises(
        InputError, match=r"12 principal components from 10 training samples and \d+ .* at most 9"
    ):
        fit(codes, num_components=12)
    twins = np.tile(codes[:3], (5, 1))
    with pytest.raises(InputError, match="have 2 independent directions; ask for at most 2"):
        fit(twins, num_components=6)


def test_components_that_have_not_settled_are_told(monkeypatch, caplog):
    monkeypatch.setattr(pca, "_MAX_ITERATIONS", 1)
    codes, _ = populations(num_samples=60, num_variants=200)
    fit(codes, exact_max_samples=10)
    assert "had not settled in 1 passes" in caplog.text


def test_hapmap3_populations_are_told_apart(real_data):
    """Components fitted within each fold; others report accuracy .895 and macro-F1 .869 for 20 of them."""
    folder = real_data / "hapmap3"
    bed = open_bed(folder / "hapmap3.bed", num_threads=1)
    chrom = normalise_chroms(bed.chromosome)
    codes = bed.read(dtype="int8")
    genotypes = PackedGenotypes.from_codes(np.where(codes < 0, 3, codes).astype(np.uint8))
    samples = Samples.build(bed.iid, fid=bed.fid)
    trait = load_trait(folder / "populations.tsv", column="population", samples=samples)
    assert (trait.kind, len(trait.classes), len(trait.rows)) == ("multiclass", 11, 956)
    assert trait.report["missing_trait"] == 1
    correct = 0
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(trait.rows, trait.values):
        rows = trait.rows[train]
        kept = filter_variants(genotypes.counts(rows=rows), maf_min=0.01, missing_max=0.1)
        components = fit_components(
            genotypes,
            rows=rows,
            columns=np.flatnonzero(kept.keep),
            chrom=chrom,
            frequency=kept.frequency,
            num_components=20,
            seed=0,
        )
        scores = components.project(genotypes, rows=trait.rows)
        model = LogisticRegression(max_iter=2000).fit(scores[train], trait.values[train])
        correct += (model.predict(scores[test]) == trait.values[test]).sum()
    assert correct / 956 > 0.88
