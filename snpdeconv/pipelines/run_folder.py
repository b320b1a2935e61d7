"""The folder of one run: who works in it, what it was started with, and what is already done.

A run that was interrupted is found again here; a folder never holds two runs, and none that never began.
"""

from __future__ import annotations

import fcntl
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NotRequired, TextIO

from pydantic import ConfigDict, Field, FiniteFloat, JsonValue, with_config
from typing_extensions import TypedDict

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError, ResourceError
from snpdeconv.files import private_folder, read_record, write_json

_STATE = "run.json"
_LOCK = ".lock"


_Metrics = dict[str, FiniteFloat | None]
_Intervals = dict[str, _Metrics]
_Paths = dict[str, str]


class _Ranked(TypedDict):
    tags: dict[str, str]
    paths: _Paths


@with_config(ConfigDict(extra="ignore"))
class _Result(TypedDict):
    run_id: str | None
    model: str
    version: Annotated[int, Field(ge=1)] | None
    test: _Intervals
    paths: _Paths
    validation: NotRequired[_Metrics]
    added: NotRequired[dict[str, JsonValue]]


@with_config(ConfigDict(extra="allow"))
class _State(TypedDict):
    """What stands in run.json; a run that has come further has more of it."""

    key: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    settings: dict[str, str]
    batch_size: NotRequired[Annotated[int, Field(ge=1, le=2**31)]]
    validated: NotRequired[_Metrics]
    micro_batch_size: NotRequired[Annotated[int, Field(ge=1, le=2**31)] | None]
    tested: NotRequired[dict[str, JsonValue]]
    ranked: NotRequired[_Ranked]
    result: NotRequired[_Result]


def hold(folder: Path) -> TextIO:
    """Takes a folder that is there for this process alone, until the file that it gives is closed.

    Raises:
        ResourceError: Another process works in it, or it cannot be written.
    """
    try:
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise ResourceError(
            f"cannot be written ({error.strerror})", where=folder, mend="choose another --out"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise ResourceError(
            "another process works in this folder", where=folder, mend="wait for it or choose another --out"
        ) from error
    return lock


class RunFolder:
    """A run's folder, held by this process from `__enter__` to `__exit__`.

    Args:
        path: The folder; made when it is missing.
        settings: What names the run: its configuration and inputs, as text by key.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, str]) -> None:
        self.path = path
        self.settings = dict(settings)
        self.state: dict[str, Any] = {}
        self._is_new = False

    def __enter__(self) -> RunFolder:
        """Takes the folder.

        Raises:
            ConfigError: It holds something else, or a run with other settings.
            ResourceError: Another process works in it, or it cannot be written.
        """
        self._refuse_strangers()
        self._is_new = not self.path.exists()
        try:
            private_folder(self.path)
        except OSError as error:
            raise ResourceError(
                f"cannot be written ({error.strerror})", where=self.path, mend="choose another --out"
            ) from error
        self._lock = hold(self.path)
        self._refuse_strangers()  # again: what was there before the lock may be another process's by now
        state = self._read()
        self.state = state or {"key": uuid.uuid4().hex, "settings": self.settings}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_new and not (self.path / _STATE).exists():
            (self.path / _LOCK).unlink()
            self.path.rmdir()
        self._lock.close()

    def begin(self, **settings: str) -> None:
        """Makes the folder a run's, once its input is known to be good.

        Args:
            **settings: More of what names the run.

        Raises:
            ConfigError: The run that the folder holds has others.
        """
        self._compare(self.state["settings"], self.settings | settings, keys=settings)
        self.state["settings"] = self.settings | settings
        self.remember()

    @property
    def key(self) -> str:
        """The name of the run that its tracking goes by."""
        return str(self.state["key"])

    def remember(self, **facts: Any) -> None:
        """Keeps facts that a restart must not find out anew."""
        self.state |= facts
        write_json(self.path / _STATE, self.state)

    def _read(self) -> dict[str, Any] | None:
        try:
            state = read_record(self.path / _STATE, _State, mend="choose another --out")
        except FileNotFoundError:
            return None
        return dict(state)

    def _refuse_strangers(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("is a file", where=self.path, mend="choose another --out")
        state = self._read()
        if state is None:
            names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
            # A dot-file is our lock, or what a kill left of a file that was being written.
            if any(not name.startswith(".") for name in names):
                raise ConfigError(
                    "holds other files and no run", where=self.path, mend="choose another --out"
                )
            return
        self._compare(state["settings"], self.settings, keys=self.settings)

    def _compare(self, before: Mapping[str, str], now: Mapping[str, str], *, keys: Iterable[str]) -> None:
        for key in keys:
            if key in before and before[key] != now[key]:
                raise ConfigError(
                    f"holds a run with {key} = {before[key]}, and now it is {now[key]}",
                    where=self.path,
                    mend="choose another --out, or the same settings to go on with it",
                )


def run_settings(config: Config, *, model_name: str) -> dict[str, str]:
    """What tells one run from another, besides its input: every setting and the model's name."""
    return {**config.flat(), "model": model_name}
