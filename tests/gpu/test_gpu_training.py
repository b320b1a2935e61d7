"""Training of every network on its fitted part, what interrupts it, and what it is asked afterwards."""

import os

import numpy as np
import pytest
import torch
from gpu_work import NUM_SAMPLES, cohort, make_model, make_trainer

from snpdeconv.device import choose_precision, deterministic
from snpdeconv.interpret.attribution import attention_scores, integrated_gradients
from snpdeconv.models.linear import fit_linear
from snpdeconv.models.model import ARCHITECTURES, GPUOptimizedSNPModel
from snpdeconv.training.data import Batch, PackedLoader
from snpdeconv.training.memory import GPUMemoryManager
from snpdeconv.training.preemption import Preempted
from snpdeconv.training.trainer import MultiGPUSNPTrainer


def fitted_and_trained(architecture, device, *, epochs=4):
    """A network on its fitted part, trained as the command does, and its history."""
    num_samples = 240
    packed, trait, covariates = cohort(num_samples)
    model = make_model(architecture, num_covariates=2, linear="fitted", dropout=0.2).to(device)
    torch.nn.init.normal_(model.head.out.weight, std=1e-3)
    train, val = torch.arange(200), torch.arange(200, num_samples)
    fit = fit_linear(model, packed[:200], trait[:200], covariates[:200], kind="quantitative")
    given = torch.cat([covariates, torch.zeros(num_samples, 1)], dim=1)
    given[:200, 2:] = fit.offset
    precision = choose_precision(torch.device(device))
    wrapped = GPUOptimizedSNPModel(
        model, use_amp=precision.dtype is not None, amp_dtype=precision.dtype or torch.bfloat16
    )
    where = torch.device(device)
    trainer = MultiGPUSNPTrainer(
        wrapped,
        PackedLoader(packed, trait, given, rows=train, batch_size=32, shuffle=True, device=where),
        PackedLoader(packed, trait, covariates, rows=val, batch_size=32, device=where),
        use_amp=precision.dtype is not None,
        amp_dtype=precision.dtype or torch.bfloat16,
        loss="mse",
        learning_rate=1e-3,
        device=device,
        validate_before_training=True,
    )
    return model, trainer, trainer.train(epochs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_is_trained_on_its_fitted_part_to_the_end(architecture, device):
    model, trainer, history = fitted_and_trained(architecture, device)
    assert history["epoch"] == [1, 2, 3, 4]
    assert np.isfinite(history["train_loss"] + history["val_loss"]).all()
    packed, trait, covariates = cohort(240)
    spread = float(trait[200:].var(correction=0))
    assert trainer.start["val_loss"] < 0.8 * spread  # the fitted part foretells people left out
    kept = min([trainer.start["val_loss"], *history["val_loss"]])
    with torch.no_grad():
        predicted = model.eval()(packed[200:].to(device), covariates[200:].to(device))[:, 0].cpu()
    assert float((predicted - trait[200:]).square().mean()) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_says_which_snps_it_looks_at(architecture, device):
    model, _, _ = fitted_and_trained(architecture, device, epochs=1)
    packed, trait, covariates = cohort(48)
    loader = PackedLoader(packed, trait, covariates, batch_size=16)
    attention = attention_scores(model, loader, device=device)
    assert attention.score.sum() == pytest.approx(1, abs=1e-4)
    gradients = integrated_gradients(model, loader, kind="quantitative", device=device, steps=16)
    assert gradients.completeness_gap < 0.05
    assert set(np.argsort(-gradients.score)[:2]) == {5, 70}
    if device != "cpu":
        on_cpu = integrated_gradients(model.cpu(), loader, kind="quantitative", device="cpu", steps=16)
        np.testing.assert_allclose(gradients.score, on_cpu.score, rtol=1e-3, atol=1e-5)


def state_of(trainer, folder, device, **options):
    with deterministic(torch.device(device), wanted=True):
        history = trainer.train(3, 10, folder, **options)
    weights = {name: value.cpu() for name, value in trainer.model.state_dict().items()}
    return {name: values for name, values in history.items() if "loss" in name}, weights


def assert_same(first, second):
    assert first[0] == second[0]
    for name, value in first[1].items():
        assert torch.equal(value, second[1][name]), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_goes_on_bit_for_bit_where_it_was_stopped(architecture, device, tmp_path):
    def trainer(**options):
        return make_trainer(make_model(architecture, dropout=0.3), device, **options)

    whole = state_of(trainer(), tmp_path / "whole", device)
    steps = iter(range(100))
    stopped = trainer(should_stop=lambda: next(steps) == 4)  # in the middle of the second epoch
    with pytest.raises(Preempted):
        state_of(stopped, tmp_path / "both", device)
    assert_same(state_of(trainer(), tmp_path / "both", device), whole)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_repeats_bit_for_bit(architecture, device, tmp_path):
    runs = [
        state_of(make_trainer(make_model(architecture, dropout=0.3), device), tmp_path / str(i), device)
        for i in range(2)
    ]
    assert_same(*runs)


def test_what_makes_it_repeat_is_set_for_the_training_alone(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    with deterministic(torch.device("cuda", 0), wanted=True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    now = torch.are_deterministic_algorithms_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    assert now == before == (False, True)


@pytest.mark.parametrize(
    "architecture, device",
    [
        ("cnn_transformer", "cpu"),
        *(pytest.param(name, "cuda", marks=pytest.mark.gpu) for name in ARCHITECTURES),
    ],
    indirect=["device"],
)
def test_compiled_once_and_not_again(architecture, device):
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    model = make_model(architecture)
    if device == "cpu":  # a compiler for C++ may be missing: graphs are made, and run as they are
        model.compile(backend=counter)
    else:
        model.compile()

    def num_graphs():
        return counter.frame_count or torch._dynamo.utils.counters["stats"]["unique_graphs"]

    make_trainer(model, device).train(1)
    made = num_graphs()
    assert made > 0
    make_trainer(model, device).train(2)  # the same sizes again, the smaller last batch among them
    assert num_graphs() == made
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tenth_of_the_memory_is_enough_in_smaller_pieces(architecture, device):
    """As many samples go through the model at once as fit, and the batch stays what it was."""
    where = torch.device(device)
    num_snps = 96 if device == "cpu" else 100_000
    sizes = {} if device == "cpu" else {"width": 256, "num_layers": 4, "channels": (64, 128), "patch": 64}
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.1, where)
    try:
        model = make_model(architecture, num_snps=num_snps, **sizes).to(where)
        batch = 16 if device == "cpu" else 4096
        packed = torch.zeros(batch, num_snps // 4, dtype=torch.uint8)
        manager = GPUMemoryManager(where, safety=0.85)
        fits = manager.get_optimal_batch_size(num_snps, 2, torch.float32, model=model, max_batch=batch)
        assert 1 <= fits <= batch
        if device == "cpu":
            lacks_memory(model, above=5)
        trainer = MultiGPUSNPTrainer(
            model,
            [Batch(packed, torch.ones(batch))],
            [Batch(packed[:4], torch.ones(4))],
            use_amp=False,
            loss="mse",
            device=where,
        )
        run = trainer._start(1, checkpoint_dir=None, resume_from=None)
        trainer._parallel.train()
        result = run.window.run([Batch(packed, torch.ones(batch))])
        assert result.num_samples == batch
        assert run.window.micro_batch_size is not None
        assert run.window.micro_batch_size < batch
    finally:
        if device != "cpu":
            torch.cuda.set_per_process_memory_fraction(1.0, where)
            torch.cuda.empty_cache()


def lacks_memory(model, *, above):
    def check(module, given, output):
        if module.training and len(given[0]) > above:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model.register_forward_hook(check)


def test_batches_sent_ahead_are_those_of_a_cohort_on_the_device(device):
    packed, trait, covariates = cohort()
    how = {"batch_size": 16, "shuffle": True, "seed": 2, "device": torch.device(device)}
    for epoch in range(3):
        sent = PackedLoader(packed, trait, covariates, **how)
        there = PackedLoader(packed.to(device), trait, covariates, **how)
        for loader in (sent, there):
            loader.set_epoch(epoch)
        ours, theirs = (
            [[tensor.cpu() for tensor in batch.tensors()] for batch in loader] for loader in (sent, there)
        )
        assert sum(len(batch[0]) for batch in ours) == NUM_SAMPLES
        for one, other in zip(ours, theirs, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
