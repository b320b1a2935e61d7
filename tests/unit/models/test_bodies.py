from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from snpdeconv.models.gnn import GatherNeighbors, MessagePassing, chain_neighbors
from snpdeconv.models.layers import KERNELS, MultiScaleConv
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.models.transformer import TransformerLayer

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


def test_a_step_in_bf16_whose_product_divides_by_zero_in_onednn_does_not_end_the_process():
    """1,536 slots and 128 samples: SIGFPE in the weights' gradient, on CPUs with AMX and one thread."""
    script = """
import torch
from snpdeconv.models.model import InterpretableSNPModel
torch.set_num_threads(1)
model = InterpretableSNPModel(1536, "gnn", encoding_dim=2)
genotypes = torch.randint(0, 256, (128, 384), dtype=torch.uint8)
with torch.autocast("cpu", torch.bfloat16):
    logits = model(genotypes)
logits.float().square().mean().backward()
print(bool(torch.isfinite(model.body.rounds[0].update.weight.grad).all()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_in_bf16_the_weights_gradient_is_that_of_float32_whatever_pieces_it_is_summed_in():
    generator = torch.Generator().manual_seed(3)
    nodes = torch.randn(8, 700, 100, generator=generator)  # more than one piece
    graph, weight = torch.randint(0, 700, (700, 2), generator=generator), torch.rand(700, 2)
    layer = MessagePassing(700, 2, 0.0)
    gradients = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            layer(nodes, graph, weight).float().square().mean().backward()
        gradients.append([layer.update.weight.grad, layer.update.bias.grad])

    for exact, rounded in zip(*gradients, strict=True):
        assert rounded.dtype == torch.float32
        assert (exact - rounded).norm() < 0.02 * exact.norm()


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


def test_windows_attend_to_themselves_and_to_every_windows_mean():
    torch.manual_seed(1)
    layer = TransformerLayer(12, 3, 0.0).double()
    x = torch.randn(2, 15, 12, dtype=torch.float64)
    got = layer(x, 5)
    # The same, token by token and head by head.
    q, k, v = layer.qkv(layer.attention_norm(x)).view(2, 15, 3, 3, 4).unbind(2)
    mixed = torch.empty(2, 15, 3, 4, dtype=torch.float64)
    for token in range(15):
        own = slice(token // 3 * 3, token // 3 * 3 + 3)
        keys, values = (
            torch.cat([t[:, own], torch.stack([t[:, w : w + 3].mean(1) for w in range(0, 15, 3)], 1)], 1)
            for t in (k, v)
        )
        weight = torch.softmax(torch.einsum("bhd,bkhd->bhk", q[:, token], keys) / 2, -1)
        mixed[:, token] = torch.einsum("bhk,bkhd->bhd", weight, values)
    h = x + layer.out(mixed.flatten(2))
    torch.testing.assert_close(got, h + layer.feed(layer.feed_norm(h)))


def test_attention_reaches_every_token_across_windows():
    torch.manual_seed(1)
    # 40 tokens in windows of at most 12: four of ten each.
    model = InterpretableSNPModel(160, "cnn_transformer", encoding_dim=1, patch=4, window=12, dropout=0.0)
    assert model.body.num_windows == 4
    tokens = torch.randn(1, 40, 128, requires_grad=True)
    moved = model.body.layers[0](tokens, 4)
    (reach,) = torch.autograd.grad(moved[0, 0].sum(), tokens)
    assert bool((reach.abs().sum(-1) > 0).all())


def test_one_window_is_plain_attention():
    genotypes = torch.randint(0, 256, (3, 40), dtype=torch.uint8)
    logits = []
    for window in (40, 1000):
        torch.manual_seed(1)
        model = InterpretableSNPModel(160, "cnn_transformer", encoding_dim=1, patch=4, window=window)
        logits.append(model.eval()(genotypes))
    assert torch.equal(*logits)


def test_a_number_of_tokens_that_windows_do_not_divide():
    model = InterpretableSNPModel(4 * 23, "cnn_transformer", encoding_dim=1, patch=4, window=10)
    assert model.body.num_windows == 3
    genotypes = torch.randint(0, 256, (3, 23), dtype=torch.uint8)
    assert torch.isfinite(model(genotypes)).all()
    torch.testing.assert_close(model.attention(genotypes).sum(1), torch.ones(3))
