import errno
import logging
import os
import resource
import signal

import pytest
import torch

from snpdeconv.errors import InputError, ResourceError
from snpdeconv.training.checkpoint import (
    CheckpointStore,
    DamagedCheckpoint,
    TrainingState,
    find_checkpoint,
    read_checkpoint,
    read_state,
)


def state(step, size=100):
    return TrainingState(
        progress={"step": step, "history": {"val_loss": [0.1 + 0.2, float("inf")]}, "best_value": None},
        settings={"seed": 1},
        losses={"epoch_loss": 1 / 3},
        model={"weight": torch.full((size,), float(step))},
        best_model=None,
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]},
        schedule={},
        scaler={},
        rng=[{"torch": torch.get_rng_state(), "python": (3, (1, 2), None)}],
    )


def names(folder):
    return sorted(path.name[:13] for path in folder.iterdir())


def test_a_state_comes_back_exactly(tmp_path):
    written = state(7)
    read = read_state(CheckpointStore(tmp_path / "a" / "b").save_last(written))
    assert torch.equal(read.model["weight"], written.model["weight"])
    assert torch.equal(read.rng[0].pop("torch"), written.rng[0].pop("torch"))
    for part in ("progress", "settings", "losses", "optimizer", "rng"):
        assert getattr(read, part) == getattr(written, part)


def test_the_newest_two_and_one_best_are_kept(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.newest() is None
    assert store.best() is None
    for step in range(1, 5):
        last = store.save_last(state(step))
        best = store.save_best({"model": {}, "epoch": step})
    assert names(tmp_path) == ["best-00000004", "last-00000003", "last-00000004"]
    assert store.newest() == find_checkpoint(tmp_path) == find_checkpoint(last) == last
    assert store.best() == best
    assert read_checkpoint(best)["epoch"] == 4


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage):
    store = CheckpointStore(tmp_path)
    good, bad = store.save_last(state(1)), store.save_last(state(2))
    damage(bad)
    with pytest.raises(DamagedCheckpoint, match="checksum"):
        read_state(bad)
    with caplog.at_level(logging.WARNING):
        assert CheckpointStore(tmp_path).newest() == good
    assert bad.name in caplog.text
    # Its place is free: what is written now is the newest again.
    again = store.save_last(state(3))
    assert store.newest() == again
    damage(good)
    damage(again)
    with pytest.raises(ResourceError, match="every checkpoint is damaged"):
        store.newest()


def test_a_checkpoint_asked_for_and_not_there_is_an_error(tmp_path):
    for missing in (tmp_path / "last-00000001-0123456789abcdef.pt", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"no such checkpoint"):
            find_checkpoint(missing)
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "last-00000001-0123456789abcdef.pt")
    with pytest.raises(InputError, match="no complete checkpoint"):
        find_checkpoint(tmp_path)
    other = tmp_path / "model.pt"
    other.write_bytes(b"x")
    with pytest.raises(InputError, match="name of a checkpoint"):
        read_checkpoint(other)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoint_before_alone(tmp_path, monkeypatch, broken):
    store = CheckpointStore(tmp_path)
    good = store.save_last(state(1))

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*((os, "fsync") if broken == "fsync" else ("pathlib.Path.replace",)), fail)
    with pytest.raises(ResourceError, match=r"No space left on device.*make room"):
        store.save_last(state(2))
    assert list(tmp_path.iterdir()) == [good]
    assert read_state(good).progress["step"] == 1


def test_the_system_refusing_to_write_more_is_met_in_the_middle_of_a_file(tmp_path):
    store = CheckpointStore(tmp_path)
    good = store.save_last(state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="cannot write the checkpoint"):
            store.save_last(state(2, size=100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == [good]
    assert read_state(good).progress["step"] == 1


def test_left_overs_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".writing-last-00000001-0123456789abcdef.pt").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert CheckpointStore(tmp_path).newest() is None
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write"):
        CheckpointStore(tmp_path / "file" / "folder")


def test_a_checkpoint_runs_no_code_when_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch /tmp/should-not-be",)

    path = CheckpointStore(tmp_path).save_best({"model": Evil()})
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        read_checkpoint(path)
