"""Each test here runs on the CPU by default, and on a GPU with `pytest -m gpu`."""

import pytest


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Where the test computes."""
    if request.param == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU here")
    return str(request.param)
