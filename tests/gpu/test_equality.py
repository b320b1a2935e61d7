"""However a batch is cut, into pieces or over ranks, every network's losses are those of the whole batch."""

import json
import multiprocessing
import socket

import pytest
import torch
from gpu_work import losses_of, make_model, train_on_ranks

from snpdeconv.models.model import ARCHITECTURES


@pytest.fixture(scope="module")
def whole():
    """Losses without pieces and ranks, by architecture and device; computed once."""
    known = {}

    def of(architecture, device):
        if (architecture, device) not in known:
            known[architecture, device] = losses_of(make_model(architecture), device)
        return known[architecture, device]

    return of


@pytest.mark.parametrize("micro_batch_size", [1, 2, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pieces_give_the_losses_of_whole_batches(architecture, micro_batch_size, device, whole):
    losses = losses_of(make_model(architecture), device, micro_batch_size=micro_batch_size)
    assert len(losses) == 3 + 3 + 2 + 2
    assert losses == pytest.approx(whole(architecture, device), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_gpu_gives_the_losses_of_the_cpu(architecture, gpu, whole):
    assert losses_of(make_model(architecture), gpu) == pytest.approx(whole(architecture, "cpu"), rel=1e-4)


def test_two_ranks_give_the_losses_of_one(device, whole, tmp_path):
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip(f"two ranks by NCCL need two GPUs, and {torch.cuda.device_count()} is here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    context = multiprocessing.get_context("spawn" if device == "cuda" else "forkserver")
    if device == "cpu":
        context.set_forkserver_preload(["torch._dynamo", "snpdeconv.training.trainer"])
    ranks = [
        context.Process(
            target=train_on_ranks,
            args=(tmp_path, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, device),
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
        assert [rank.exitcode for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    found = json.loads((tmp_path / "losses-0.json").read_text())
    for architecture in ARCHITECTURES:
        expected = whole(architecture, device)
        # Steps are logged by the first rank alone, and are of all ranks' samples.
        assert found[architecture] == pytest.approx(expected, rel=1e-5, abs=1e-5), architecture
