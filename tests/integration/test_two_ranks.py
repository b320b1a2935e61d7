"""Two processes with gloo train as one does: same weights, same losses, same metrics."""

import json
import multiprocessing
import socket
from functools import partial

import pytest
import torch
from two_ranks_worker import agree_on_precision, prepare_alike, share, train

from snpdeconv.training.checkpoint import newest_checkpoint, read_state


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(scenario, folder, *, world, exit_codes=(0, 0)):
    """Starts the ranks as torchrun would and returns each one's result."""
    folder.mkdir(exist_ok=True)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    # One server imports torch once; every rank is a process that it forks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "snpdeconv.training.trainer"])
    processes = [
        context.Process(
            target=scenario if callable(scenario) else partial(train, scenario),
            args=(folder, shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}),
        )
        for rank in range(world)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == list(exit_codes[:world])
    finally:
        for process in processes:
            process.kill()
    results = (folder / f"result-{world}-{rank}.json" for rank in range(world))
    return [json.loads(path.read_text()) for path in results if path.is_file()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    results = {}

    def of(scenario):
        if scenario not in results:
            folder = tmp_path_factory.mktemp(scenario)
            (result,) = run(scenario, folder, world=1)
            results[scenario] = result, torch.load(folder / "model-1-0.pt")
        return results[scenario]

    return of


def assert_like_one(results, folder, expected):
    result, weights = expected
    for rank, two in enumerate(results):
        ours = torch.load(folder / f"model-2-{rank}.pt")
        for name, value in weights.items():
            torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-13)
        for name, values in result["history"].items():
            assert two["history"][name] == pytest.approx(values, abs=1e-6), name
    assert [step for step, _ in results[0]["logged"]] == [step for step, _ in result["logged"]]
    for (_, ours), (_, theirs) in zip(results[0]["logged"], result["logged"], strict=True):
        for name in ("train/loss", "train/gradient_norm", "val/rows", "val/product"):
            assert ours.get(name) == pytest.approx(theirs.get(name), abs=1e-6)


@pytest.mark.parametrize("scenario", ["plain", "accumulation"])
def test_two_ranks_equal_one(scenario, tmp_path, alone):
    results = run(scenario, tmp_path, world=2)
    assert_like_one(results, tmp_path, alone(scenario))
    assert results[0]["history"]["val_rows"] == [9.0] * 3
    assert results[1]["logged"] == []
    files = sorted(path.name[:4] for path in (tmp_path / "checkpoints").iterdir())
    assert files == ["best", "last", "last"]


def test_one_rank_goes_on_where_two_stopped(tmp_path):
    stopped = run("stop", tmp_path, world=2)
    assert [result["stopped"] for result in stopped] == [10, 10]
    (resumed,) = run("plain", tmp_path, world=1)
    (whole,) = run("plain", tmp_path / "whole", world=1)
    for name, values in whole["history"].items():
        assert resumed["history"][name] == pytest.approx(values, abs=1e-6), name


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_go_on_bit_for_bit_each_with_its_own_dropout(world, tmp_path):
    ranks = {"world": world, "exit_codes": (0,) * world}
    run("stop_dropout", tmp_path / "both", **ranks)
    resumed = run("dropout", tmp_path / "both", **ranks)
    whole = run("dropout", tmp_path / "whole", **ranks)
    for ours, theirs in zip(resumed, whole, strict=True):
        for name, values in theirs["history"].items():  # sums of losses in float64, begun by other ranks
            assert ours["history"][name] == pytest.approx(values, rel=1e-15), name
    for rank in range(world):
        ours, theirs = (
            torch.load(tmp_path / name / f"model-{world}-{rank}.pt") for name in ("both", "whole")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # The first step after a stop would show in the last bits of the gradients' means, and there only.
    ours, theirs = (
        read_state(newest_checkpoint(tmp_path / name / "checkpoints")) for name in ("both", "whole")
    )
    for state, expected in zip(*(one.optimizer["state"].values() for one in (ours, theirs)), strict=True):
        assert torch.equal(state["exp_avg"], expected["exp_avg"])


def test_one_rank_out_of_memory_in_the_first_step_leaves_the_result_as_it_is(tmp_path, alone):
    results = run("out_of_memory", tmp_path, world=2)
    assert_like_one(results, tmp_path, alone("plain"))
    # The ranks agreed on the size that fits both before they exchanged a gradient.
    for result in results:
        tried = result["micro_batches"]
        assert tried[0] == 4
        assert max(tried[3:8]) <= 2


def test_mistakes_are_told_by_every_rank(tmp_path):
    for result in run("different_lengths", tmp_path / "lengths", world=2):
        assert "the ranks have 4, 2 batches an epoch" in result["error"]
    for result in run("nan", tmp_path / "nan", world=2):
        assert "NaN or infinity" in result["error"]


def test_what_one_rank_alone_meets_ends_all_with_its_words(tmp_path):
    scenarios = {
        "no_memory": "no memory for a single sample (host: DefaultCPUAllocator",
        "no_memory_in_validation": "memory: no memory for a single sample (host",
        "height": "the value 170 is none of the 2 classes",
        "full_disk": "disk: cannot write the checkpoint",
    }
    for scenario, told in scenarios.items():
        for result in run(scenario, tmp_path / scenario, world=2):
            assert told in result["error"]
    run("stop", tmp_path / "damaged", world=2)
    for path in (tmp_path / "damaged" / "checkpoints").glob("last-*"):
        path.write_bytes(b"damaged")
    for result in run("plain", tmp_path / "damaged", world=2):
        assert "every checkpoint is damaged" in result["error"]


def test_a_rank_out_of_memory_while_gradients_are_exchanged_says_how_to_go_on(tmp_path):
    # The other rank loses its partner, which no recovery of its own could mend.
    (result,) = run("out_of_memory_later", tmp_path, world=2, exit_codes=(1, 0))
    assert result["rank"] == 1
    assert "start again with micro_batch_size=2" in result["error"]


def test_shares_are_gathered_and_a_mistake_in_one_ends_all(tmp_path):
    for result in run(share, tmp_path, world=2):
        assert result["made"] == [[0, 0, 0], [1, 1, 1]]
        assert result["error"] == "the second rank has a mistake"


def test_what_ranks_make_of_their_files_is_compared_before_they_train(cohort, tmp_path):
    files = {"genotypes": cohort / "cohort.bed", "phenotypes": cohort / "phenotypes.tsv", "trait": "trait"}
    table = (cohort / "phenotypes.tsv").read_text().splitlines()
    edited = tmp_path / "edited.tsv"
    edited.write_text("\n".join([*table[:-1], table[-1].rpartition("\t")[0] + "\t1.25"]) + "\n")
    without = tmp_path / "without.tsv"
    without.write_text("\n".join([table[0].replace("trait", "other"), *table[1:]]) + "\n")
    cases = {
        "same": (files, [], "home"),
        "a home of its own": (files, [], "another"),
        "a table without the trait": (files | {"phenotypes": without}, [], "home"),
        "another table": (files | {"phenotypes": edited}, [], "home"),
        "other filters": (files, ["data.maf_min=0.2"], "home"),
        "another patch": (files, ["model.patch=16"], "home"),
    }
    first, second = run(partial(prepare_alike, cases), tmp_path / "ranks", world=2)
    assert first == second  # both know, and end
    assert [first["same"], first["a home of its own"]] == [None, None]
    assert str(without) in first["a table without the trait"]
    assert "the ranks: rank 1 on " in first["another table"]
    assert first["another table"].partition("in: ")[2].startswith("trait; give all nodes the same files")
    assert first["other filters"].partition("in: ")[2].startswith("settings and SNPs;")
    assert first["another patch"].partition("in: ")[2].startswith("settings;")


def test_ranks_of_unlike_devices_train_in_one_precision(tmp_path):
    for result in run(agree_on_precision, tmp_path, world=2):
        assert result == {"alike": "bf16", "older": "fp16", "oldest": "fp32"}
