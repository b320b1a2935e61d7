"""What would tell a model the answers is refused, and what merely helps is not."""

import logging

import numpy as np
import pandas as pd
import pytest

from snpdeconv.errors import InputError
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.genetics.phenotypes import load_trait, read_covariates
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.splits import check_covariates, join_copies, same_genotypes

N = 300


@pytest.fixture
def check(tmp_path):
    """Writes a trait and covariates and checks them."""

    def checked(trait, *, allow=False, **columns):
        iid = [f"S{i}" for i in range(len(trait))]
        samples = Samples.build(iid)
        pd.DataFrame({"IID": iid, "trait": trait}).to_csv(tmp_path / "t.tsv", sep="\t", index=False)
        pd.DataFrame({"IID": iid, **columns}).to_csv(tmp_path / "c.tsv", sep="\t", index=False)
        loaded = load_trait(tmp_path / "t.tsv", column="trait", samples=samples)
        table = read_covariates(tmp_path / "c.tsv", samples=samples).encoded(loaded.rows)
        check_covariates(table, loaded, where=tmp_path / "c.tsv", allow=allow)

    return checked


RNG = np.random.default_rng(8)
HEIGHT = RNG.normal(170, 10, size=N)
CASE = (RNG.random(N) < 0.2).astype(int)
PEOPLE = RNG.choice(["CEU", "YRI", "CHB"], size=N)
NOISE = RNG.normal(size=N)


@pytest.mark.parametrize(
    "trait, covariate",
    [
        (HEIGHT, HEIGHT),
        (HEIGHT, HEIGHT / 2.54 + 3),
        (HEIGHT, np.exp(-HEIGHT / 50)),
        (np.round(HEIGHT), np.round(HEIGHT) / 2.54),
        (CASE, CASE + 1),
        (CASE, np.where(CASE == 1, "yes", "no")),
        (PEOPLE, np.char.add("group ", PEOPLE)),
        (PEOPLE, np.unique(PEOPLE, return_inverse=True)[1] * 7),
    ],
)
@pytest.mark.parametrize("allow", [False, True])
def test_the_trait_itself_is_refused_whatever_it_is_called(check, trait, covariate, allow):
    with pytest.raises(InputError, match=r"c\.tsv: covariate 'other' is the trait 'trait' itself; take the"):
        check(trait, allow=allow, age=NOISE, other=covariate)


NEARLY = [
    (HEIGHT, HEIGHT + NOISE, r"'other' predicts the trait 'trait' nearly perfectly \(R² 0\.99\d\)"),
    (HEIGHT, np.exp(HEIGHT / 10 + NOISE / 20), r"'other' predicts .* \(R² 0\.9\d\d\)"),
    (HEIGHT, (HEIGHT - 170) ** 3 + NOISE, r"'other' predicts .* \(R² 0\.9\d\d\)"),
    ((NOISE - 1) ** 2, NOISE, r"'other' predicts .* \(R² 0\.9\d\d\)"),
    ((HEIGHT > 180).astype(int), HEIGHT, r"'other' predicts .* \(AUROC 1\.000\)"),
    (np.where(np.abs(NOISE) > 1, "out", "in"), NOISE, r"'other' predicts .* \(accuracy 0\.9\d\d\)"),
    (PEOPLE, np.where(np.arange(N) == 5, "YRI", PEOPLE), r"'other' predicts .* \(accuracy 0\.99\d\)"),
]


@pytest.mark.parametrize("trait, covariate, message", NEARLY)
def test_what_is_nearly_the_trait_is_refused_and_may_be_allowed(check, caplog, trait, covariate, message):
    with pytest.raises(InputError, match=message + r"; .*--set data\.allow_leakage=true"):
        check(trait, age=NOISE[::-1], other=covariate)
    with caplog.at_level(logging.WARNING):
        check(trait, allow=True, age=NOISE[::-1], other=covariate)
    assert "data.allow_leakage lets it stay" in caplog.text


def test_what_is_most_of_the_trait_is_worth_a_warning(check, caplog):
    check(HEIGHT, other=HEIGHT + 2.2 * NOISE)
    assert "covariate 'other' predicts most of the trait 'trait' (R² 0.9" in caplog.text


def test_covariates_that_together_make_up_the_trait(check):
    part = RNG.normal(size=N) * 10
    with pytest.raises(InputError, match=r"the covariates together predict .* \(R² 0\.99"):
        check(HEIGHT, leg=part, trunk=HEIGHT - part + NOISE / 10)
    with pytest.raises(InputError, match=r"the covariates together predict .* \(AUROC (1|0\.99)"):
        check((HEIGHT > 175).astype(int), leg=part, trunk=HEIGHT - part)


@pytest.mark.parametrize("seed", range(10))
def test_what_helps_honestly_stays(check, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(40, 400))
    height = rng.normal(size=n)
    helps = height + rng.normal(size=n) / 2  # R² .8
    plain = {f"x{i}": rng.normal(size=n) for i in range(10)} | {
        "sex": rng.choice(["m", "f"], size=n),
        "site": rng.choice([f"site{i}" for i in range(12)], size=n),
        "age": rng.integers(20, 70, size=n),
    }
    check(height, helps=helps, **plain)
    check((helps > 1.2).astype(int), helps=height, **plain)
    check(rng.choice(["a", "b", "c"], size=n), **plain)
    cases = np.zeros(n, dtype=int)
    cases[:5] = 1
    check(cases, **plain)


def people(num_people, num_snps, *, seed=0):
    rng = np.random.default_rng(seed)
    frequency = rng.uniform(0.1, 0.5, size=num_snps)
    return rng.binomial(2, frequency, size=(num_people, num_snps)).astype(np.uint8)


def again(codes, *, seed=1):
    """The same people called a second time: one call in a hundred wrong, two missing."""
    rng = np.random.default_rng(seed)
    second = np.where(rng.random(codes.shape) < 0.01, rng.integers(0, 3, size=codes.shape), codes)
    return np.where(rng.random(codes.shape) < 0.02, MISSING, second).astype(np.uint8)


@pytest.mark.parametrize("num_snps", [150, 2_000])
def test_one_person_twice_is_found_and_brothers_are_not(num_snps):
    codes = people(600, num_snps)
    rng = np.random.default_rng(2)
    brothers = np.where(rng.random((100, num_snps)) < 0.5, codes[:100], people(100, num_snps, seed=3))
    everyone = np.vstack([codes, brothers, again(codes[20:50]), codes[:1], codes[:1]])
    order = rng.permutation(len(everyone))
    genotypes = PackedGenotypes.from_codes(everyone)
    pairs = same_genotypes(genotypes, rows=order)
    found = {tuple(sorted(pair)) for pair in order[pairs].tolist()}
    assert found == {(20 + i, 700 + i) for i in range(30)} | {(0, 730), (0, 731), (730, 731)}


def test_a_locus_of_few_haplotypes_names_nobody_twice():
    rng = np.random.default_rng(4)
    haplotypes = rng.integers(0, 2, size=(6, 200)).astype(np.uint8)
    codes = haplotypes[rng.integers(6, size=500)] + haplotypes[rng.integers(6, size=500)]
    assert len(np.unique(codes, axis=0)) < 30
    assert not len(same_genotypes(PackedGenotypes.from_codes(codes), rows=np.arange(500)))


def test_copies_join_their_families(caplog):
    codes = people(50, 300)
    genotypes = PackedGenotypes.from_codes(np.vstack([codes, again(codes[:3])]))
    samples = Samples.build([f"S{i}" for i in range(53)])
    rows = np.arange(53)
    assert join_copies(genotypes, rows=rows[:50], samples=samples, groups=None, where="c.bed") == (None, 0)
    families = np.arange(53)
    families[1] = families[10]  # one person twice makes two families one
    with caplog.at_level(logging.WARNING):
        groups, num_copies = join_copies(
            genotypes, rows=rows, samples=samples, groups=families, where="c.bed"
        )
    assert num_copies == 3
    assert groups[51] == groups[1] == groups[10]
    assert groups[50] == groups[0]
    assert len(np.unique(groups)) == 49
    assert "c.bed: 3 people have the genotypes of another one (first: 'S0' and 'S50')" in caplog.text
