"""Weighted products of columns against the dense matrix in float64, under a prior of the covariates."""

import numpy as np
import pytest
import torch

from snpdeconv.finemapping.columns import Columns, ExtraColumns
from snpdeconv.finemapping.gram import LazyGram
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

NUM_SAMPLES, NUM_VARIANTS, NUM_EXTRA = 700, 30, 3


def imputed(values, called):
    return np.where(called, values, (values * called).sum(axis=0) / called.sum(axis=0))


def dense(codes, basis, extra):
    """Dosages, dominance and extra columns off the basis, the second off the first too; mean square 1."""
    called = codes != MISSING
    values = imputed(codes.astype(float), called), imputed((codes == 1).astype(float), called), extra
    dosage, het, rest = (value - basis @ (basis.T @ value) for value in values)
    het -= dosage * (dosage * het).sum(axis=0) / (dosage**2).sum(axis=0)
    columns = np.hstack([dosage, het, rest])
    return columns / np.sqrt((columns**2).mean(axis=0))


@pytest.mark.parametrize("precision", [None, 1e-3, 0.1, 10.0])
def test_diagonal_and_rows_are_those_of_the_projected_columns(precision):
    rng = np.random.default_rng(0)
    ancestry = rng.normal(size=(NUM_SAMPLES, 2))
    slopes = rng.normal(scale=0.8, size=(2, NUM_VARIANTS))
    frequency = 1 / (1 + np.exp(-ancestry @ slopes - rng.normal(scale=0.5, size=NUM_VARIANTS)))
    codes = rng.binomial(2, frequency).astype(np.uint8)
    extra = rng.normal(size=(NUM_SAMPLES, NUM_EXTRA)) + ancestry[:, :1]
    codes[rng.random(codes.shape) < 0.05] = MISSING
    basis = np.linalg.qr(np.column_stack([np.ones(NUM_SAMPLES), ancestry]))[0]
    # The weights depend on the covariates, as those of a logistic regression do.
    chance = 1 / (1 + np.exp(-1.5 * ancestry[:, 0] + ancestry[:, 1]))
    weight = chance * (1 - chance) * rng.uniform(0.8, 1.2, NUM_SAMPLES)
    prior = None if precision is None else np.array([0.0, precision, 2 * precision])

    columns = Columns(
        PackedGenotypes.from_codes(codes),
        basis=basis,
        extra=ExtraColumns(
            values=extra.astype(np.float32),
            variants=np.full((NUM_EXTRA, 2), -1),
            weight=np.ones(NUM_EXTRA),
        ),
    )
    gram = LazyGram(
        columns,
        weight=torch.from_numpy(weight),
        precision=None if prior is None else torch.from_numpy(prior),
    )
    projected = dense(codes, basis, extra)
    cross = basis * weight[:, None]
    known = basis.T @ cross + np.diag(np.zeros(3) if prior is None else prior)
    along = cross.T @ projected
    expected = projected.T @ (projected * weight[:, None]) - along.T @ np.linalg.solve(known, along)

    assert columns.usable.all()
    everything = np.arange(columns.num_columns)
    rows = torch.stack([gram.times(everything[[one]], torch.ones(1)) for one in everything])
    np.testing.assert_allclose(gram.diagonal, np.diag(expected), rtol=2e-5)
    np.testing.assert_allclose(rows, expected, atol=2e-5 * np.diag(expected).max())
