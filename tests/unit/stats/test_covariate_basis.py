"""The basis of covariates, whatever their unit and however they depend on each other."""

import numpy as np
import pytest

from snpdeconv.stats.common import covariate_basis

RNG = np.random.default_rng(0)
AGE, HEIGHT = RNG.normal(50, 10, 200), RNG.normal(170, 8, 200)


def projector(covariates):
    basis = covariate_basis(covariates, num_samples=200)
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    np.testing.assert_allclose(basis[:, 0], 200**-0.5)
    return basis @ basis.T, basis.shape[1]


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_unit_of_a_covariate_does_not_matter(unit):
    expected, size = projector(np.column_stack([AGE, HEIGHT]))
    found, same_size = projector(np.column_stack([unit * AGE, HEIGHT]))
    assert size == same_size == 3
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_covariates_that_others_imply_add_nothing():
    expected, _ = projector(np.column_stack([AGE, HEIGHT]))
    found, size = projector(np.column_stack([AGE, HEIGHT, 3 * AGE - 2 * HEIGHT + 5, AGE]))
    assert size == 3
    np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e6 / 3])
def test_constant_covariates_add_nothing(constant):
    expected, _ = projector(AGE[:, None])
    found, size = projector(np.column_stack([np.full(200, constant), AGE]))
    assert size == 2
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert projector(np.full((200, 1), constant))[1] == 1


def test_without_covariates_there_is_the_intercept():
    for nothing in (None, np.empty((200, 0))):
        assert projector(nothing)[1] == 1
