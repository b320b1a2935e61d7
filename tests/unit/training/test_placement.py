import threading

import numpy as np
import pytest
import torch

from snpdeconv.training import data
from snpdeconv.training.data import Batch, PackedLoader, place_genotypes, sent_ahead

CPU = torch.device("cpu")


def batches(num, *, drawn):
    for i in range(num):
        drawn.append(i)
        yield Batch(torch.full((2, 3), i, dtype=torch.uint8), torch.full((2,), float(i)))


def no_thread_is_left():
    return all(thread.name != "batches ahead" for thread in threading.enumerate())


def test_the_same_batches_in_the_same_order():
    sent = list(sent_ahead(batches(9, drawn=[]), device=CPU))
    assert [int(batch.target[0]) for batch in sent] == list(range(9))
    assert no_thread_is_left()


def test_leaving_early_ends_the_thread_and_it_never_runs_far_ahead():
    drawn = []
    sent = sent_ahead(batches(1000, drawn=drawn), device=CPU)
    next(sent)
    sent.close()
    assert no_thread_is_left()
    # One given, two waiting, one in the thread's hand, one drawn while it learnt that it is over.
    assert len(drawn) <= 5


def test_what_the_thread_meets_is_raised_here():
    def broken():
        yield from batches(1, drawn=[])
        raise OSError(5, "Input/output error", "genotypes.bin")

    sent = sent_ahead(broken(), device=CPU)
    assert int(next(sent).target[0]) == 0
    with pytest.raises(OSError, match=r"genotypes\.bin"):
        next(sent)
    assert no_thread_is_left()


def test_a_loader_sends_from_where_genotypes_are_to_where_batches_are_wanted(tmp_path):
    # "meta" stands for another device: it takes copies, which is all that is asked of it.
    packed = np.memmap(tmp_path / "genotypes.bin", dtype=np.uint8, mode="w+", shape=(10, 4))
    loader = PackedLoader(
        torch.from_numpy(packed), torch.zeros(10), batch_size=4, shuffle=True, device=torch.device("meta")
    )
    sent = list(loader)
    assert [batch.genotypes.shape for batch in sent] == [(4, 4), (4, 4), (2, 4)]
    assert {batch.genotypes.device.type for batch in sent} == {"meta"}
    assert len(list(loader.batches(skip=2))) == 1


@pytest.mark.parametrize("free, expected", [(1000, "meta"), (799, "cpu")])
def test_genotypes_live_on_a_device_that_holds_twice_their_bytes(monkeypatch, free, expected):
    monkeypatch.setattr(data, "available_bytes", lambda device: free)
    packed = np.zeros((100, 4), dtype=np.uint8)
    assert place_genotypes(packed, device=torch.device("meta")).device.type == expected


def test_on_the_host_nothing_is_copied(tmp_path):
    packed = np.memmap(tmp_path / "genotypes.bin", dtype=np.uint8, mode="w+", shape=(10, 4))
    placed = place_genotypes(packed, device=CPU)
    packed[3, 2] = 7
    assert placed[3, 2] == 7
