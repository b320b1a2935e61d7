"""Owns checkpoint files: written whole or not at all, checked when read, the newest two and the best kept.

A file's name carries the start of its SHA-256, so that one rename publishes contents and checksum together.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from snpdeconv.errors import InputError, ResourceError, UserError
from snpdeconv.files import read_whole
from snpdeconv.training.state import TrainingState

logger = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<kind>last|best)-(?P<serial>\d{8})-(?P<digest>[0-9a-f]{16})\.pt")
_MOST_BYTES = 2**40
_TEMPORARY = ".writing-"
_KEPT = {"last": 2, "best": 1}


class DamagedCheckpoint(InputError):
    """A checkpoint whose bytes are not those that were written."""


class CheckpointStore:
    """The checkpoints of one run in one folder, for one writer at a time.

    Args:
        folder: Made if it is not there; left-overs of a writer that was killed are removed.

    Raises:
        ResourceError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f"{_TEMPORARY}*"):
                leftover.unlink()
        except OSError as error:
            raise _not_writable(folder, error) from error

    def save_last(self, state: TrainingState) -> Path:
        """Writes a state from which the run can go on.

        Raises:
            ResourceError: No room, or no right to write; the checkpoints before are as they were.
        """
        return self._save("last", state.to_dict())

    def save_best(self, contents: dict[str, Any]) -> Path:
        """Writes the weights of the best epoch with its number and value; errors as `save_last`."""
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
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(self.folder)
            for outdated in [*older, path][: -_KEPT[kind]]:
                outdated.unlink()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _not_writable(path, error) from error
        return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, on the CPU.

    Args:
        path: A file that a `CheckpointStore` wrote.

    Returns:
        Plain values and tensors by name: the fields of `TrainingState`, or what `save_best` was given.

    Raises:
        InputError: There is no such file, or its name is not a checkpoint's.
        DamagedCheckpoint: The contents do not match the checksum in the name.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise InputError(
            "not the name of a checkpoint", where=path, mend="give a last-*.pt as it was written"
        )
    try:
        data = read_whole(path, limit=_MOST_BYTES, mend="give a last-*.pt as it was written")
    except FileNotFoundError as error:
        raise InputError("no such checkpoint", where=path) from error
    if _digest(memoryview(data)) != match["digest"]:
        problem = f"damaged: its {len(data)} bytes do not match the checksum in its name"
        raise DamagedCheckpoint(problem, where=path)
    with made_by_us(path):
        contents: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return contents


def read_state(path: Path) -> TrainingState:
    """The state in a `last` checkpoint; errors as `read_checkpoint`."""
    with made_by_us(path):
        return TrainingState(**read_checkpoint(path))


@contextlib.contextmanager
def made_by_us(path: Path) -> Iterator[None]:
    """For the use of a checkpoint's contents: whatever they do not fit is told of the file.

    Raises:
        DamagedCheckpoint: They are not what this program writes, though their checksum is right.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        problem = f"holds what no run of ours has written ({str(error).partition(chr(10))[0][:200]})"
        raise DamagedCheckpoint(
            problem, where=path, mend="remove it, to go on from the one before it"
        ) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest undamaged `last` of a folder, or None if there was never one.

    A damaged one is set aside with a warning, and the one before it is taken.

    Raises:
        ResourceError: There are some, and all are damaged.
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
        mend = "give another checkpoint folder, or empty this one, to start anew"
        raise ResourceError("every checkpoint is damaged", where=folder, mend=mend)
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user asked for: the file itself, or the newest one of a folder.

    Raises:
        InputError: There is none.
        ResourceError: All of the folder's are damaged.
    """
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


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure; the entry in the folder is written apart from the file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_writable(path: Path, error: OSError) -> ResourceError:
    mend = "make room or give another checkpoint folder, then start again to go on from the last checkpoint"
    return ResourceError(f"cannot write the checkpoint ({error.strerror})", where=path, mend=mend)
