"""Each test here runs on the CPU by default, and on a GPU with `pytest -m gpu`."""

import pytest


def needs_gpu():
    """Skips where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Where the test computes."""
    if request.param == "cuda":
        needs_gpu()
    return request.param


@pytest.fixture(params=["simulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request):
    """A GPU's name; of one that is simulated where there is none, for work without gradients."""
    if request.param == "cuda":
        needs_gpu()
        yield "cuda:0"
        return
    from simulated_gpu import simulated_gpu

    with simulated_gpu() as device:
        yield str(device)
