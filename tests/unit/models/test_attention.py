from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from snpdeconv.models.layers import masked_softmax
from snpdeconv.models.model import InterpretableSNPModel

Make = Callable[..., Any]


@pytest.fixture
def mask() -> torch.Tensor:
    mask = torch.rand(112, generator=torch.Generator().manual_seed(2)) < 0.7
    mask[32:48] = False  # a token that is all padding
    return mask


def test_each_sample_attends_with_weights_that_sum_to_one(
    architecture: str, mask: torch.Tensor, small: Make, genotypes: Make
):
    model = small(architecture, 112, slot_mask=mask)

    attention = model.attention(genotypes(n_snps=112))

    assert attention.shape == (6, 112)
    assert attention.dtype == torch.float32
    assert attention.min() >= 0
    assert attention[:, ~mask].abs().max() == 0
    assert attention[:, mask].min() > 0
    torch.testing.assert_close(attention.sum(1), torch.ones(6))
    assert model.training


def test_attention_belongs_to_the_sample_not_to_its_batch(architecture: str, small: Make, genotypes: Make):
    model = small(architecture)
    codes = genotypes()

    together = model.attention(codes)
    alone = torch.cat([model.attention(row) for row in codes.split(1)])

    torch.testing.assert_close(together, alone)
    assert (together[0] - together[1]).abs().max() > 1e-5


def test_planted_attention_is_found_where_it_was_planted(architecture: str, genotypes: Make):
    torch.manual_seed(0)
    model = InterpretableSNPModel(100, architecture, width=16, patch=16)
    share = torch.zeros(100)
    share[[37, 80]] = torch.tensor([0.8, 0.2])

    model.start_attention(share)
    attention = model.attention(genotypes())

    # A hundredth of the mean goes to every SNP.
    expected = (share / share.mean() + 0.01) / (100 * 1.01)
    torch.testing.assert_close(attention, expected.expand(6, -1))


def test_the_attended_snp_decides_and_the_others_do_not(architecture: str, small: Make, genotypes: Make):
    model = small(architecture, 64, patch=16, encoding_dim=1).eval()
    share = torch.zeros(64)
    share[20] = 1.0
    model.start_attention(share)
    encoded = model.encode(genotypes(samples=64, n_snps=64)).requires_grad_()

    model.body(*model._input(encoded)).features.square().sum().backward()

    assert encoded.grad is not None
    sensitivity = encoded.grad.abs().sum((0, 2))
    beside = set(range(14, 27))  # a convolution or a graph mixes what stands beside
    far = [s for s in range(64) if s not in beside]
    assert sensitivity[20] > 5 * sensitivity[far].max()


@pytest.mark.parametrize("dim", [2, 8])
def test_what_padding_slots_hold_changes_nothing(
    architecture: str, mask: torch.Tensor, dim: int, small: Make, genotypes: Make
):
    model = small(architecture, 112, slot_mask=mask, encoding_dim=dim).eval()
    codes = genotypes(n_snps=112)
    # Padding holds code 3: haplotype channels of the SNPs beside it do look at it.
    codes[:, ~mask] = 3
    encoded = model.encode(codes)
    noise = torch.where(mask.unsqueeze(-1), encoded, torch.randn(encoded.shape))

    assert encoded[:, ~mask].abs().max() == 0
    assert torch.equal(model(noise), model(codes))


def test_padding_slots_at_the_end_change_nothing(architecture: str, small: Make, genotypes: Make):
    # 100 SNPs fill up to 112 slots; a model of 112 slots, twelve of them padding, is the same model.
    short = small(architecture, 100, encoding_dim=2).eval()
    padded = InterpretableSNPModel(**{**short.config, "n_snps": 112}, slot_mask=torch.arange(112) < 100)
    state = short.state_dict()
    for name in ("encoder.allele_frequency", "encoder.slot_mask"):
        state[name] = padded.state_dict()[name]
    padded.load_state_dict(state)
    codes = genotypes()
    longer = torch.cat([codes, torch.full((6, 12), 3)], dim=1)

    assert torch.equal(padded.eval()(longer), short(codes))
    assert torch.equal(padded.attention(longer)[:, :100], short.attention(codes))


def test_a_masked_softmax_over_nothing_is_nothing():
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]], dtype=torch.bfloat16)
    mask = torch.tensor([[True, False, True], [False, False, False]])

    weight = masked_softmax(logits, mask)

    torch.testing.assert_close(weight[0], torch.tensor([0.1192, 0, 0.8808]), atol=1e-4, rtol=0)
    assert weight[1].tolist() == [0, 0, 0]
