"""Every person is in one part, groups are whole, classes reach every part, and a seed says it all."""

import logging

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from snpdeconv.errors import InputError
from snpdeconv.genetics.splits import split, split_beside

fractions = st.floats(0.05, 0.45)
# With more than this held out, what a class of five must leave for training moves the counts by two.
usual_fractions = st.floats(0.05, 0.3)
class_sizes = st.lists(st.integers(3, 40), min_size=2, max_size=5)
seeds = st.integers(0, 2**32)


def parts_of(cut):
    return [cut.train, cut.val, cut.test]


def assert_partition(cut, num_people):
    together = np.concatenate(parts_of(cut))
    np.testing.assert_array_equal(np.sort(together), np.arange(num_people))
    for part in parts_of(cut):
        assert len(part)
        np.testing.assert_array_equal(part, np.sort(part))


@example([8, 3], 0.28125, 0.0625, 0)
@given(class_sizes, usual_fractions, usual_fractions, seeds)
def test_classes_are_stratified(sizes, val_fraction, test_fraction, seed):
    values = np.repeat(np.arange(len(sizes)), sizes)
    cut = split(
        kind="multiclass", values=values, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed
    )
    assert_partition(cut, len(values))
    for part, fraction in ((cut.val, val_fraction), (cut.test, test_fraction)):
        counts = np.bincount(values[part], minlength=len(sizes))
        # Within one person of the fraction, or the one that a small class must send.
        assert (np.abs(counts - np.array(sizes) * fraction) <= 1.01).all()
        assert counts.min() >= 1
    assert set(values[cut.train]) == set(values)


def test_totals_come_out_right_over_many_classes():
    values = np.repeat(np.arange(20), 9)
    cut = split(kind="multiclass", values=values, val_fraction=0.16, test_fraction=0.16, seed=0)
    assert len(cut.val) == pytest.approx(0.16 * 180, abs=1)
    assert len(cut.test) == pytest.approx(0.16 * 180, abs=1)


@given(st.sampled_from([40, 80, 120, 160, 200, 400]), fractions, fractions, seeds)
def test_quantities_are_stratified_by_quantile(num_people, val_fraction, test_fraction, seed):
    values = np.random.default_rng(seed).standard_normal(num_people) ** 3
    cut = split(
        kind="quantitative", values=values, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed
    )
    assert_partition(cut, num_people)
    # These sizes make an even number of bins, so that each part takes its share of either half.
    lower = values < np.median(values)
    for part, fraction in ((cut.val, val_fraction), (cut.test, test_fraction)):
        assert lower[part].sum() == pytest.approx(fraction * num_people / 2, abs=1.01)
        assert (~lower)[part].sum() == pytest.approx(fraction * num_people / 2, abs=1.01)


def test_ties_and_few_people_of_a_quantity():
    tied = np.r_[np.zeros(90), np.arange(10) / 3.0]
    assert_partition(split(kind="quantitative", values=tied, seed=1), 100)
    assert_partition(split(kind="quantitative", values=np.arange(3.0), seed=1), 3)


@st.composite
def grouped(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=12, max_size=60))
    rng = np.random.default_rng(draw(seeds))
    groups = np.repeat(rng.permutation(len(sizes)) + 7, sizes)
    values = rng.integers(0, draw(st.integers(2, 4)), len(groups))
    order = rng.permutation(len(groups))
    return groups[order], values[order]


@given(grouped(), seeds, st.booleans())
def test_groups_are_never_cut(people, seed, as_quantity):
    groups, values = people
    kind = "quantitative" if as_quantity else "multiclass"
    cut = split(kind=kind, values=values, groups=groups, val_fraction=0.2, test_fraction=0.2, seed=seed)
    assert_partition(cut, len(values))
    held = [set(groups[part]) for part in parts_of(cut)]
    assert sum(map(len, held)) == len(set(groups))
    if not as_quantity:
        assert set(values[cut.train]) == set(values)


@given(grouped(), seeds)
def test_fractions_hold_to_a_group(people, seed):
    groups, values = people
    cut = split(
        kind="multiclass", values=values, groups=groups, val_fraction=0.2, test_fraction=0.2, seed=seed
    )
    for part in (cut.val, cut.test):
        assert len(part) == pytest.approx(0.2 * len(values), abs=0.05 * len(values) + 6)


@given(grouped(), seeds, st.randoms(use_true_random=False), st.booleans())
def test_with_names_the_order_of_the_people_does_not_matter(people, seed, random, with_groups):
    groups, values = people
    names = np.array([f"F{g} S{i}" for i, g in enumerate(groups)], dtype=object)
    order = np.array(random.sample(range(len(names)), len(names)))
    one = split(
        kind="multiclass", values=values, groups=groups if with_groups else None, keys=names, seed=seed
    )
    two = split(
        kind="multiclass",
        values=values[order],
        groups=-groups[order] if with_groups else None,
        keys=list(names[order]),
        seed=seed,
    )
    for a, b in zip(parts_of(one), parts_of(two), strict=True):
        assert set(names[a]) == set(names[order][b])


def test_people_alone_fill_what_families_leave():
    """300 people in families of three and 300 alone: the parts come out to the person, in each class too."""
    groups = np.r_[np.repeat(np.arange(100), 3), np.arange(100, 400)]
    for seed in range(10):
        values = np.random.default_rng(seed).integers(0, 2, 600)
        cut = split(kind="binary", values=values, groups=groups, seed=seed)
        assert [len(part) for part in parts_of(cut)] == pytest.approx([420, 90, 90], abs=1)
        cases = [values[part].sum() for part in parts_of(cut)]
        assert cases == pytest.approx(values.sum() * np.array([0.7, 0.15, 0.15]), abs=1.01)


def test_training_takes_a_class_that_no_other_part_can_spare():
    """The one person of class 1 is in a family that fits the validation part best."""
    groups = np.r_[np.zeros(90, dtype=np.int64), 1, 1, np.arange(2, 12)]
    values = np.zeros(102, dtype=np.int64)
    values[91] = 1
    for seed in range(10):
        assert 91 in split(kind="binary", values=values, groups=groups, seed=seed).train


def test_a_seed_gives_one_split_and_another_seed_another():
    values = np.arange(100.0)
    first, again, other = (split(kind="quantitative", values=values, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(parts_of(first), parts_of(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert first.test.tolist() != other.test.tolist()


def test_families_of_cases_reach_every_part():
    """Three families hold all cases: one must go to each part, whatever the sizes say."""
    groups = np.r_[np.repeat([0, 1, 2], 5), np.arange(3, 188)]
    values = (groups < 3).astype(np.int64)
    for seed in range(20):
        cut = split(kind="binary", values=values, groups=groups, seed=seed)
        assert [values[part].sum() for part in parts_of(cut)] == [5, 5, 5]


def test_a_class_of_one_family_goes_to_training_with_a_warning(caplog):
    groups = np.r_[np.zeros(6, dtype=np.int64), np.arange(1, 95)]
    values = (groups == 0).astype(np.int64)
    for seed in range(10):
        assert values[split(kind="binary", values=values, groups=groups, seed=seed).train].sum() == 6
    assert "too few groups to be in the test part" in caplog.text


def test_a_huge_group_trains_and_the_fractions_missed_are_told(caplog):
    groups = np.r_[np.zeros(90, dtype=np.int64), np.arange(1, 11)]
    caplog.set_level(logging.INFO)
    cut = split(kind="quantitative", values=np.arange(100.0), groups=groups, val_fraction=0.3, seed=0)
    assert set(range(90)) <= set(cut.train.tolist())
    assert_partition(cut, 100)
    assert "instead of 0.30" in caplog.text
    assert f"split: {len(cut.train)} training" in caplog.text


def test_three_groups_make_three_parts():
    groups = np.repeat([5, 6, 7], [34, 33, 33])
    assert_partition(split(kind="quantitative", values=np.arange(100.0), groups=groups, seed=0), 100)


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([1.0, 2.0], None, "2 people in 2 groups leave nobody for the test part"),
        (np.arange(50.0), np.repeat([0, 1], 25), "50 people in 2 groups leave nobody"),
        (np.arange(50.0), np.zeros(50, dtype=np.int64), "50 people in 1 groups leave nobody"),
        ([], None, "0 people in 0 groups leave nobody for the training part"),
    ],
)
def test_a_part_without_people_is_an_error(values, groups, message):
    with pytest.raises(InputError, match=message):
        split(kind="quantitative", values=np.asarray(values), groups=groups, seed=0)


@given(st.lists(st.integers(0, 3), min_size=3, max_size=8), seeds)
def test_tiny_cohorts_are_cut_or_refused(values, seed):
    assume(len(set(values)) > 1)
    values = np.array(values)
    try:
        cut = split(kind="multiclass", values=values, seed=seed)
    except InputError:
        assert np.bincount(values).max() < 3
    else:
        assert_partition(cut, len(values))
        assert set(values[cut.train]) == set(values)


def test_people_held_out_are_the_test_part_and_the_rest_is_cut_without_them():
    rng = np.random.default_rng(1)
    values = rng.normal(size=400)
    held_out = rng.random(400) < 0.2
    parts = split_beside(held_out, kind="quantitative", values=values, val_fraction=0.15, seed=3)
    assert (parts.test == np.flatnonzero(held_out)).all()
    assert sorted(np.concatenate([parts.train, parts.val, parts.test])) == list(range(400))
    assert len(parts.val) == pytest.approx(0.15 * (~held_out).sum(), abs=2)
    again = split_beside(held_out, kind="quantitative", values=values, val_fraction=0.15, seed=3)
    assert (again.train == parts.train).all()


def test_relatives_of_people_held_out_are_in_no_part():
    held_out = np.zeros(60, dtype=bool)
    held_out[[0, 2]] = True
    groups = np.arange(60) // 2
    parts = split_beside(held_out, kind="binary", values=np.arange(60) % 2, groups=groups, seed=1)
    assert list(parts.test) == [0, 2]
    assert not {1, 3} & {*parts.train, *parts.val}
    assert len(parts.train) + len(parts.val) == 56


@pytest.mark.parametrize("everyone", [True, False])
def test_holding_out_nobody_or_everybody_is_refused(everyone):
    with pytest.raises(InputError, match="held out of 30"):
        split_beside(np.full(30, everyone), kind="quantitative", values=np.arange(30.0), seed=1)
