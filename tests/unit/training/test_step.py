import logging
from collections import Counter

import pytest
import torch
from small_runs import assert_same_tensors, cohort, make_network
from torch.utils._python_dispatch import TorchDispatchMode

from snpdeconv.device import choose_precision, is_out_of_memory
from snpdeconv.errors import TrainingError
from snpdeconv.training.data import Batch
from snpdeconv.training.step import AccumulatedStep, LossMeter, make_loss

CPU = torch.device("cpu")


def make_step(model, *, micro_batch_size=None, gradient_clip=None, requested="fp32", rate=0.1, loss="focal"):
    precision = choose_precision(CPU, requested=requested)
    return AccumulatedStep(
        model,
        loss=make_loss(loss),
        optimizer=torch.optim.SGD(model.parameters(), lr=rate),
        precision=precision,
        scaler=precision.make_scaler(),
        gradient_clip=gradient_clip,
        device=CPU,
        micro_batch_size=micro_batch_size,
    )


def network(**options):
    return make_network(dropout=options.pop("dropout", 0.0), **options).double().train()


def batches(*sizes):
    x, y = cohort(sum(sizes), dtype=torch.float64)
    return [Batch(*parts) for parts in zip(x.split(sizes), y.split(sizes), strict=True)]


@pytest.mark.parametrize("loss", ["focal", "cross_entropy", "mse"])
@pytest.mark.parametrize("sizes, micro_batch_size", [((4, 4, 3), None), ((11,), 1), ((11,), 4), ((5, 6), 2)])
def test_however_a_window_is_cut_the_step_is_that_of_one_batch(loss, sizes, micro_batch_size):
    whole, cut = network(), network()
    expected = make_step(whole, loss=loss).run(batches(11))
    result = make_step(cut, loss=loss, micro_batch_size=micro_batch_size).run(batches(*sizes))
    assert result.num_samples == expected.num_samples == 11
    torch.testing.assert_close(result.loss_sum, expected.loss_sum, rtol=1e-12, atol=0)
    for (name, a), b in zip(whole.named_parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15, msg=name)


def test_the_step_is_the_gradient_of_the_mean_loss():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    window = batches(4, 3)
    x, y = (torch.cat([getattr(b, part) for b in window]) for part in ("genotypes", "target"))
    gradients = torch.autograd.grad(make_loss("focal")(model(x), y).mean(), list(model.parameters()))
    make_step(model, rate=0.5).run(window)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter, before[name] - 0.5 * gradient, rtol=1e-12, atol=1e-15)


def test_gradients_are_clipped_after_accumulation():
    model = network()
    before = {name: value.clone() for name, value in model.named_parameters()}
    result = make_step(model, gradient_clip=1e-3, rate=1.0).run(batches(4, 4))
    assert result.gradient_norm > 1e-3
    moved = torch.cat([(value - before[name]).detach().flatten() for name, value in model.named_parameters()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def break_memory(model, *, above, error):
    """Lets every forward pass of more than `above` samples run out of memory, after the model has changed."""
    seen = []

    def check(module, given, output):
        seen.append(len(given[0]))
        if len(given[0]) > above:
            raise error

    model.register_forward_hook(check)
    return seen


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu"])
def test_out_of_memory_halves_and_repeats_the_window_as_if_it_had_never_happened(error, caplog):
    options = {"dropout": 0.5, "has_norm": True}
    failing, calm = network(**options), network(**options)
    seen = break_memory(failing, above=3, error=error)
    steps = make_step(failing), make_step(calm, micro_batch_size=2)
    torch.manual_seed(9)
    with caplog.at_level(logging.WARNING):
        first = steps[0].run(batches(8, 6))
    assert seen == [8, 4, 2, 2, 2, 2, 2, 2, 2]
    assert "out of memory with 8 samples" in caplog.text
    torch.manual_seed(9)
    second = steps[1].run(batches(8, 6))
    assert steps[0].micro_batch_size == 2
    assert torch.equal(first.loss_sum, second.loss_sum)
    assert_same_tensors(failing.state_dict(), calm.state_dict())


def test_out_of_memory_in_the_backward_pass_of_a_later_piece_leaves_no_gradient_behind():
    failing, calm = network(), network()
    calls = Counter()

    def check(gradient):
        calls["backward"] += 1
        if calls["backward"] == 2:
            raise ERRORS[1]

    failing.last.weight.register_hook(check)
    first = make_step(failing, micro_batch_size=6)
    first.run(batches(12))
    assert first.micro_batch_size == 3
    make_step(calm, micro_batch_size=3).run(batches(12))
    assert_same_tensors(failing.state_dict(), calm.state_dict())


def test_no_memory_for_one_sample_is_a_clear_error():
    model = network()
    seen = break_memory(model, above=0, error=ERRORS[0])
    with pytest.raises(TrainingError, match=r"single sample .*20.00 GiB"):
        make_step(model).run(batches(5))
    assert seen == [5, 2, 1]


def test_no_memory_for_the_optimiser_is_a_clear_error_and_other_errors_of_it_pass(monkeypatch):
    step = make_step(network())
    error = torch.OutOfMemoryError("CUDA out of memory")

    def fail():
        raise error

    monkeypatch.setattr(step._optimizer, "step", fail)
    with pytest.raises(TrainingError, match="optimiser's state"):
        step.run(batches(5))
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        step.run(batches(5))


def test_other_errors_pass():
    model = network()
    break_memory(model, above=0, error=RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        make_step(model).run(batches(5))
    assert not is_out_of_memory(ValueError("out of memory"))


class CountReads(TorchDispatchMode):
    """Counts how often a tensor's value is read back to Python, which on a GPU waits for the device."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_reads_nothing_back():
    model = make_network().train()
    step, meter = make_step(model, gradient_clip=1.0, micro_batch_size=3), LossMeter(CPU)
    window = [Batch(*cohort(8)), Batch(*cohort(5))]
    with CountReads() as count:
        meter.add(step.run(window), step=1)
    assert count.reads == 0
    with CountReads() as count:  # the counter can count
        loss_sum = meter.epoch().loss_sum
        torch.tensor(loss_sum).item()
    assert count.reads > 0


def test_fp16_scales_and_an_overflow_skips_the_step():
    model = make_network(dropout=0.0).train()
    step = make_step(model, requested="fp16", gradient_clip=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step._scaler._init_scale = 2.0**40  # overflows fp16 in the backward pass
    step.run([Batch(*cohort(8))])
    assert_same_tensors(before, model.state_dict())
    for _ in range(30):
        step.run([Batch(*cohort(8))])
    assert not torch.equal(before["first.weight"], model.first.weight)
    assert step._scaler.get_scale() < 2.0**40
