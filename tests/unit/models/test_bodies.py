from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from snpdeconv.models.gnn import GatherNeighbors, chain_neighbors
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.models.multiscale import KERNELS, MultiScaleConv

Make = Callable[..., Any]


@pytest.mark.parametrize("stride", [1, 2])
def test_the_merged_convolution_is_three_convolutions(stride: int):
    conv = MultiScaleConv(3, 8, stride=stride)
    x = torch.randn(2, 3, 20)

    expected = [
        F.conv1d(x, w, stride=stride, padding=k // 2) for w, k in zip(conv.weights, KERNELS, strict=True)
    ]

    assert [len(w) for w in conv.weights] == [3, 3, 2]
    torch.testing.assert_close(conv(x), torch.cat(expected, dim=1))


def test_messages_are_weighted_sums_over_neighbours_with_the_right_gradients():
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(2, 5, 3, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(5, 2, dtype=torch.float64, generator=generator).requires_grad_()
    neighbors = torch.tensor([[1, 2], [0, 0], [4, 1], [3, 3], [0, 2]])

    gathered = GatherNeighbors.apply(h, neighbors, weight)

    torch.testing.assert_close(gathered, torch.einsum("se,dseb->dsb", weight, h[:, neighbors]))
    assert torch.autograd.gradcheck(lambda a, b: GatherNeighbors.apply(a, neighbors, b), (h, weight))


def test_the_default_graph_is_a_chain():
    neighbors, weight = chain_neighbors(4, 4)

    assert neighbors.tolist() == [[1, 0, 2, 0], [2, 0, 3, 0], [3, 1, 3, 0], [3, 2, 3, 1]]
    assert weight.tolist() == [[1, 0, 0.5, 0], [1, 1, 0.5, 0], [1, 1, 0, 0.5], [0, 1, 0, 0.5]]


def test_the_chain_steps_over_padding():
    mask = torch.tensor([True, True, False, False, True, True, True, True])
    model = InterpretableSNPModel(8, "gnn", patch=4, slot_mask=mask, num_neighbors=2)

    neighbors, weight = model.body.neighbors, model.body.neighbor_weights
    assert neighbors[1].tolist() == [4, 0]
    assert neighbors[4].tolist() == [5, 1]
    assert weight[~mask].abs().max() == 0
    assert (weight[mask].sum(1) > 0).all()


def test_an_edge_carries_a_message_and_a_missing_edge_none(small: Make, genotypes: Make):
    graph = torch.zeros(100, 1, dtype=torch.int64)
    graph[50] = 7
    weights = torch.zeros(100, 1)
    weights[50] = 0.9
    model = small("gnn", neighbors=graph, neighbor_weights=weights, encoding_dim=1).eval()
    share = torch.zeros(100)
    share[50] = 1.0
    model.start_attention(share)
    encoded = model.encode(genotypes()).requires_grad_()

    model.body(*model._input(encoded)).features.square().sum().backward()

    assert encoded.grad is not None
    sensitivity = encoded.grad.abs().sum((0, 2))
    assert sensitivity[7] > 10 * sensitivity[[6, 8, 49, 51]].max()


def test_edges_to_and_from_padding_weigh_nothing():
    mask = torch.arange(16) != 3
    graph = torch.full((16, 2), 3)
    graph[:, 1] = 5

    model = InterpretableSNPModel(16, "gnn", patch=4, slot_mask=mask, neighbors=graph)

    weights = model.body.neighbor_weights
    assert weights[:, 0].abs().max() == 0
    assert weights[3].abs().max() == 0
    assert (weights[mask, 1] == 1).all()


@pytest.mark.parametrize("patch", [4, 8, 12, 64])
def test_any_multiple_of_four_is_a_patch(architecture: str, patch: int, small: Make, genotypes: Make):
    model = small(architecture, patch=patch).eval()

    torch.testing.assert_close(model.attention(genotypes()).sum(1), torch.ones(6))
    assert model(genotypes()).isfinite().all()


def test_dropout_is_for_training_only(architecture: str, small: Make, genotypes: Make):
    model = small(architecture, dropout=0.5)
    codes = genotypes()

    model.eval()
    assert torch.equal(model(codes), model(codes))
    model.train()
    assert not torch.equal(model(codes), model(codes))


def test_the_network_learns_a_product_of_two_snps_that_no_linear_model_can(architecture: str):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 3, (256, 16), generator=generator)
    target = (codes[:, 5].float() - 1) * (codes[:, 6].float() - 1)
    torch.manual_seed(1)
    model = InterpretableSNPModel(16, architecture, encoding_dim=1, width=32, dropout=0.0, patch=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    for _ in range(150):
        loss = F.mse_loss(model(codes).squeeze(1), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.2 * float(target.var())
