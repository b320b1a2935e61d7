"""What a search keeps on disk: its study, each element's trial, and the best settings so far."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError, InputError, ResourceError
from snpdeconv.files import read_record, write_text
from snpdeconv.launch.records import Record
from snpdeconv.launch.search_space import apply
from snpdeconv.launch.study import Study

logger = logging.getLogger(__name__)


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
        kept = read_record(path, _Trial, mend=f"`rm {shlex.quote(str(path))}` lets the trial begin anew")
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
