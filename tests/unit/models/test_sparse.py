"""The sparse part gives what its terms say, from every form of genotypes, and lets gradients through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.terms import Terms
from snpdeconv.models.layers import SparsePart
from snpdeconv.models.model import InterpretableSNPModel

Make = Callable[..., Any]
SNPS = 40
DIMS = (1, 2, 4, 8)


@pytest.fixture
def terms() -> Terms:
    """Two SNPs with two terms each, some of one term, and three pairs; two outputs."""
    rng = np.random.default_rng(3)
    first = np.array([5, 5, 9, 9, 17, 30, 5, 21, 39])
    second = np.array([-1, -1, -1, -1, -1, -1, 9, 2, 0])
    second_value = rng.normal(size=(9, 4))
    second_value[second < 0] = 1.0
    return Terms(
        first=first,
        second=second,
        first_value=rng.normal(size=(9, 4)),
        second_value=second_value,
        weight=rng.normal(size=(2, 9)),
        intercept=np.zeros(2),
        covariate_weight=np.empty((2, 0)),
    )


@pytest.fixture
def codes() -> torch.Tensor:
    rng = np.random.default_rng(5)
    return torch.from_numpy(rng.binomial(2, rng.uniform(0.05, 0.95, SNPS), (50, SNPS)))


def expected(terms: Terms, codes: torch.Tensor) -> np.ndarray:
    return terms.predict(PackedGenotypes.from_codes(codes.numpy().astype(np.uint8)))


def model_with(terms: Terms, codes: torch.Tensor, dim: int, **arguments: Any) -> InterpretableSNPModel:
    """A model whose logits are the sparse part's alone."""
    torch.manual_seed(0)
    present = codes < 3
    model = InterpretableSNPModel(
        SNPS, "cnn", encoding_dim=dim, num_outputs=2, width=8, channels=(4, 4), patch=8, linear="fitted",
        allele_frequency=(codes * present).sum(0) / (2 * present.sum(0)), **arguments,
    )  # fmt: skip
    model.carry(SparsePart.of(terms))
    with torch.no_grad():
        model.head.out.weight.zero_()
    return model.eval()


@pytest.mark.parametrize("dim", DIMS)
def test_every_form_of_genotypes_gives_what_the_terms_say(terms, codes, dim, pack: Make):
    model = model_with(terms, codes, dim)
    for form in (codes, pack(codes), model.encode(codes)):
        np.testing.assert_allclose(model(form).detach(), expected(terms, codes), atol=1e-4)


@pytest.mark.parametrize("dim", DIMS)
def test_missing_genotypes(terms, codes, dim, pack: Make):
    complete = codes.clone()
    codes[torch.rand(codes.shape, generator=torch.Generator().manual_seed(1)) < 0.1] = 3
    model = model_with(terms, codes, dim)
    logits = model(codes).detach()
    torch.testing.assert_close(model(pack(codes)), logits)
    torch.testing.assert_close(model.forward_encoded(model.encode(codes)), logits)
    if dim >= 4:  # these encodings tell a missing genotype, and the terms say what it counts
        np.testing.assert_allclose(logits, expected(terms, codes), atol=1e-4)
    used = np.unique(np.concatenate([terms.first, terms.second[terms.second >= 0]]))
    untouched = (codes[:, used] == complete[:, used]).all(1)
    assert 0 < int(untouched.sum()) < len(codes)
    np.testing.assert_allclose(logits[untouched], expected(terms, complete)[untouched], atol=1e-4)


def test_a_missing_genotype_is_the_mean_of_those_it_may_be(codes):
    """With dosage and dominance, each number of copies counts with its Hardy-Weinberg probability."""
    single = Terms(
        first=np.array([5]), second=np.array([-1]), first_value=np.array([[1.0, -2.0, 5.0, 99.0]]),
        second_value=np.ones((1, 4)), weight=np.ones((2, 1)), intercept=np.zeros(2),
        covariate_weight=np.empty((2, 0)),
    )  # fmt: skip
    model = model_with(single, codes, 2)
    p = float(model.encoder.allele_frequency[5])
    codes[0, 5] = 3
    mean = (1 - p) ** 2 * 1 + 2 * p * (1 - p) * -2 + p**2 * 5
    assert model(codes[:1])[0, 0].item() == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize("dim", DIMS)
def test_gradients_reach_the_encoding_of_the_terms_snps_and_no_other(terms, codes, dim):
    model = model_with(terms, codes, dim)
    encoded = model.encode(codes[:6]).requires_grad_()
    model.forward_encoded(encoded)[:, 0].sum().backward()
    touched = encoded.grad.abs().sum((0, 2)) > 0
    used = np.unique(np.concatenate([terms.first, terms.second[terms.second >= 0]]))
    assert set(touched.nonzero().squeeze(1).tolist()) == set(used.tolist())


def test_attributions_of_the_sparse_part_add_up_to_what_it_changes(terms, codes):
    from snpdeconv.interpret.attribution import integrated_gradients

    model = model_with(terms, codes, 2)
    batches = [(codes[:20], torch.zeros(20))]
    found = integrated_gradients(model, batches, kind="multiclass", device="cpu", steps=16)
    assert found.completeness_gap < 1e-3
    assert found.score[5] > 0
    assert found.score[7] == 0


def test_it_stays_in_float32_under_autocast(terms, codes):
    model = model_with(terms, codes, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(codes)
    np.testing.assert_allclose(logits.float().detach(), expected(terms, codes), atol=1e-4)


def test_it_travels_with_configuration_and_state(terms, codes):
    model = model_with(terms, codes, 2)
    again = InterpretableSNPModel(**model.config).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(codes), model(codes))
    assert not any(name.startswith("sparse") for name, _ in model.named_parameters())
    plain = InterpretableSNPModel(SNPS, "cnn", encoding_dim=2)
    assert plain.sparse is None
    assert not any(name.startswith("sparse") for name in plain.state_dict())


def test_crumbs_are_left_out_and_change_nothing_that_matters(codes):
    rng = np.random.default_rng(7)
    value = np.tile([-1.0, 0.0, 1.0, 0.0], (SNPS, 1))
    weight = np.full((1, SNPS), 1e-5)
    weight[0, [3, 8]] = 1.0, -0.7
    many = Terms(
        first=rng.permutation(SNPS), second=np.full(SNPS, -1), first_value=value,
        second_value=np.ones((SNPS, 4)), weight=weight, intercept=np.zeros(1),
        covariate_weight=np.empty((1, 0)),
    )  # fmt: skip
    few = many.drop_negligible(codes.double().mean(0).numpy() / 2)
    assert few.first.tolist() == many.first[[3, 8]].tolist()
    change = expected(few, codes) - expected(many, codes)
    assert change.std() < 0.01 * expected(many, codes).std()


def test_variance_of_single_snps_and_pairs():
    """By simulation of unlinked SNPs in Hardy-Weinberg proportions."""
    rng = np.random.default_rng(2)
    frequency = np.array([0.2, 0.5, 0.4])
    codes = rng.binomial(2, frequency, (200_000, 3))
    values = rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    terms = Terms(
        first=np.array([0, 1]), second=np.array([-1, 2]), first_value=values[0],
        second_value=np.stack([np.ones(4), values[1][1]]), weight=np.array([[2.0, 0.5]]),
        intercept=np.zeros(1), covariate_weight=np.empty((1, 0)),
    )  # fmt: skip
    single = 2.0 * values[0][0][codes[:, 0]]
    pair = 0.5 * values[0][1][codes[:, 1]] * values[1][1][codes[:, 2]]
    np.testing.assert_allclose(terms.variance(frequency), [single.var(), pair.var()], rtol=0.03)
    slots = terms.variance_of_variants(frequency)
    np.testing.assert_allclose(slots, [single.var(), pair.var() / 2, pair.var() / 2], rtol=0.03)
