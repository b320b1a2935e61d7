"""With one process every answer is immediate; several are tested with gloo in tests/integration."""

import pytest
import torch

from snpdeconv import device
from snpdeconv.errors import ConfigError
from snpdeconv.training import distributed

CPU = torch.device("cpu")


def test_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    placement = distributed.init_from_environment()
    assert (placement.rank, placement.world_size) == (0, 1)
    assert distributed.is_first()
    rows = torch.arange(6).reshape(3, 2)
    assert distributed.sum_over_ranks(rows) is rows
    assert distributed.min_over_ranks(3, CPU) == 3
    assert distributed.any_rank(True, CPU)
    assert not distributed.any_rank(False, CPU)
    assert distributed.gather_objects("a") == ["a"]
    assert distributed.from_first_rank("a") == "a"
    model = torch.nn.Linear(1, 1)
    assert distributed.data_parallel(model, CPU) is model
    assert distributed.all_or_none_do(lambda: "a") == "a"
    distributed.shut_down()


def test_the_gpu_is_that_of_the_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device.default_device() == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.default_device() == CPU


@pytest.mark.parametrize("value", ["two", "-1", "9" * 5000, "1.5"])
def test_what_is_no_number_of_ranks_is_refused(monkeypatch, value):
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(ConfigError, match=r"^WORLD_SIZE: .* is no number; unset it"):
        distributed.init_from_environment()
