from pathlib import Path

import pytest
import torch
from small_runs import assert_same_tensors
from torch import nn

from snpdeconv import GPUMemoryManager, InterpretableSNPModel
from snpdeconv.errors import ResourceError
from snpdeconv.training import memory
from snpdeconv.training.data import Batch
from snpdeconv.training.memory import GIB, MemoryLine

MIB = 2**20


class Hungry(nn.Module):
    """Holds 4 MiB a sample from its forward to its backward pass, and has 16 MiB of parameters."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2048, 2048))
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, genotypes):
        kept = (genotypes.float() * self.weight[0, 0]).expand(-1, MIB // 3 * 3).reshape(-1, 3, MIB // 3)
        held = torch.exp(kept)  # exp keeps its result for the backward pass
        return self.dropout(self.norm(held[:, :, :2])).mean(dim=(1, 2))[:, None] + held[:, 0, :1]


def make_batch(size):
    return Batch(torch.zeros(size, 1), torch.zeros(size))


@pytest.fixture
def manager():
    return GPUMemoryManager("cpu", safety=0.5)


def test_the_line_finds_what_a_sample_and_the_parameters_take(manager):
    line = manager.measure(1, dtype=torch.float32, model=Hungry(), make_batch=make_batch)
    # exp holds 4 MiB; in the backward pass its gradients are there too.
    assert 4 * MIB < line.per_sample_bytes < 20 * MIB
    # Two states of 16 MiB; the gradient comes when the activations are gone.
    assert line.fixed_bytes == pytest.approx(32 * MIB, rel=0.01)


@pytest.mark.parametrize("size", [12, 24])
def test_the_line_foretells_other_batches(manager, size):
    model = Hungry()
    line = manager.measure(1, dtype=torch.float32, model=model, make_batch=make_batch)
    peak = manager.profile(model, make_batch(size), dtype=torch.float32).peak_gib * GIB
    assert line.fixed_bytes + size * line.per_sample_bytes == pytest.approx(peak, rel=0.1)


def solved(monkeypatch, *, available, line=None, **options):
    line = MemoryLine(fixed_bytes=100.0, per_sample_bytes=10.0) if line is None else line
    monkeypatch.setattr(GPUMemoryManager, "measure", lambda self, *a, **k: line)
    monkeypatch.setattr(memory, "available_bytes", lambda device: available)
    monkeypatch.setattr(memory, "_HOST_OVERHEAD", 1.0)
    return GPUMemoryManager("cpu", safety=0.5).get_optimal_batch_size(1000, **options)


@pytest.mark.parametrize(
    "available, options, expected",
    [
        (1000, {}, 32),  # (500 - 100) / 10 = 40
        (1160, {}, 48),
        (222, {}, 1),
        (240, {}, 2),
        (260, {}, 3),
        (10**9, {}, 512),
        (10**9, {"max_batch": 100}, 96),
        (10**9, {"num_samples": 700}, 32),  # 43
        (10**9, {"num_samples": 3}, 1),
    ],
)
def test_the_batch_is_solved_for_memory_and_capped(monkeypatch, available, options, expected):
    assert solved(monkeypatch, available=available, **options) == expected


def test_not_even_one_sample(monkeypatch):
    with pytest.raises(ResourceError, match="one sample needs"):
        solved(monkeypatch, available=100)


def test_a_flat_line_is_no_division_by_zero():
    assert MemoryLine(fixed_bytes=0.0, per_sample_bytes=0.0).largest_batch(1000.0) == 1000


def test_the_range_goes_from_careful_to_bold(monkeypatch):
    line = MemoryLine(fixed_bytes=0.0, per_sample_bytes=10.0)
    monkeypatch.setattr(GPUMemoryManager, "measure", lambda self, *a, **k: line)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 4096)  # 2560 with the heap's holes
    sizes = GPUMemoryManager("cpu", safety=0.5).get_batch_size_range(1000)
    assert sizes == {"careful": 64, "balanced": 96, "bold": 128}


def test_measuring_disturbs_nothing(manager):
    model = Hungry().eval()
    model(torch.ones(2, 1)).sum().backward()
    gradient = model.weight.grad.clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    manager.measure(1, model=model, make_batch=make_batch)
    assert torch.equal(torch.rand(3), expected)
    assert_same_tensors(model.state_dict(), before)
    assert torch.equal(model.weight.grad, gradient)
    assert not model.training


def limited(model, above):
    def check(module, given, output):
        if len(given[0]) > above:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.register_forward_hook(check)
    return model


def test_running_out_while_measuring_is_an_upper_bound(manager):
    line = manager.measure(1, dtype=torch.float32, model=limited(Hungry(), 3), make_batch=make_batch)
    # One point alone: all of it is counted to the samples.
    assert line.fixed_bytes == 0
    assert line.per_sample_bytes > 4 * MIB
    with pytest.raises(ResourceError, match="batch of 2 samples"):
        manager.measure(1, dtype=torch.float32, model=limited(Hungry(), 1), make_batch=make_batch)
    with pytest.raises(RuntimeError, match="shape"):
        manager.measure(1, model=nn.Linear(7, 1), make_batch=make_batch)


def test_the_public_call_builds_and_measures_a_network(manager):
    options = {
        "encoding_dim": 2,
        "dtype": torch.float32,
        "width": 8,
        "num_layers": 1,
        "num_heads": 2,
        "num_covariates": 3,
    }
    assert manager.get_optimal_batch_size(256, max_batch=8, **options) == 8


def test_the_profile_of_a_network(manager):
    model = InterpretableSNPModel(256, "cnn", encoding_dim=2, channels=(4, 8))
    batch = Batch(torch.zeros(4, 64, dtype=torch.uint8), torch.zeros(4))
    profile = manager.profile(model, batch, dtype=torch.float32)
    parameters = sum(p.numel() for p in model.parameters()) * 4 / GIB
    assert profile.parameters_gib == pytest.approx(parameters)
    assert profile.optimizer_gib == pytest.approx(2 * parameters, rel=0.05)
    assert profile.peak_gib >= profile.backward_gib + profile.optimizer_gib


def test_the_snapshot_and_clearing(manager):
    manager.clear_cache()
    snapshot = manager.snapshot()
    assert 0.05 < snapshot["memory/used_gib"] < 30
    assert snapshot["memory/available_gib"] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_snps, batch", [(300, 300), (1500, 100)])
@pytest.mark.parametrize("architecture", ["cnn", "cnn_transformer", "gnn"])
def test_a_batch_takes_what_was_foretold(monkeypatch, manager, architecture, num_snps, batch, dtype):
    """Within a tenth; on AMX oneDNN packs an operand of small products in bfloat16, and of large ones not."""
    monkeypatch.setattr(memory, "_CLEAR_DIFFERENCE", 2 * MIB)  # these networks are small
    model = InterpretableSNPModel(num_snps, architecture, encoding_dim=2, width=32, num_layers=2)
    line = manager.measure(num_snps, dtype=dtype, model=model)
    genotypes = torch.zeros(batch, num_snps // 4, dtype=torch.uint8)
    peak = manager.profile(model, Batch(genotypes, torch.zeros(batch)), dtype=dtype).peak_gib * GIB
    packs = dtype == torch.bfloat16 and "amx_bf16" in Path("/proc/cpuinfo").read_text().split()
    assert 0.9 * peak < line.fixed_bytes + batch * line.per_sample_bytes < (1.2 if packs else 1.1) * peak
