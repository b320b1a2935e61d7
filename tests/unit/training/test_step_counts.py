"""What a training step costs, in counts that are the same on every machine."""

import collections
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from snpdeconv.device import GIB, choose_precision
from snpdeconv.models.model import ARCHITECTURES, GPUOptimizedSNPModel, InterpretableSNPModel
from snpdeconv.training.data import Batch, PackedLoader
from snpdeconv.training.memory import GPUMemoryManager
from snpdeconv.training.step import AccumulatedStep, make_loss

CPU = torch.device("cpu")
SMALL = {"encoding_dim": 2, "width": 32, "num_layers": 2, "num_heads": 4, "patch": 16}


class Operators(TorchDispatchMode):
    """Counts the operators that are run."""

    def __init__(self):
        super().__init__()
        self.calls = collections.Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls[operator.overloadpacket._qualified_op_name] += 1
        return operator(*args, **(kwargs or {}))


def make_step(architecture, num_snps, *, batch, requested="bf16"):
    precision = choose_precision(CPU, requested=requested)
    base = InterpretableSNPModel(num_snps, architecture, **SMALL)
    model = GPUOptimizedSNPModel(base, use_amp=precision.dtype is not None).train()
    packed = torch.zeros(2 * batch, math.ceil(num_snps / 4), dtype=torch.uint8)
    loader = PackedLoader(packed, torch.zeros(2 * batch), batch_size=batch, shuffle=True)
    window = AccumulatedStep(
        model,
        loss=make_loss("mse"),
        optimizer=torch.optim.AdamW(model.parameters(), fused=True),
        precision=precision,
        scaler=precision.make_scaler(),
        gradient_clip=1.0,
        device=CPU,
        micro_batch_size=None,
    )
    return window, loader


def operators(architecture, num_snps, *, batch):
    window, loader = make_step(architecture, num_snps, batch=batch)
    window.run([next(iter(loader))])  # makes the optimiser's state
    with Operators() as counted:
        window.run([next(iter(loader))])
    return counted.calls


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_never_waits_for_the_device(architecture):
    calls = operators(architecture, 128, batch=4)
    # What reads a value on the host, or makes a shape of one.
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
    assert not waits & calls.keys()


@pytest.mark.parametrize("architecture, most", [("cnn", 240), ("cnn_transformer", 370), ("gnn", 450)])
def test_a_step_is_a_fixed_number_of_operators(architecture, most):
    small = operators(architecture, 128, batch=4)
    assert small == operators(architecture, 128, batch=16)
    # Tokens above a window's number would add those of the windows, once.
    assert small == operators(architecture, 1280, batch=4)
    views = ("view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "permute", "detach", "alias")
    assert sum(n for name, n in small.items() if name.split("::")[1] not in views) <= most


@pytest.mark.parametrize("num_snps", [128, 130])
def test_a_sample_moves_two_bits_a_genotype_and_its_target(num_snps):
    _, loader = make_step("cnn", num_snps, batch=4)
    moved = sum(tensor.nbytes for tensor in next(iter(loader)).tensors())
    assert moved == 4 * (math.ceil(num_snps / 4) + 4)


def peak_bytes(architecture, num_snps, *, batch, dtype, **options):
    model = InterpretableSNPModel(num_snps, architecture, linear="fitted", **{**SMALL, **options})
    genotypes = torch.zeros(batch, num_snps // 4, dtype=torch.uint8)
    profile = GPUMemoryManager(CPU).profile(model, Batch(genotypes, torch.zeros(batch)), dtype=dtype)
    return profile.peak_gib * GIB


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_memory_grows_in_a_line_with_snps_and_samples(architecture):
    def peak(num_snps, batch):
        return peak_bytes(architecture, num_snps, batch=batch, dtype=torch.bfloat16, window=16)

    # 8 to 32 windows of 16 tokens, and every one of them sees the means of all.
    first, second, third = (peak(num_snps, 16) for num_snps in (2048, 4096, 8192))
    assert third - second == pytest.approx(2 * (second - first), rel=0.1)
    first, second, third = (peak(2048, batch) for batch in (16, 32, 64))
    assert third - second == pytest.approx(2 * (second - first), rel=0.02)


def flops(num_snps, *, batch):
    model = InterpretableSNPModel(num_snps, "cnn_transformer", window=16, **SMALL).train()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(batch, num_snps // 4, dtype=torch.uint8)).sum().backward()
    return counter.get_total_flops()


def test_work_grows_in_a_line_with_snps_and_samples():
    # 16 to 64 windows of 16 tokens: the windows' means add less than a fifth.
    assert flops(16_384, batch=2) < 1.2 * 4 * flops(4096, batch=2)
    assert flops(4096, batch=8) == pytest.approx(4 * flops(4096, batch=2), rel=0.01)


def test_the_transformer_keeps_what_the_formula_says():
    batch, num_snps = 64, 4096
    tokens, width = num_snps / SMALL["patch"], SMALL["width"]
    values = tokens * width * batch
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        taken = peak_bytes("cnn_transformer", num_snps, batch=batch, dtype=dtype)
        # A layer keeps its residual stream and its norms' outputs (4 values of width), two masks of a byte,
        # queries, keys and values (3), attention's output (1) and the feed's two sides (8).
        layers = SMALL["num_layers"] * values * ((4 + 3 + 1 + 8) * size + 2)
        stem = 24 * num_snps * batch * size
        assert 0.7 * (layers + stem) < taken < 1.5 * (layers + stem)


def test_bf16_takes_little_more_than_half_of_fp32():
    fp32, bf16 = (
        peak_bytes("cnn_transformer", 4096, batch=64, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert bf16 / fp32 < 0.6
