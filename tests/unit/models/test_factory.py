from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from snpdeconv.errors import ConfigError
from snpdeconv.models.model import (
    GPUOptimizedSNPModel,
    InterpretableSNPModel,
    create_gpu_optimized_model,
    create_multi_gpu_model,
)

Make = Callable[..., Any]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_the_factory_passes_sizes_on_and_runs_in_half_precision(genotypes: Make):
    model = create_gpu_optimized_model(100, 8, "cnn", num_outputs=3, channels=(6, 9), width=16)

    logits = model(genotypes())

    assert isinstance(model, GPUOptimizedSNPModel)
    assert (model.use_amp, model.amp_dtype) == (True, torch.bfloat16)
    assert model.config["architecture"] == "cnn"
    assert logits.shape == (6, 3)
    assert logits.dtype == torch.float32


def test_the_wrapper_gives_what_the_base_gives(architecture: str, small: Make, genotypes: Make):
    base = small(architecture, num_covariates=1).eval()
    model = GPUOptimizedSNPModel(base, use_amp=False)
    codes, covariates = genotypes(), torch.randn(6, 1)

    assert torch.equal(model(codes, covariates), base(codes, covariates))
    assert torch.equal(model.encode(codes), base.encode(codes))
    assert torch.equal(model.forward_encoded(base.encode(codes), covariates), base(codes, covariates))
    assert torch.equal(model.attention(codes), base.attention(codes))


def test_half_precision_is_used_only_where_asked(small: Make, genotypes: Make):
    base = small("cnn_transformer").eval()
    codes = genotypes()

    full = base(codes)
    half = GPUOptimizedSNPModel(base, True, torch.bfloat16)(codes)

    assert not torch.equal(half, full)
    assert (half - full).abs().max() < 0.05 * full.std()
    assert torch.equal(GPUOptimizedSNPModel(base, use_amp=False)(codes), full)


def test_the_wrappers_checkpointing_becomes_the_models(small: Make):
    base = small("cnn")

    GPUOptimizedSNPModel(base)
    assert not base.body.checkpoint_activations
    GPUOptimizedSNPModel(base, checkpoint_activations=True)
    assert base.body.checkpoint_activations
    assert base.config["checkpoint_activations"] is True


def test_full_precision_is_no_precision_of_autocast(small: Make):
    with pytest.raises(ConfigError, match=r"amp_dtype: torch.float32"):
        GPUOptimizedSNPModel(small("cnn"), True, torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compilation_changes_neither_outputs_nor_gradients(
    architecture: str, checkpointed: bool, small: Make, genotypes: Make
):
    base = small(architecture, encoding_dim=2, dropout=0.0)
    compiled = GPUOptimizedSNPModel(
        InterpretableSNPModel(**base.config), use_amp=False, compile=True, checkpoint_activations=checkpointed
    )
    compiled.base.load_state_dict(base.state_dict())
    codes = genotypes()

    for model in (base, compiled):
        model(codes).square().sum().backward()

    for (name, p), q in zip(base.named_parameters(), compiled.base.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-4, rtol=1e-3, msg=name)
    torch.testing.assert_close(compiled.eval()(codes), base.eval()(codes), atol=1e-4, rtol=1e-3)
    assert set(compiled.base.state_dict()) == set(base.state_dict())


def test_without_a_process_group_the_model_stays_in_this_process(
    small: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    model = small("cnn")

    with caplog.at_level(logging.INFO):
        assert create_multi_gpu_model(model, [0, 1, 2, 3]) is model

    assert "no GPU and no process group" in caplog.text


def test_a_process_group_gets_a_distributed_model(
    process_group: None, small: Make, genotypes: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    alone = small("cnn", dropout=0.0)
    shared = create_multi_gpu_model(small("cnn", dropout=0.0))
    codes = genotypes()

    for model in (alone, shared):
        model(codes).square().sum().backward()

    assert isinstance(shared, torch.nn.parallel.DistributedDataParallel)
    for p, q in zip(alone.parameters(), shared.module.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad)


@pytest.mark.parametrize("gpu_ids", [[0, 1, 2, 3], [0, 5], []])
def test_gpus_that_are_not_there_are_an_error(
    gpu_ids: list[int], small: Make, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    with pytest.raises(ConfigError, match=r"gpu_ids: GPUs \[.*\] asked for, 2 visible; choose from \[0, 1\]"):
        create_multi_gpu_model(small("cnn"), gpu_ids)


def test_each_process_takes_the_gpu_of_its_local_rank(
    process_group: None, small: Make, monkeypatch: pytest.MonkeyPatch
):
    # No GPU here: the moves are recorded instead of made.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "1")
    model = small("cnn")
    moved: list[torch.device] = []
    monkeypatch.setattr(model, "to", lambda device: moved.append(torch.device(device)) or model)
    monkeypatch.setattr(
        "snpdeconv.models.model.DistributedDataParallel",
        lambda m, device_ids, broadcast_buffers: (m, device_ids, broadcast_buffers),
    )

    assert create_multi_gpu_model(model, [2, 3]) == (model, [torch.device("cuda:3")], False)
    assert moved == [torch.device("cuda:3")]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match=r"process 2 of this machine has no GPU among \[2, 3\]"):
        create_multi_gpu_model(model, [2, 3])


def test_one_process_uses_the_first_gpu_alone(
    small: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    model = small("cnn")
    moved: list[str] = []
    monkeypatch.setattr(model, "to", lambda device: moved.append(device) or model)

    with caplog.at_level(logging.INFO):
        assert create_multi_gpu_model(model, [1, 2]) is model

    assert moved == ["cuda:1"]
    assert "GPU 1 alone" in caplog.text
