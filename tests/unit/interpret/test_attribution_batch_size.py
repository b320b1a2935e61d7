"""People at once: a cache's worth on a CPU; on a GPU what memory holds by what a few of them took."""

import pytest
import torch

from snpdeconv.device import Allocations
from snpdeconv.interpret import attribution
from snpdeconv.interpret.attribution import attribution_batch_size, bytes_per_sample, integrated_gradients
from snpdeconv.models.model import ARCHITECTURES, InterpretableSNPModel
from snpdeconv.training.data import PackedLoader

CPU = torch.device("cpu")


def network(architecture="cnn", n_snps=256):
    torch.manual_seed(0)
    model = InterpretableSNPModel(n_snps, architecture, encoding_dim=2, num_covariates=2, width=16)
    return model, torch.randint(0, 256, (24, n_snps // 4), dtype=torch.uint8), torch.randn(24, 2)


def test_on_a_cpu_fewer_people_of_more_slots():
    sizes = [
        attribution_batch_size(*network(n_snps=n), device=CPU, safety=0.85)
        for n in (256, 2048, 2 * attribution.SLOTS_AT_ONCE)
    ]
    assert sizes == [512, 64, 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_measured_with_two_people_holds_for_many(architecture):
    model, packed, covariates = network(architecture)
    each = bytes_per_sample(model.train(), packed[:2], covariates[:2], device=CPU)
    assert model.training
    loader = PackedLoader(packed, torch.zeros(24), covariates, batch_size=24)
    integrated_gradients(model, loader, kind="quantitative", device="cpu", steps=2)
    with Allocations(CPU) as taken:
        integrated_gradients(model, loader, kind="quantitative", device="cpu", steps=2)
        taken.end_phase()
    assert 0.3 * 24 * each < taken.peak_bytes[0] < 1.1 * 24 * each


def test_on_a_gpu_as_many_as_memory_holds_at_what_each_takes(monkeypatch):
    monkeypatch.setattr(attribution, "bytes_per_sample", lambda *_, device: 3 * 2**20)
    monkeypatch.setattr(attribution, "available_bytes", lambda device: 2**30)
    model, packed, covariates = network()
    ask = {"device": torch.device("cuda"), "safety": 0.5}
    assert attribution_batch_size(model, packed[:2], covariates[:2], **ask) == 512 // 3
    monkeypatch.setattr(attribution, "available_bytes", lambda device: 0)
    assert attribution_batch_size(model, packed[:2], covariates[:2], **ask) == 1
