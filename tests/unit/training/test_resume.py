"""A run that is stopped anywhere and started again equals the uninterrupted one bit for bit."""

import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from killed_runs import EPOCHS, make_trainer, timeless, train
from small_runs import assert_same_tensors, make_network

from snpdeconv.errors import TrainingError, UserError
from snpdeconv.training.checkpoint import CheckpointStore, read_state
from snpdeconv.training.preemption import Preempted, PreemptionSignal, Terminated
from snpdeconv.training.run_state import Run

KINDS = ["data_loader", "packed"]


@pytest.fixture(scope="module")
def processes():
    # One server imports torch (and what its optimisers import) once; every run is a process that it forks.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "snpdeconv.training.trainer"])
    return context


@pytest.fixture(scope="module", params=KINDS)
def whole(request, processes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert run_to_the_end(processes, request.param, folder) == 0
    return request.param, torch.load(folder / "final.pt")


def run_to_the_end(processes, kind, folder, **options):
    process = processes.Process(target=train, args=(kind, folder), kwargs=options)
    process.start()
    process.join(60)
    return process.exitcode


def assert_equal_runs(folder, expected):
    final = torch.load(folder / "final.pt")
    assert_same_tensors(final["model"], expected["model"])
    assert final["history"] == expected["history"]
    # What is logged after a restart is what the uninterrupted run logged at those steps.
    assert final["logged"].items() <= expected["logged"].items()


def test_killed_at_random_moments(whole, processes, tmp_path):
    kind, expected = whole
    chance = random.Random(KINDS.index(kind))
    steps = tmp_path / "steps"
    steps.touch()
    last_step, kills = max(expected["logged"]), 0
    for target in (2, 6, 11, 17):
        process = processes.Process(target=train, args=(kind, tmp_path), kwargs={"steps": steps})
        process.start()
        wait_for_step(steps, target, process)
        time.sleep(chance.uniform(0.0, 0.012))
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 3
    assert run_to_the_end(processes, kind, tmp_path) == 0
    assert_equal_runs(tmp_path, expected)
    assert len(expected["history"]["epoch"]) == EPOCHS
    assert last_step == EPOCHS * (5 if kind == "data_loader" else 7)


def wait_for_step(steps, target, process):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if any(int(line) >= target for line in steps.read_text().split()):
            return
        time.sleep(0.001)


# Each save syncs the file and then the folder; a best and a last are written at the end of an epoch.
@pytest.mark.parametrize("call", [1, 2, 5, 6, 12, 13])
def test_killed_while_a_checkpoint_is_written(whole, processes, tmp_path, call):
    kind, expected = whole
    assert run_to_the_end(processes, kind, tmp_path, die_in=("fsync", call)) == -signal.SIGKILL
    assert run_to_the_end(processes, kind, tmp_path) == 0
    assert_equal_runs(tmp_path, expected)
    assert not list((tmp_path / "checkpoints").glob(".writing*"))


class Killed(BaseException):
    """Stands for SIGKILL: no handler sees it."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_at_an_epochs_save_loses_none_of_its_metrics(tmp_path, monkeypatch, moment):
    save, epochs = Run.save, []

    def deadly(run):
        is_now = run.progress.epoch == 2 and run.progress.batch == 0
        if is_now and moment == "before":
            raise Killed
        save(run)
        if is_now:
            raise Killed

    def log(step, values):
        if "train/epoch_lr" in values:
            epochs.append((step, values["val/loss"]))

    monkeypatch.setattr(Run, "save", deadly)
    with pytest.raises(Killed):
        make_trainer("packed", log_metrics=log).train(EPOCHS, 10, tmp_path)
    monkeypatch.undo()
    history = make_trainer("packed", log_metrics=log).train(EPOCHS, 10, tmp_path)
    assert sorted(set(epochs)) == [(7 * (i + 1), loss) for i, loss in enumerate(history["val_loss"])]


def stop_after(step):
    asked = iter(range(1, 1000))
    return lambda: next(asked) >= step


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_on_request_at_every_third_step(kind, tmp_path):
    expected = make_trainer(kind)
    expected_history = expected.train(EPOCHS, 10)
    steps = []
    while True:
        trainer = make_trainer(kind, should_stop=stop_after(3))
        try:
            history = trainer.train(EPOCHS, 10, tmp_path)
        except Preempted as stop:
            steps.append((stop.step, read_state(stop.checkpoint).progress["step"]))
        else:
            break
        torch.rand(7)  # somebody else draws in between
    assert steps == [(step, step) for step in range(3, 3 * len(steps) + 1, 3)]
    assert len(steps) >= 6
    assert_same_tensors(trainer.model.state_dict(), expected.model.state_dict())
    assert timeless(history) == timeless(expected_history)


def test_the_start_is_scored_once(tmp_path):
    """A run stopped in its first epoch remembers how good it was before."""
    whole = make_trainer("data_loader", validate_before_training=True)
    history = whole.train(3, 10)
    scored = []
    for _ in range(20):
        trainer = make_trainer(
            "data_loader",
            validate_before_training=True,
            should_stop=lambda: True,
            log_metrics=lambda step, values: scored.append(values["val/loss"]) if step == 0 else None,
        )
        try:
            resumed = trainer.train(3, 10, tmp_path)
            break
        except Preempted:
            continue
    assert scored == [whole.start["val_loss"]]
    assert trainer.start == whole.start
    assert trainer.best_epoch == whole.best_epoch
    assert timeless(resumed) == timeless(history)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_over_is_not_trained_again(kind, tmp_path):
    first = make_trainer(kind)
    history = first.train(3, 10, tmp_path)
    told = []
    again = make_trainer(kind, log_metrics=lambda _, values: told.append(values))
    assert again.train(3, 10, tmp_path) == history
    assert not any("train/epoch_lr" in values for values in told)  # it says what it kept and trains nothing
    assert_same_tensors(first.model.state_dict(), again.model.state_dict())


def test_patience_is_counted_across_a_restart(tmp_path):
    def trainer(**options):
        return make_trainer(
            "data_loader",
            metrics=lambda *_: {"flat": 0.0},
            monitor="val_flat",
            schedule="constant",
            **options,
        )

    assert len(trainer().train(2, 4, tmp_path)["epoch"]) == 2
    assert len(trainer().train(20, 4, tmp_path)["epoch"]) == 5


def test_a_damaged_newest_checkpoint_costs_some_steps_and_nothing_else(tmp_path, caplog):
    expected = make_trainer("packed")
    expected_history = expected.train(EPOCHS, 10)
    with pytest.raises(Preempted) as stop:
        make_trainer("packed", should_stop=stop_after(12)).train(EPOCHS, 10, tmp_path)
    os.truncate(stop.value.checkpoint, 100)
    trainer = make_trainer("packed")
    with caplog.at_level(logging.INFO):
        history = trainer.train(EPOCHS, 10, tmp_path)
    assert "taking the checkpoint before it" in caplog.text
    assert "step 11" in caplog.text
    assert_same_tensors(trainer.model.state_dict(), expected.model.state_dict())
    assert timeless(history) == timeless(expected_history)


def test_resuming_from_a_named_checkpoint(tmp_path):
    with pytest.raises(Preempted) as stop:
        make_trainer("packed", should_stop=stop_after(9)).train(EPOCHS, 10, tmp_path / "first")
    whole = make_trainer("packed")
    history = whole.train(EPOCHS, 10)
    for source in (stop.value.checkpoint, tmp_path / "first"):
        trainer = make_trainer("packed")
        resumed = trainer.train(EPOCHS, 10, tmp_path / f"second-{Path(source).name}", resume_from=source)
        assert timeless(resumed) == timeless(history)
        assert_same_tensors(trainer.model.state_dict(), whole.model.state_dict())


def test_the_scaler_of_fp16_is_part_of_the_state(tmp_path):
    def fp16(**options):
        return make_trainer("packed", use_amp=True, amp_dtype=torch.float16, **options)

    expected = fp16()
    history = expected.train(EPOCHS, 10)
    for step in (9, 18):
        with pytest.raises(Preempted) as stop:
            fp16(should_stop=stop_after(9)).train(EPOCHS, 10, tmp_path)
        assert read_state(stop.value.checkpoint).scaler["_growth_tracker"] == step
    resumed = fp16()
    assert timeless(resumed.train(EPOCHS, 10, tmp_path)) == timeless(history)
    assert_same_tensors(resumed.model.state_dict(), expected.model.state_dict())


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    make_trainer("packed").train(EPOCHS, 10, tmp_path)
    with pytest.raises(TrainingError, match=r"learning_rate=0.05 \(now 0.01\), seed=11 \(now 12\)"):
        make_trainer("packed", learning_rate=0.01, seed=12).train(EPOCHS, 10, tmp_path)
    with pytest.raises(TrainingError, match=r"epochs=4 \(now 5\)"):  # a cosine would have other rates
        make_trainer("packed").train(EPOCHS + 1, 10, tmp_path)

    def with_model(model):
        trainer = make_trainer("packed")
        trainer.model = trainer._parallel = model
        return trainer

    with pytest.raises(TrainingError, match=r"'first.weight' is \(8, 6\) in it and \(9, 6\) here"):
        with_model(make_network(width=9)).train(EPOCHS, 10, tmp_path)
    with pytest.raises(TrainingError, match=r"only the model has 'norm.bias'"):
        with_model(make_network(has_norm=True)).train(EPOCHS, 10, tmp_path)


def moments(state):
    return next(iter(state.optimizer["state"].values()))


@pytest.mark.parametrize(
    ("schedule", "change", "told"),
    [
        ("cosine", lambda s: s.optimizer["param_groups"][0].update(weight_decay=0.5), "weight_decay=0.5"),
        ("cosine", lambda s: s.optimizer["param_groups"][0].update(betas=(0.1, 0.1)), r"betas=\(0.1, 0.1\)"),
        ("cosine", lambda s: s.optimizer["param_groups"][0].update(lr=9.0), "rate is 9, which"),
        ("constant", lambda s: s.optimizer["param_groups"][0].update(lr=9.0), "rate is 9, which"),
        ("plateau", lambda s: s.optimizer["param_groups"][0].update(lr=9.0), "rate is 9, which"),
        ("cosine", lambda s: s.scaler.update(growth_factor=9.0), "growth_factor=9.0"),
        ("cosine", lambda s: moments(s).update(exp_avg=torch.zeros(3)), r"'exp_avg' .* is \(3,\)"),
        ("cosine", lambda s: moments(s).pop("exp_avg_sq"), "exp_avg_sq"),
    ],
)
def test_a_checkpoint_whose_optimiser_is_another_s_is_refused(tmp_path, schedule, change, told):
    options = {"schedule": schedule, "use_amp": True, "amp_dtype": torch.float16}
    with pytest.raises(Preempted) as stop:
        make_trainer("packed", should_stop=stop_after(5), **options).train(EPOCHS, 10, tmp_path)
    state = read_state(stop.value.checkpoint)
    change(state)
    CheckpointStore(tmp_path).save_last(state)
    with pytest.raises(UserError, match=told):
        make_trainer("packed", **options).train(EPOCHS, 10, tmp_path)


def test_a_plateau_keeps_its_own_settings(tmp_path):
    options = {"schedule": "plateau", "plateau_patience": 0, "plateau_factor": 0.3, "learning_rate": 0.5}
    expected = make_trainer("packed", **options).train(EPOCHS, 10)
    with pytest.raises(Preempted) as stop:
        make_trainer("packed", should_stop=stop_after(16), **options).train(EPOCHS, 10, tmp_path)
    state = read_state(stop.value.checkpoint)
    state.schedule["factor"] = 1e-9
    CheckpointStore(tmp_path).save_last(state)
    history = make_trainer("packed", **options).train(EPOCHS, 10, tmp_path)
    assert timeless(history) == timeless(expected)
    assert len(set(history["lr"])) > 1


def test_a_micro_batch_that_memory_forced_survives_the_restart(tmp_path):
    def with_little_memory(**options):
        trainer = make_trainer("packed", micro_batch_size=None, **options)

        def check(module, given, output):
            if len(given[0]) > 4:  # in validation too, where batches have 7 samples
                raise torch.OutOfMemoryError("CUDA out of memory")

        trainer.model.register_forward_hook(check)
        return trainer

    with pytest.raises(Preempted) as stop:
        with_little_memory(should_stop=stop_after(5)).train(EPOCHS, 10, tmp_path)
    assert read_state(stop.value.checkpoint).progress["micro_batch_size"] == 4
    resumed, expected = with_little_memory(), with_little_memory()
    assert timeless(resumed.train(EPOCHS, 10, tmp_path)) == timeless(expected.train(EPOCHS, 10))
    assert_same_tensors(resumed.model.state_dict(), expected.model.state_dict())


def test_a_signal_saves_and_stops_and_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def log(step, values):
        if step == 4 and "train/loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    with PreemptionSignal() as should_stop:
        assert not should_stop()
        with pytest.raises(Preempted, match="after step 4"):
            make_trainer("packed", should_stop=should_stop, log_metrics=log).train(EPOCHS, 10, tmp_path)
        assert should_stop()
    assert signal.getsignal(signal.SIGTERM) is before
    newest = CheckpointStore(tmp_path).newest()
    assert read_state(newest).progress["step"] == 4


def test_sigterm_ends_at_once_what_does_not_ask(tmp_path):
    with PreemptionSignal(raises=True) as should_stop:
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one does not disturb what is on its way out
    with PreemptionSignal(raises=True) as should_stop:
        os.kill(os.getpid(), signal.SIGUSR2)  # a notice is for those who ask
        with pytest.raises(Terminated), should_stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
