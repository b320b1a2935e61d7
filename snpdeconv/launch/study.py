"""The study that the trials of a search share: a journal on disk. The only place that knows Optuna.

Jobs on several hosts write it at once; its lock is a file made exclusively, which network file systems obey.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snpdeconv.errors import ConfigError, DamagedFile, ResourceError
from snpdeconv.files import read_whole
from snpdeconv.launch.search_space import Choice, Range, Space

if TYPE_CHECKING:
    import optuna
    from optuna.storages.journal import JournalFileOpenLock

_NAME = "search"
_ELEMENT = "element"
_MOST_BYTES = 2**28
_MEND = "submit the search again, to another --out"


class _Journal:
    """Optuna's journal, a JSON record a line, that outlives a torn line: nobody was told that it was written.

    Args:
        path: The file; made when it is not there.
        lock: Optuna's, between processes and hosts.
    """

    def __init__(self, path: Path, *, lock: JournalFileOpenLock) -> None:
        self._path, self._lock = path, lock
        path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from a number on."""
        lines = read_whole(self._path, limit=_MOST_BYTES, mend=_MEND).split(b"\n")[:-1]
        records = [_record(line) for line in lines]
        while records and records[-1] is None:
            records.pop()
        if None in records:
            # Later records count those before them: without this one they would be of other trials.
            raise DamagedFile(f"line {records.index(None) + 1} is damaged", where=self._path, mend=_MEND)
        yield from (record for record in records[log_number_from:] if record is not None)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds records, all or none.

        Raises:
            ResourceError: The disk is full.
        """
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self._lock.acquire()
        try:
            with self._path.open("r+b") as file:
                whole = file.read().rfind(b"\n") + 1
                try:
                    file.truncate(whole)
                    file.seek(whole)
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self._path, whole)
                    raise
        except OSError as error:
            raise ResourceError(
                f"cannot be written ({error.strerror})", where=self._path, mend="free some disk space"
            ) from error
        finally:
            self._lock.release()


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's record; where a torn one stands before it in its line, the whole one."""
    for start in (0, line.rfind(b'{"op_code"')):
        try:
            record = json.loads(line[start:])
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            return record
    return None


class Study:
    """Draws settings for trials, and keeps what came of each.

    Args:
        path: The journal; made when it is not there.
        seed: Of the sampler; trials at the same time need different ones.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(self, path: Path, *, seed: int = 0) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileOpenLock
        except ImportError as error:
            raise ConfigError(
                "a search needs Optuna", where="--search", mend="pip install 'optuna>=4,<5'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._path = path
        backend: Any = _Journal(path, lock=JournalFileOpenLock(str(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Trials that still run count as bad ones, so that two at once do not try the same.
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        with self._readable():
            self._study = optuna.create_study(
                storage=optuna.storages.JournalStorage(backend),
                study_name=_NAME,
                direction="maximize",
                load_if_exists=True,
                sampler=sampler,
            )

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Tells of a journal whose records do not fit together; Optuna ends in whatever they lead it to."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
            what = f"is damaged ({type(error).__name__} {str(error)[:100]})"
            raise DamagedFile(what, where=self._path, mend=_MEND) from error

    def ask(self, space: Space, *, element: int) -> tuple[int, dict[str, Any]]:
        """A new trial of an element of the array: its number in the study, and its settings."""
        with self._readable():
            trial = self._study.ask({key: self._distribution(values) for key, values in space.items()})
            trial.set_user_attr(_ELEMENT, element)
            return trial.number, dict(trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """What came of a trial, the higher the better; None if it failed.

        The first value stands. A trial that was given up and went on all the same is added with its value.
        """
        with self._readable():
            self._tell(number, value)

    def _tell(self, number: int, value: float | None) -> None:
        state = self._optuna.trial.TrialState
        told = self._study.trials[number]
        if not told.state.is_finished():
            self._study.tell(number, value, state=None if value is not None else state.FAIL)
        elif told.state == state.FAIL and value is not None:
            again = self._optuna.trial.create_trial(
                value=value,
                params=told.params,
                distributions=told.distributions,
                user_attrs=told.user_attrs,
            )
            self._study.add_trial(again)

    def best(self) -> tuple[int, dict[str, Any]] | None:
        """Element and settings of the best trial so far."""
        with self._readable():
            try:
                best = self._study.best_trial
            except ValueError:
                return None
            return best.user_attrs[_ELEMENT], dict(best.params)

    def _distribution(self, values: Range | Choice) -> optuna.distributions.BaseDistribution:
        known = self._optuna.distributions
        drawn: optuna.distributions.BaseDistribution
        if isinstance(values, Choice):
            drawn = known.CategoricalDistribution(values.values)
        elif isinstance(values.low, int) and isinstance(values.high, int):
            drawn = known.IntDistribution(values.low, values.high, log=values.log)
        else:
            drawn = known.FloatDistribution(values.low, values.high, log=values.log)
        return drawn
