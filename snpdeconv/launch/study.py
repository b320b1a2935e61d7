"""The study that the trials of a search share: a journal on disk. The only place that knows Optuna.

Jobs on several hosts write it at once; its lock is a file made exclusively, which network file systems obey.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snpdeconv.errors import ConfigError
from snpdeconv.launch.search_space import Choice, Range, Space

if TYPE_CHECKING:
    import optuna

_NAME = "search"
_ELEMENT = "element"


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
            from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
        except ImportError as error:
            raise ConfigError(
                "a search needs Optuna", where="--search", mend="pip install 'optuna>=4,<5'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Trials that still run count as bad ones, so that two at once do not try the same.
            sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
            sampler=sampler,
        )

    def ask(self, space: Space, *, element: int) -> tuple[int, dict[str, Any]]:
        """A new trial of an element of the array: its number in the study, and its settings."""
        trial = self._study.ask({key: self._distribution(values) for key, values in space.items()})
        trial.set_user_attr(_ELEMENT, element)
        return trial.number, dict(trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """What came of a trial, the higher the better; None if it failed.

        The first value stands. A trial that was given up and went on all the same is added with its value.
        """
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
