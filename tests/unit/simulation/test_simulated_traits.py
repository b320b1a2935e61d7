from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError
from snpdeconv.simulation.traits import SimulatedTrait, simulate_trait

QUANTITATIVE = ("additive", "dominance", "epistasis", "epistasis_main")
NUM_FIT = 1500


def unlinked_codes(num_samples: int = 2000, num_variants: int = 60, *, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    frequency = rng.uniform(0.08, 0.92, num_variants)
    return rng.binomial(2, frequency, size=(num_samples, num_variants)).astype(np.uint8)


def make(codes: NDArray[np.uint8], trait: str, *, seed: int = 5, **changes: object) -> SimulatedTrait:
    arguments: dict[str, object] = {"num_causal": 6, "pve": 0.4, "prevalence": 0.1} | changes
    return simulate_trait(codes, trait=trait, rng=np.random.default_rng(seed), **arguments)  # type: ignore[arg-type]


def r_squared(columns: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    design = np.column_stack([np.ones(len(values)), columns])
    fit, *_ = np.linalg.lstsq(design, values, rcond=None)
    return float(1 - ((values - design @ fit) ** 2).sum() / ((values - values.mean()) ** 2).sum())


def standardise(columns: NDArray[np.generic]) -> NDArray[np.float64]:
    columns = columns.astype(np.float64)
    return (columns - columns.mean(axis=0)) / columns.std(axis=0)


def true_signal(codes: NDArray[np.uint8], truth: SimulatedTrait) -> NDArray[np.float64]:
    """The signal rebuilt from what the truth reports, by the definitions in the documentation."""
    dosage = standardise(codes[:, truth.causal])
    signal = np.zeros(len(codes))
    for c, role in enumerate(truth.roles):
        column = codes[:, truth.causal[c]]
        if role == "overdominant":
            signal += truth.effects[c] * standardise(column == 1)
        elif role == "recessive":
            signal += truth.effects[c] * standardise(column == 2)
        else:
            signal += truth.effects[c] * dosage[:, c]
        if role.startswith("pair_") and role.endswith("b"):
            product = dosage[:, c - 1] * dosage[:, c]
            mains = np.column_stack([np.ones(len(codes)), dosage[:, c - 1], dosage[:, c]])
            fit, *_ = np.linalg.lstsq(mains, product, rcond=None)
            signal += truth.pair_effects[c] * standardise(product - mains @ fit)
    return signal


@pytest.mark.parametrize("trait", QUANTITATIVE)
@pytest.mark.parametrize("pve", [0.05, 0.5, 0.9])
def test_observed_pve_is_exactly_the_one_asked_for(trait: str, pve: float) -> None:
    codes = unlinked_codes()
    truth = make(codes, trait, pve=pve)
    signal = true_signal(codes, truth)
    assert np.corrcoef(signal, truth.values)[0, 1] ** 2 == pytest.approx(pve, abs=1e-9)
    # The effects are on the trait's own scale: the signal needs no further factor.
    assert signal.var() == pytest.approx(pve, abs=1e-9)
    assert truth.values.mean() == pytest.approx(0, abs=1e-9)
    assert truth.values.var() == pytest.approx(1, abs=1e-9)


def test_single_causal_variant_has_the_strongest_marginal_association() -> None:
    codes = unlinked_codes()
    truth = make(codes, "additive", num_causal=1)
    r = standardise(codes).T @ standardise(truth.values) / len(codes)
    assert np.argmax(np.abs(r)) == truth.causal[0]
    assert r[truth.causal[0]] == pytest.approx(truth.effects[0], abs=1e-9)


def test_pure_pairs_leave_no_marginal_signal() -> None:
    rng = np.random.default_rng(3)
    first = rng.binomial(2, 0.1, size=4000)
    linked = np.where(rng.random(4000) < 0.25, first, rng.binomial(2, 0.1, size=4000))
    codes = np.column_stack([first, linked]).astype(np.uint8)
    mains = codes.astype(np.float64)
    product = np.prod(standardise(codes), axis=1)
    assert r_squared(mains, product) > 0.05  # The plain product of rare, weakly linked alleles would show.
    truth = make(codes, "epistasis", num_causal=2, pve=0.8)
    assert r_squared(mains, truth.values) < 0.002
    assert r_squared(np.column_stack([mains, product]), truth.values) == pytest.approx(0.8, abs=0.002)


def test_pairs_are_neighbours_and_have_no_effect_of_their_own() -> None:
    truth = make(unlinked_codes(), "epistasis", num_causal=4)
    assert truth.roles == ("pair_1a", "pair_1b", "pair_2a", "pair_2b")
    assert (truth.effects == 0).all()
    assert truth.pair_effects[0] == truth.pair_effects[1] != truth.pair_effects[2] == truth.pair_effects[3]


def test_pairs_and_main_effects_share_the_variance() -> None:
    codes = unlinked_codes(20_000)
    truth = make(codes, "epistasis_main", pve=0.6)
    mains = r_squared(codes[:, truth.causal].astype(np.float64), truth.values)
    assert mains == pytest.approx(0.3, abs=0.03)
    assert truth.roles[:3] == ("pair_1a", "pair_1b", "pair_2a")
    assert (truth.effects != 0).all()


def test_dominance_alternates_heterozygote_and_recessive_effects() -> None:
    truth = make(unlinked_codes(), "dominance", num_causal=5)
    assert truth.roles == ("overdominant", "recessive", "overdominant", "recessive", "overdominant")


def test_recessive_role_is_not_given_to_a_variant_without_homozygotes() -> None:
    codes = np.random.default_rng(0).binomial(1, 0.2, size=(200, 10)).astype(np.uint8)
    with pytest.raises(ConfigError, match="only 1 with"):
        make(codes, "dominance", num_causal=2)


@pytest.mark.parametrize("prevalence", [0.01, 0.1, 0.5, 0.9])
def test_prevalence_is_exact_and_cases_have_the_highest_liability(prevalence: float) -> None:
    codes = unlinked_codes()
    truth = make(codes, "binary", prevalence=prevalence, pve=0.5)
    assert set(truth.values) == {0.0, 1.0}
    assert truth.values.sum() == prevalence * 2000
    liability = make(codes, "additive", pve=0.5).values  # the same draws, not cut
    assert liability[truth.values == 1].min() > liability[truth.values == 0].max()


def test_causal_variants_are_common_and_hardly_linked() -> None:
    rng = np.random.default_rng(1)
    founders = rng.binomial(2, 0.3, size=(1000, 8)).astype(np.uint8)
    rare = rng.binomial(2, 0.02, size=(1000, 40)).astype(np.uint8)
    # Every founder is there three times, and most variants are rare.
    codes = np.concatenate([founders, founders, founders, rare], axis=1)
    truth = make(codes, "additive", num_causal=8)
    assert sorted(truth.causal % 8) == list(range(8))
    assert truth.causal.max() < 24
    with pytest.raises(ConfigError, match=r"9 causal variants asked for, and only 8 with MAF >= 0.05"):
        make(codes, "additive", num_causal=9)


def test_missing_genotypes_count_as_the_mean() -> None:
    codes = unlinked_codes()
    codes[np.random.default_rng(2).random(codes.shape) < 0.05] = 3
    codes[:, 0] = 3
    truth = make(codes, "additive")
    assert 0 not in truth.causal
    masked = np.ma.masked_equal(codes[:, truth.causal], 3).astype(np.float64)
    columns = ((masked - masked.mean(axis=0)) / masked.std(axis=0)).filled(0)
    assert r_squared((columns @ truth.effects)[:, None], truth.values) == pytest.approx(0.4, abs=1e-9)


@pytest.mark.parametrize("trait", [*QUANTITATIVE, "binary"])
def test_held_out_people_follow_the_model_without_shaping_it(trait: str) -> None:
    codes = unlinked_codes()
    held_out = codes[NUM_FIT:]
    other = np.concatenate([codes[:NUM_FIT], unlinked_codes(500, seed=9)])
    first = make(codes, trait, num_holdout=len(held_out))
    second = make(other, trait, num_holdout=500)
    np.testing.assert_array_equal(first.values[:NUM_FIT], second.values[:NUM_FIT])
    np.testing.assert_array_equal(first.causal, second.causal)
    assert not np.array_equal(first.values[NUM_FIT:], second.values[NUM_FIT:])
    if trait == "binary":
        assert first.values[:NUM_FIT].mean() == pytest.approx(0.1)
        assert 0.05 < first.values[NUM_FIT:].mean() < 0.16
    elif trait == "additive":
        # Predicting with the effects of the first 1,500 explains about as much in the others.
        scaled = codes[:, first.causal].astype(np.float64)
        fit = scaled[:NUM_FIT]
        signal = (scaled - fit.mean(axis=0)) / fit.std(axis=0) @ first.effects
        residual = (first.values - signal)[NUM_FIT:]
        assert residual.var() == pytest.approx(0.6, abs=0.1)


def test_ancestry_shifts_the_mean_of_populations_and_has_no_causal_variant() -> None:
    populations = np.array(["AFR", "EUR", "EAS"] * 400)
    truth = make(np.zeros((1200, 4), np.uint8), "ancestry", populations=populations, pve=0.3)
    assert len(truth.causal) == len(truth.roles) == len(truth.effects) == 0
    membership = (populations[:, None] == np.unique(populations)).astype(np.float64)[:, 1:]
    means = sorted(truth.values[populations == name].mean() for name in ("AFR", "EUR", "EAS"))
    # Two free means can only explain more than the planted line through them.
    assert 0.3 <= r_squared(membership, truth.values) < 0.31
    assert means[1] - means[0] > 0.4
    assert means[2] - means[1] > 0.4


def test_equal_seeds_give_equal_traits_and_others_do_not() -> None:
    codes = unlinked_codes()
    first, again, other = (make(codes, "epistasis_main", seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.causal, again.causal)
    assert not np.array_equal(first.values, other.values)
    assert not np.array_equal(first.causal, other.causal)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trait": "aditive"}, "trait: unknown trait 'aditive'; did you mean 'additive'"),
        ({"pve": 0.0}, "pve: 0 is not between 0 and 1"),
        ({"pve": 1.0}, "pve: 1 is not between 0 and 1"),
        ({"pve": float("nan")}, "pve: nan is not between 0 and 1"),
        ({"trait": "binary", "prevalence": 1.0}, "prevalence: 1 is not between 0 and 1"),
        ({"trait": "binary", "prevalence": 0.0001}, "prevalence: 0.0001 of 2000 people are 0 cases"),
        ({"num_causal": 0}, "causal: 0 causal variants"),
        ({"trait": "epistasis", "num_causal": 5}, "causal: 5 causal variants cannot be put in pairs"),
        ({"trait": "epistasis_main", "num_causal": 1}, "causal: 1 causal variants cannot be put in pairs"),
        ({"num_causal": 61}, "61 causal variants asked for"),
        ({"trait": "ancestry"}, "populations: the trait ancestry needs people of two populations"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    trait = str(changes.pop("trait", "additive"))
    with pytest.raises(ConfigError) as refusal:
        make(unlinked_codes(), trait, **changes)
    assert message in str(refusal.value)
