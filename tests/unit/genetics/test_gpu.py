import numpy as np
import torch

from snpdeconv.genetics.gpu import pick_device
from snpdeconv.genetics.packed import PackedGenotypes

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def test_a_cohort_that_a_gpu_does_not_hold_is_worked_on_by_the_cpu(monkeypatch, caplog):
    cohort = PackedGenotypes(np.zeros((100, 10), dtype=np.uint8), 40)
    free = [2000]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0] - 1000, 10**9))
    # What torch holds and nobody uses is free too.
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 500)
    share = [1.0]
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share[0])
    assert pick_device(cohort, GPU) == GPU
    assert not caplog.text
    share[0] = 2.4e-6  # of 10**9 bytes, of which torch holds 1500 already
    assert pick_device(cohort, GPU) == CPU
    share[0], free[0] = 1.0, 1999
    assert pick_device(cohort, GPU) == CPU
    assert "computed on the CPU" in caplog.text
    assert pick_device(cohort, CPU) == CPU
