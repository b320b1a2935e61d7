"""Locks between processes (and threads) on files of the home. Knows nothing of what they guard."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snpdeconv.errors import ResourceError

_held: set[Path] = set()
_held_guard = threading.Lock()


class FileLock:
    """An exclusive lock that the system drops when its process ends, however it ends.

    A POSIX record lock: forked data-loader workers do not inherit it (they would keep an flock after
    their parent was killed), and network file systems carry it between hosts. Such a lock does not
    tell threads apart, hence the table of what this process holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._descriptor: int | None = None

    def acquire(self, *, wait_s: float = 0.0) -> bool:
        """Tries for `wait_s` seconds; returns whether the lock is ours now."""
        deadline = time.monotonic() + wait_s
        while not self._try():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True

    def _try(self) -> bool:
        with _held_guard:
            # Opening and closing the file while this process holds the lock would drop it.
            if self.path in _held:
                return False
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                raise
            _held.add(self.path)
            self._descriptor = descriptor
            return True

    def release(self) -> None:
        """Gives the lock back."""
        assert self._descriptor is not None
        with _held_guard:
            os.close(self._descriptor)
            _held.discard(self.path)
            self._descriptor = None


@contextmanager
def locked(path: Path, *, wait_s: float = 120.0) -> Iterator[None]:
    """Holds the lock on `path` for the block.

    Raises:
        ResourceError: Another process held it all the while.
    """
    lock = FileLock(path)
    if not lock.acquire(wait_s=wait_s):
        raise ResourceError(
            f"still locked by another process after {wait_s:g} s", where=path, mend="see which job hangs"
        )
    try:
        yield
    finally:
        lock.release()
