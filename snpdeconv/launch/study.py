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
                "a search needs Optuna", where="--search", mend="pip install 'snpdeconv[search]'"
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

    def ask(self, space: Space) -> tuple[int, dict[str, Any]]:
        """A new trial: its number and its settings."""
        trial = self._study.ask({key: self._distribution(values) for key, values in space.items()})
        return trial.number, dict(trial.params)

    def tell(self, number: int, value: float | None) -> None:
        """What came of a trial, the higher the better; None if it failed. What was told before stands."""
        state = None if value is not None else self._optuna.trial.TrialState.FAIL
        self._study.tell(number, value, state=state, skip_if_finished=True)

    def best(self) -> tuple[int, dict[str, Any]] | None:
        """Number and settings of the best trial so far."""
        try:
            best = self._study.best_trial
        except ValueError:
            return None
        return best.number, dict(best.params)

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
