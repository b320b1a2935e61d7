"""Methods on any scale, combined by rank."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpdeconv.errors import ConfigError
from snpdeconv.interpret.ranking import combine


def test_one_method_is_its_own_ranks_as_p_values():
    found = combine({"marginal": np.array([3.0, 9.0, 1.0])})
    assert found == pytest.approx(-np.log10([2 / 4, 1 / 4, 3 / 4]))


def test_weights_are_normalised_over_the_methods_that_are_there():
    scores = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([5.0, 1.0, 0.0])}
    a, b = (combine({name: scores[name]}, weights={name: 1}) for name in "ab")
    found = combine(scores, weights={"a": 3, "b": 1, "absent": 100})
    assert found == pytest.approx(0.75 * a + 0.25 * b)


def test_ties_share_their_mean_rank_and_a_constant_method_says_nothing():
    found = combine({"a": np.array([1.0, 1.0, 0.0])}, weights={"a": 1})
    assert found == pytest.approx(-np.log10([1.5 / 4, 1.5 / 4, 3 / 4]))
    signal = np.array([3.0, 1.0, 2.0])
    with_constant = combine({"a": signal, "b": np.zeros(3)}, weights={"a": 1, "b": 1})
    assert np.argsort(with_constant).tolist() == np.argsort(signal).tolist()


@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=40))
def test_only_the_order_of_a_method_counts(values):
    scores = np.array(values, dtype=float)
    other = np.arange(len(scores), dtype=float)
    equally = {"marginal": 0.5, "attention": 0.5}
    found = combine({"marginal": scores, "attention": other}, weights=equally)
    transformed = combine({"marginal": np.exp(scores / 500) * 1e-9, "attention": other}, weights=equally)
    assert found == pytest.approx(transformed)
    assert np.all(found > 0)
    higher = scores.copy()
    higher[0] = scores.max() + 1
    assert combine({"marginal": higher, "attention": other}, weights=equally)[0] >= found[0] - 1e-12


def test_single_effects_decide_and_association_settles_what_they_leave_equal():
    scores = {
        "marginal": np.array([1.0, 5.0, 9.0, 7.0]),
        "single_effects": np.array([0.9, 0.4, 0.4, 0.1]),
        "attention": np.array([0.0, 0.0, 0.0, 1.0]),
        "integrated_gradients": np.array([0.0, 0.0, 0.0, 1.0]),
    }
    assert np.argsort(-combine(scores)).tolist() == [0, 2, 1, 3]


def test_without_single_effects_association_decides():
    scores = {"marginal": np.array([1.0, 5.0, 9.0]), "attention": np.array([9.0, 0.0, 1.0])}
    assert combine(scores) == pytest.approx(combine({"marginal": scores["marginal"]}))


@given(st.permutations(range(200)), st.permutations(range(200)))
def test_association_never_overrules_single_effects(single, marginal):
    scores = {"single_effects": np.array(single, dtype=float), "marginal": np.array(marginal, dtype=float)}
    assert np.argsort(combine(scores)).tolist() == np.argsort(scores["single_effects"]).tolist()


def test_a_method_without_a_weight_and_weights_of_nothing_are_errors():
    with pytest.raises(ConfigError, match="no weight for shap"):
        combine({"shap": np.ones(2), "marginal": np.ones(2)})
    with pytest.raises(ConfigError, match="the weights are all 0"):
        combine({"a": np.ones(2)}, weights={"a": 0.0})
