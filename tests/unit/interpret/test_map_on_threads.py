"""Batches on threads of their own: in order, a few at a time, and the number of threads as it was."""

import threading

import pytest
import torch

from snpdeconv.interpret.attribution import attention_scores, integrated_gradients, map_on_threads
from snpdeconv.models.model import ARCHITECTURES, InterpretableSNPModel
from snpdeconv.training.data import PackedLoader


@pytest.fixture(params=[1, 3])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_items_are_taken_as_needed(num_threads):
    taken, threads = [], set()

    def items():
        for number in range(40):
            taken.append(number)
            yield number

    def work(number):
        threads.add(threading.get_ident())
        assert torch.get_num_threads() == 1
        return number**2

    found = map_on_threads(work, items(), device="cpu")
    assert next(found) == 0
    assert len(taken) == (1 if num_threads == 1 else 2 * num_threads)
    assert list(found) == [number**2 for number in range(1, 40)]
    assert torch.get_num_threads() == num_threads
    assert (threading.get_ident() in threads) == (num_threads == 1)


def test_an_error_reaches_the_caller(num_threads):
    def work(number):
        raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match="number 0"):
        list(map_on_threads(work, range(9), device="cpu"))
    assert torch.get_num_threads() == num_threads


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attributions_are_the_same_on_one_thread_and_on_three(architecture):
    torch.manual_seed(0)
    model = InterpretableSNPModel(128, architecture, encoding_dim=4, width=16)
    packed = torch.randint(0, 256, (30, 32), dtype=torch.uint8)
    loader = PackedLoader(packed, torch.zeros(30), batch_size=7)
    before, found = torch.get_num_threads(), {}
    for number in (1, 3):
        torch.set_num_threads(number)
        found[number] = (
            integrated_gradients(model, loader, kind="binary", device="cpu", steps=3),
            attention_scores(model, loader, device="cpu"),
        )
    torch.set_num_threads(before)
    for one, other in zip(found[1], found[3], strict=True):
        assert other.score == pytest.approx(one.score, rel=1e-5)
        if one.completeness_gap is not None:
            assert other.completeness_gap == pytest.approx(one.completeness_gap, rel=1e-3)
        assert other.num_samples == one.num_samples == 30
