"""Terms against the sum written out, and their refusals."""

import numpy as np
import pytest

from snpdeconv.errors import InputError
from snpdeconv.genetics import terms
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.terms import Terms


def made_terms(num_covariates=2):
    rng = np.random.default_rng(3)
    second = np.array([-1, 4, -1, 0, 2])
    second_value = np.where(second[:, None] < 0, 1.0, rng.normal(size=(5, 4)))
    return Terms(
        first=np.array([0, 1, 5, 3, 2]),
        second=second,
        first_value=rng.normal(size=(5, 4)),
        second_value=second_value,
        weight=rng.normal(size=(3, 5)),
        intercept=rng.normal(size=3),
        covariate_weight=rng.normal(size=(3, num_covariates)),
    )


@pytest.fixture
def codes():
    return np.random.default_rng(4).integers(0, 4, (30, 6)).astype(np.uint8)


def test_predicts_the_sum_of_its_terms(codes):
    made, covariates = made_terms(), np.random.default_rng(5).normal(size=(30, 2))
    expected = made.intercept + covariates @ made.covariate_weight.T
    for n in range(30):
        for t in range(len(made)):
            other = 1.0 if made.second[t] < 0 else made.second_value[t, codes[n, made.second[t]]]
            expected[n] += made.weight[:, t] * made.first_value[t, codes[n, made.first[t]]] * other
    found = made.predict(PackedGenotypes.from_codes(codes), covariates)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_batches_do_not_change_the_sum(codes, monkeypatch):
    made, genotypes = made_terms(0), PackedGenotypes.from_codes(codes)
    whole = made.predict(genotypes)
    monkeypatch.setattr(terms, "BATCH_ELEMENTS", 30)
    np.testing.assert_allclose(made.predict(genotypes), whole, atol=1e-12)


def test_refuses_other_covariates_and_missing_variants(codes):
    genotypes = PackedGenotypes.from_codes(codes)
    with pytest.raises(InputError, match="covariates: 0 columns, but the fit had 2"):
        made_terms().predict(genotypes)
    with pytest.raises(InputError, match="genotypes: 5 variants, but variant 5 has a weight"):
        made_terms(0).predict(genotypes.take(columns=np.arange(5)))
