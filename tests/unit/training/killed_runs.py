"""A run in a process of its own that can be killed, or kills itself in the middle of writing a checkpoint."""

import os
import signal
import time
from pathlib import Path

import torch
from small_runs import cohort, loaders, make_network

from snpdeconv import MultiGPUSNPTrainer
from snpdeconv.training.data import PackedLoader

EPOCHS = 4


def make_trainer(kind, **options):
    """Two quite different runs: a shuffling DataLoader, and the packed one."""
    shared = {"use_amp": False, "device": "cpu", "learning_rate": 0.05, "log_every": 1, "seed": 11}
    if kind == "data_loader":
        train, val = loaders(batch_size=5)
        model = make_network(has_norm=True)
        shared |= {
            "accumulation": 2,
            "schedule": "plateau",
            "plateau_patience": 0,
            "checkpoint_every_steps": 2,
        }
    else:
        x, y = cohort(50)
        train = PackedLoader(x, y, batch_size=8, shuffle=True, seed=3)
        val = PackedLoader(*cohort(20, seed=2), batch_size=7)
        model = make_network()
        shared |= {"schedule": "cosine", "checkpoint_every_steps": 1, "micro_batch_size": 3, "loss": "mse"}
    return MultiGPUSNPTrainer(model, train, val, **(shared | options))


def train(kind, folder, *, steps=None, die_in=None):
    """Trains to the end and writes weights, history and logged losses to `folder`/final.pt.

    Args:
        kind: As `make_trainer`.
        folder: Checkpoints go to its folder `checkpoints`.
        steps: A file that gets a line a step, for somebody who waits to kill.
        die_in: A function of os and the number of the call in which this process kills itself.
    """
    torch.set_num_threads(1)
    folder = Path(folder)
    if die_in is not None:
        _arm(*die_in)
    logged = {}

    def log(step, values):
        if "train/loss" in values:
            logged[step] = values["train/loss"]
            if steps is not None:
                with Path(steps).open("a") as file:
                    file.write(f"{step}\n")
                time.sleep(0.004)

    trainer = make_trainer(kind, log_metrics=log)
    history = trainer.train(EPOCHS, 10, folder / "checkpoints")
    torch.save(
        {"model": trainer.model.state_dict(), "history": timeless(history), "logged": logged},
        folder / "final.pt",
    )


def timeless(history):
    return {k: v for k, v in history.items() if k not in ("seconds", "samples_per_second", "peak_gib")}


def _arm(function, call):
    original, calls = getattr(os, function), []

    def deadly(*args, **options):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(os, function, deadly)
