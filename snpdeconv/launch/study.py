"""The space of a search, and the study that its trials share, a journal on disk. Nothing else knows Optuna.

Jobs on several hosts write it at once; its lock is a file made exclusively, which network file systems obey.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from snpdeconv.config import Architecture, Config, read_yaml, read_yaml_file, validate
from snpdeconv.errors import ConfigError, DamagedFile, InputError, ResourceError
from snpdeconv.files import read_record, read_whole, write_text
from snpdeconv.launch.records import Record

if TYPE_CHECKING:
    import optuna
    from optuna.storages.journal import JournalFileOpenLock

logger = logging.getLogger(__name__)


SECTIONS = ("model", "training")
"""A search must not change what people are compared on, nor what the job asks for."""


class Range(BaseModel):
    """Numbers from `low` to `high`, whole ones where both are; on a log scale, if so said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm")
        return self

    def ends(self) -> tuple[Any, ...]:
        """The values that must be valid for all to be."""
        return (self.low, self.high)


class Choice(BaseModel):
    """One of some values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: tuple[bool | int | float | str, ...] = Field(min_length=2)

    def ends(self) -> tuple[Any, ...]:
        """The values that must be valid for all to be."""
        return self.values


Space = dict[str, Range | Choice]

_OPTIMISER: Space = {
    "training.learning_rate": Range(low=1e-5, high=3e-3, log=True),
    "training.weight_decay": Range(low=1e-6, high=1e-1, log=True),
    "model.dropout": Range(low=0.0, high=0.5),
}
_WIDTH: Space = {"model.width": Choice(values=(64, 128, 256))}
_DEFAULTS: dict[Architecture, Space] = {
    "cnn": _OPTIMISER | {"model.channels": Choice(values=("16,32", "32,64", "64,128"))},
    "cnn_transformer": _OPTIMISER | _WIDTH | {"model.num_layers": Range(low=1, high=6)},
    "gnn": _OPTIMISER | _WIDTH,
}


def read_space(path: Path | None, config: Config) -> Space:
    """The search space of a file, or the one for the settings' architecture; each value must be valid there.

    A file maps ``section.key`` to a list of values, or to ``{low, high, log}``.
    """
    space = _DEFAULTS[config.model.architecture] if path is None else _parse(path)
    where = f"the search space of {config.model.architecture}" if path is None else str(path)
    for key, values in space.items():
        section, _, _ = key.partition(".")
        if section not in SECTIONS or key == "training.seed":  # the seed draws the people
            hint = f"search in {' and '.join(SECTIONS)}, the seed left out"
            raise ConfigError("a search cannot change this", where=f"{where}: {key}", hint=hint)
        for value in values.ends():
            apply(config, {key: value}, where=where)
    return space


def apply(config: Config, values: Mapping[str, Any], *, where: str) -> Config:
    """Settings with some of them changed, by ``section.key``; a text with a comma is a list."""
    settings = config.model_dump(mode="json")
    for key, value in values.items():
        section, _, name = key.partition(".")
        several = isinstance(value, str) and "," in value
        settings[section][name] = read_yaml(f"[{value}]", where=where) if several else value
    return validate(settings, where=where)


def _parse(path: Path) -> Space:
    content = read_yaml_file(path)
    if not isinstance(content, dict) or not content:
        hint = "lines such as `training.learning_rate: {low: 1e-5, high: 1e-2, log: true}`"
        raise ConfigError("holds no settings to search", where=path, hint=hint)
    space: Space = {}
    for key, given in content.items():
        form = {"values": given} if isinstance(given, list) else given
        kind: type[Range | Choice] = Choice if isinstance(given, list) else Range
        try:
            space[str(key)] = TypeAdapter(kind).validate_python(form)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise ConfigError(
                f"{problem['msg'].removeprefix('Value error, ')} (given: {given!r})",
                where=f"{path}: {key}",
                hint="a list of values, or {low: 0.1, high: 0.5, log: false}",
            ) from error
    return space


_NAME = "search"
_ELEMENT = "element"
_MOST_BYTES = 2**28
_MEND = "submit the search again, to another --out"


class _Journal:
    """Optuna's journal, a JSON record a line, that outlives a torn line: nobody was told that it was written.

    The lock is Optuna's, between processes and hosts.
    """

    def __init__(self, path: Path, *, lock: JournalFileOpenLock) -> None:
        self._path, self._lock = path, lock
        path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The records from a number on."""
        lines = read_whole(self._path, limit=_MOST_BYTES, hint=_MEND).split(b"\n")[:-1]
        records = [_record(line) for line in lines]
        while records and records[-1] is None:
            records.pop()
        if None in records:
            # Later records count those before them: without this one they would be of other trials.
            raise DamagedFile(f"line {records.index(None) + 1} is damaged", where=self._path, hint=_MEND)
        yield from (record for record in records[log_number_from:] if record is not None)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Adds records, all or none."""
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
                f"cannot be written ({error.strerror})", where=self._path, hint="free some disk space"
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
    """Draws settings for trials, and keeps what came of each; trials at once need different seeds."""

    def __init__(self, path: Path, *, seed: int = 0) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileOpenLock
        except ImportError as error:
            raise ConfigError(
                "a search needs Optuna", where="--search", hint="pip install 'optuna>=4,<5'"
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
            raise DamagedFile(what, where=self._path, hint=_MEND) from error

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
        trial = self._optuna.trial
        failed = trial.TrialState.FAIL
        with self._readable():
            told = self._study.trials[number]
            if not told.state.is_finished():
                self._study.tell(number, value, state=None if value is not None else failed)
            elif told.state == failed and value is not None:
                same = {"params": told.params, "distributions": told.distributions}
                self._study.add_trial(trial.create_trial(value=value, user_attrs=told.user_attrs, **same))

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


@dataclass(frozen=True)
class _Trial:
    number: int
    values: dict[str, Any]


def write_best(study: Study, config: Config, out: Path) -> None:
    """Writes the best trial's settings, complete, as a file that `submit` and `train` take as a preset."""
    written = None
    # Trials end at the same time: the last one to write has seen all that was told before.
    while (best := study.best()) is not None and best[0] != written:
        written, values = best
        settings = apply(config, values, where=f"trial {written}")
        write_text(
            out / "settings.yaml", f"# {settings_text(values)} (trial {written})\n{settings.to_yaml()}"
        )


def tell_lost(record: Record, elements: Sequence[int]) -> None:
    """Tells the study of trials that have ended without a value, however they did; again does no harm."""
    begun = read_trials(record.folder, elements)
    if not begun:
        return
    try:
        study = Study(study_path(record.folder))
        for number, _ in begun.values():
            study.tell(number, None)
    except ConfigError:  # no Optuna where somebody looks at the status
        return
    except (InputError, ResourceError) as error:
        logger.warning("%s", error)


def read_trials(folder: Path, elements: Iterable[int]) -> dict[int, tuple[int, dict[str, Any]]]:
    """The trials that have begun, by element; one whose file is damaged is passed over, with a word."""
    found = {}
    for element in elements:
        try:
            trial = read_trial(folder, element)
        except InputError as error:
            logger.warning("%s", error)
            continue
        if trial is not None:
            found[element] = trial
    return found


def read_trial(folder: Path, element: int) -> tuple[int, dict[str, Any]] | None:
    """Number and settings of an element's trial; None before it has begun."""
    path = trial_path(folder, element)
    try:
        kept = read_record(path, _Trial, hint=f"`rm {shlex.quote(str(path))}` lets the trial begin anew")
    except FileNotFoundError:
        return None
    return kept.number, kept.values


def trial_path(folder: Path, element: int) -> Path:
    """Where a restart finds an element's trial."""
    return folder / f"trial-{element}.json"


def study_path(folder: Path) -> Path:
    """The study of a submission."""
    return folder / "study.journal"


def settings_text(values: dict[str, Any]) -> str:
    """Settings in a line."""
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )
