"""A run's state between two steps, and its files: written whole or not at all, checked when read.

A file's name carries the start of its SHA-256, so that one rename publishes contents and checksum together.
The newest two and the best are kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from snpdeconv.errors import InputError, ResourceError, UserError
from snpdeconv.files import read_whole, sync_to_disk

logger = logging.getLogger(__name__)


History = dict[str, list[float]]
Direction = Literal["min", "max"]


@dataclass
class Progress:
    """How far a run is; its fields are keys of a checkpoint."""

    epoch: int = 0  # the one under way
    batch: int = 0  # batches of it that are done
    step: int = 0  # of the optimiser, in all
    best_value: float | None = None  # of the monitored quantity
    best_epoch: int | None = None  # from 0; -1 is the model before the first epoch
    stale_epochs: int = 0  # since the best one, for the patience of early stopping
    micro_batch_size: int | None = None
    learning_rate: float = 0.0  # of the last step
    history: History = field(default_factory=dict)  # a list per quantity, one value an epoch
    start: dict[str, float] = field(
        default_factory=dict
    )  # validation before the first epoch, where asked for

    def __post_init__(self) -> None:
        """Refuses what a checkpoint of ours does not hold."""
        counts = (self.epoch, self.batch, self.step, self.stale_epochs)
        numbers = (self.best_value, self.learning_rate)
        for count in (*counts, self.micro_batch_size, self.best_epoch):
            if count is not None and (type(count) is not int or count < -1):
                raise TypeError(f"{str(count)[:50]!r} counts nothing")
        for number in (*numbers, *self.start.values(), *(v for past in self.history.values() for v in past)):
            if number is not None and type(number) not in (int, float):
                raise TypeError(f"{str(number)[:50]!r} is no number")
        if any(count is None for count in counts) or any(
            len(past) != self.epoch for past in self.history.values()
        ):
            raise TypeError("its counts do not hold together")

    def take_start(self, values: Mapping[str, float], *, value: float) -> None:
        """Takes the model before the first epoch as the best so far, by the monitored `value`."""
        self.start = dict(values)
        if not math.isnan(value):
            self.best_value, self.best_epoch = value, -1

    def end_epoch(self, values: Mapping[str, float], *, value: float, direction: Direction) -> bool:
        """Closes the epoch, and says whether it is the best so far.

        A quantity that an epoch does not have is NaN in the history; NaN as the monitored `value` is never
        the best.
        """
        for name in dict.fromkeys([*self.history, *values]):
            past = self.history.setdefault(name, [math.nan] * self.epoch)
            past.append(values.get(name, math.nan))
        best = self.best_value
        improved = value < best if direction == "min" and best is not None else best is None or value > best
        is_best = improved and not math.isnan(value)
        if is_best:
            self.best_value, self.best_epoch, self.stale_epochs = value, self.epoch, 0
        else:
            self.stale_epochs += 1
        self.epoch += 1
        self.batch = 0
        return is_best


@dataclass
class TrainingState:
    """A run between two steps, complete: the keys of a `last` checkpoint."""

    progress: dict[str, Any]
    settings: dict[str, Any]  # what must not change between the parts of a run
    losses: dict[str, float]  # running sums of the epoch and of the interval since the last log
    model: dict[str, Tensor]
    best_model: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]  # empty where none is used
    rng: list[dict[str, Any]]  # global generators, one entry a rank

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, not copied."""
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}


def capture_rng(device: torch.device) -> dict[str, Any]:
    """The global generators of torch, of the device, of numpy and of Python, as plain values."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - a user's Dataset may draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy_key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_rest": [int(numpy_state["state"]["pos"]), numpy_state["has_gauss"], numpy_state["gauss"]],
        "python": random.getstate(),
    }


def restore_rng(state: dict[str, Any], *, device: torch.device) -> None:
    """Sets the generators as `capture_rng` found them; a CUDA state is of no use to a run now on a CPU."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    position, has_gauss, gauss = state["numpy_rest"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": state["numpy_key"].numpy().astype(np.uint32), "pos": position},
            "has_gauss": has_gauss,
            "gauss": gauss,
        }
    )
    random.setstate(state["python"])


_NAME = re.compile(r"(?P<kind>last|best)-(?P<serial>\d{8})-(?P<digest>[0-9a-f]{16})\.pt")
_MOST_BYTES = 2**40
_TEMPORARY = ".writing-"
_KEPT = {"last": 2, "best": 1}


class DamagedCheckpoint(InputError):
    """A checkpoint whose bytes are not those that were written."""


class CheckpointStore:
    """The checkpoints of a run in one folder, for one writer at a time; a killed one's left-overs go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{_TEMPORARY}*"):
                leftover.unlink()
        except OSError as error:
            raise _not_writable(folder, error) from error

    def save_last(self, state: TrainingState) -> Path:
        """Writes a state from which the run can go on; where it cannot, those before are as they were."""
        return self._save("last", state.to_dict())

    def save_best(self, contents: dict[str, Any]) -> Path:
        """Writes the weights of the best epoch with its number and value."""
        return self._save("best", contents)

    def newest(self) -> Path | None:
        """The checkpoint to go on from; see `newest_checkpoint`."""
        return newest_checkpoint(self.folder)

    def best(self) -> Path | None:
        """The file of the best epoch, if one was written."""
        return next(iter(_files(self.folder, "best")), None)

    def _save(self, kind: str, contents: dict[str, Any]) -> Path:
        buffer = io.BytesIO()
        torch.save(contents, buffer)
        data = buffer.getbuffer()
        older = _files(self.folder, kind)
        serial = int(older[-1].name.split("-")[1]) + 1 if older else 1
        path = self.folder / f"{kind}-{serial:08d}-{_digest(data)}.pt"
        temporary = self.folder / f"{_TEMPORARY}{path.name}"
        try:
            temporary.write_bytes(data)
            sync_to_disk(temporary)
            temporary.replace(path)
            sync_to_disk(self.folder)
            for outdated in [*older, path][: -_KEPT[kind]]:
                outdated.unlink()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _not_writable(path, error) from error
        return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a `CheckpointStore`'s file, on the CPU, held against the checksum in its name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise InputError(
            "not the name of a checkpoint", where=path, hint="give a last-*.pt as it was written"
        )
    try:
        data = read_whole(path, limit=_MOST_BYTES, hint="give a last-*.pt as it was written")
    except FileNotFoundError as error:
        raise InputError("no such checkpoint", where=path) from error
    if _digest(memoryview(data)) != match["digest"]:
        problem = f"damaged: its {len(data)} bytes do not match the checksum in its name"
        raise DamagedCheckpoint(problem, where=path)
    with made_by_us(path):
        contents: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return contents


def read_state(path: Path) -> TrainingState:
    """The state in a `last` checkpoint."""
    with made_by_us(path):
        return TrainingState(**read_checkpoint(path))


@contextlib.contextmanager
def made_by_us(path: Path) -> Iterator[None]:
    """For the use of contents whose checksum is right: what they do not fit is told of the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"holds what no run of ours has written ({str(error).partition(chr(10))[0][:200]})"
        raise DamagedCheckpoint(
            problem, where=path, hint="remove it, to go on from the one before it"
        ) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged `last` of a folder; None if there was never one, an error where all are damaged.

    A damaged one is set aside with a warning, and the one before it is taken.
    """
    paths = _files(folder, "last")
    for path in reversed(paths):
        try:
            read_checkpoint(path)
        except DamagedCheckpoint as error:
            logger.warning("%s; taking the checkpoint before it", error)
            path.rename(path.with_name(f"damaged-{path.name}"))
        else:
            return path
    if paths:
        hint = "give another checkpoint folder, or empty this one, to start anew"
        raise ResourceError("every checkpoint is damaged", where=folder, hint=hint)
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user asked for: the file itself, or the newest one of a folder."""
    if path.is_dir():
        newest = newest_checkpoint(path)
        if newest is None:
            raise InputError("no complete checkpoint in this folder", where=path)
        return newest
    if not path.is_file():
        raise InputError("no such checkpoint", where=path)
    return path


def _files(folder: Path, kind: str) -> list[Path]:
    """Complete files of a kind, oldest first."""
    return sorted(
        path for path in folder.iterdir() if (m := _NAME.fullmatch(path.name)) and m["kind"] == kind
    )


def _digest(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _not_writable(path: Path, error: OSError) -> ResourceError:
    hint = "make room or give another checkpoint folder, then start again to go on from the last checkpoint"
    return ResourceError(f"cannot write the checkpoint ({error.strerror})", where=path, hint=hint)
