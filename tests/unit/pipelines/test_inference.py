"""Logits batch by batch, and in smaller batches where memory runs out."""

import numpy as np
import pytest
import torch
from torch import nn

from snpdeconv.device import choose_precision
from snpdeconv.errors import ResourceError
from snpdeconv.pipelines.evaluation import logits

CPU = torch.device("cpu")


class Tight(nn.Module):
    """Sums its input, and has memory for so many samples only."""

    def __init__(self, room):
        super().__init__()
        self.room, self.seen = room, []

    def forward(self, genotypes, covariates=None):
        self.seen.append(len(genotypes))
        if len(genotypes) > self.room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return genotypes.sum(1, keepdim=True) + covariates


def outputs(model):
    packed = np.arange(44, dtype=np.uint8).reshape(11, 4)
    covariates = np.arange(11, dtype=np.float32)[:, None]
    precision = choose_precision(CPU, requested="fp32")
    found = logits(model, packed, covariates, batch_size=8, device=CPU, precision=precision)
    return found, packed.sum(1, keepdims=True) + covariates


def test_out_of_memory_halves_the_batch_and_gives_every_row_once(caplog):
    model = Tight(room=3)
    found, expected = outputs(model)
    assert np.array_equal(found, expected)
    assert model.seen == [8, 4, 2, 2, 2, 2, 2, 1]
    assert "out of memory with 8 samples at once; going on with 4" in caplog.text
    assert model.training


def test_no_memory_for_one_sample_is_a_clear_error():
    with pytest.raises(ResourceError, match=r"no memory for a single sample .*can't allocate memory"):
        outputs(Tight(room=0))
