"""Hyper-parameter search: trials as the elements of one array, sharing a study in the submission's folder.

Each trial trains with settings that the study draws for it, and tells it what validation says of them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from snpdeconv.config import Config
from snpdeconv.errors import ConfigError, InputError
from snpdeconv.files import read_record, write_json, write_text
from snpdeconv.launch.jobs import Job
from snpdeconv.launch.records import Record
from snpdeconv.launch.site import Site
from snpdeconv.launch.study import (
    Study,
    apply,
    read_space,
    read_trial,
    settings_text,
    study_path,
    trial_path,
    write_best,
)
from snpdeconv.launch.submit import (
    choose_target,
    common_facts,
    discarding,
    enqueue,
    files_of,
    make_record,
    needs_of,
    track_at,
    write_files,
)
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.tracking.registry import check_model_name
from snpdeconv.training.preemption import Preempted

logger = logging.getLogger(__name__)

_VALUES = ("val_r2", "val_auroc")
"""What is sought, of a quantity and of classes."""


@dataclass(frozen=True, kw_only=True)
class TrialJob(Job):
    """Trains once with settings of the study's choice; after a restart, with those of before."""

    inputs: str  # a JSON file
    model_name: str
    out: str  # the search's folder; each trial has one in it
    space: str | None  # a YAML file; None for the architecture's
    element: int

    def work(self, config: Config) -> dict[str, Any]:
        """Trains, or goes on with it."""
        from snpdeconv.pipelines.train import train

        inputs = read_record(Path(self.inputs), Inputs, hint="submit it again")
        study = Study(study_path(Path(self.record)), seed=config.training.seed + self.element)
        space = read_space(None if self.space is None else Path(self.space), config)
        trial = read_trial(Path(self.record), self.element)
        if trial is None:
            trial = study.ask(space, element=self.element)
            kept = dict(zip(("number", "values"), trial, strict=True))
            write_json(trial_path(Path(self.record), self.element), kept)
        number, values = trial
        logger.info("trial %d: %s", self.element, settings_text(values))
        try:
            result = train(
                apply(config, values, where=f"trial {self.element}"),
                inputs,
                model_name=f"{self.model_name}-trial-{self.element}",
                out=Path(self.out) / f"trial-{self.element}",
                until="validate",
            )
        except Preempted:
            raise
        except Exception:
            study.tell(number, None)
            raise
        assert result is not None  # a trial is one process
        name = next(name for name in _VALUES if name in result.validation)
        value = result.validation[name]
        study.tell(number, value)
        if value is None:
            raise InputError(
                f"{name.replace('_', '/', 1)} of the validation people is no number",
                where=inputs.phenotypes,
                hint="are there people of every class among them?",
            )
        write_best(study, config, Path(self.out))
        told = {"name": name.replace("_", "/", 1), "value": value, "settings": values}
        return told | {"run_id": result.run_id}


def submit_search(
    config: Config,
    inputs: Inputs,
    *,
    model_name: str,
    num_trials: int,
    space: Path | None,
    out: Path | None,
    site: Site,
    command: str,
) -> Record:
    """Submits a search: an array of trials, each one process with one GPU where the settings have any.

    The best one's settings come to lie in `out`; nothing is registered. Without a file, the space is that of
    the architecture.
    """
    check_model_name(model_name)
    read_space(space, config)
    track_at(site)
    target = choose_target(config, site=site, one_process=True, num_elements=num_trials)
    record = make_record("search", config, target, model=model_name, command=command, out=out)
    record = replace(record, elements=tuple(f"trial-{number}" for number in range(num_trials)))
    folder = Path(record.out)
    with discarding(record):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError("is not empty", where=folder, hint="choose another --out for the search")
        Study(study_path(record.folder))  # before the jobs are: they would all make it at once
        folder.mkdir(parents=True, exist_ok=True)
        frozen = None
        if space is not None:
            frozen = record.folder / "space.yaml"
            write_text(frozen, space.read_text(encoding="utf-8"))
        common = {**common_facts(record, target), **write_files(record, config, inputs)}
        jobs = [
            TrialJob(
                **common,
                element=element,
                model_name=model_name,
                out=str(folder),
                space=None if frozen is None else str(frozen),
            )
            for element in range(num_trials)
        ]
        return enqueue(jobs, record, target, needs=needs_of(record, files_of(inputs)))
