"""Whether a new model is better than the champion, beyond chance, training noise and many looks.

Three things pass for progress. The people judged are a sample: a paired bootstrap over them. One recipe
trained with another seed or other epochs is another model, better or worse: a twin of the challenger shows by
how much. And the same people judge every week: the k-th look at a champion has the level .05 / (k (k + 1)),
so that all looks together, however many, promote what is no better in at most 5 % (Bonferroni).
Shapes: N people judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from snpdeconv.training.intervals import paired_draws
from snpdeconv.training.metrics import Kind

LEVEL = 0.05
"""Of all looks at one champion together."""
POWER = 0.8

# Variance of the true difference between two trainings of one recipe, in units of that by which the people
# judged blur it. Measured on one simulated cohort of each size, on seeds for choices: .2 to 1.3, most with
# a sparse part on a few hundred people.
TRAINING_NOISE = 2.0


@dataclass(frozen=True)
class Verdict:
    """What a look at a challenger says.

    Attributes:
        difference: The challenger's metric less the champion's.
        low: Lower bound of the difference at the look's level; above 0, the challenger is better.
        high: Upper bound.
        look: Which look at this champion it was, from 1.
        level: One-sided, of this look.
        training_noise: Standard deviation of the difference between two trainings of the challenger; None
            where the people alone did not speak for it, and no twin was trained.
        detectable: The true gain that such a look would find in four of five cases.
    """

    difference: float
    low: float
    high: float
    look: int
    level: float
    training_noise: float | None
    detectable: float

    @property
    def is_better(self) -> bool:
        """Whether the challenger should take the champion's place."""
        return self.low > 0


def level_of(look: int) -> float:
    """The one-sided level of a look, from 1; all of them sum to `LEVEL`."""
    return LEVEL / (look * (look + 1))


def judge(
    kind: Kind,
    *,
    challenger: ArrayLike,
    champion: ArrayLike,
    truth: ArrayLike,
    metric: str,
    look: int,
    twin: Callable[[], ArrayLike],
    seed: int,
    num_resamples: int = 2000,
) -> Verdict:
    """Compares two models on the people that neither was trained on.

    Args:
        kind: Kind of the trait.
        challenger: (N,) or (N, C) predictions of the new model.
        champion: The same of the champion.
        truth: (N,).
        metric: One of `metrics.evaluate`, of which more is better.
        look: Which look at this champion it is, from 1.
        twin: Gives the predictions of the challenger's recipe trained with another seed; asked only where the
            challenger would be promoted without.
        seed: Of the resamples.
        num_resamples: Resamples drawn.
    """
    num_people = len(np.asarray(truth))
    level = level_of(look)
    quantile = float(stats.t.isf(level, max(num_people - 1, 1)))

    def draws(one: ArrayLike, other: ArrayLike) -> tuple[float, NDArray[np.float64]]:
        return paired_draws(kind, one, other, truth, metric=metric, num_resamples=num_resamples, seed=seed)

    difference, drawn = draws(challenger, champion)
    low_centre = high_centre = difference
    sd, noise = float(drawn.std()), None
    if difference - quantile * sd > 0:
        of_twin, drawn_twin = draws(twin(), champion)
        # The challenger alone was chosen for being high: the recipe's mean is what the next one will have.
        mean = (difference + of_twin) / 2
        low_centre, high_centre = min(difference, mean), max(difference, mean)
        noise = math.sqrt(TRAINING_NOISE) * float((drawn - drawn_twin).std())
        sd = math.hypot(float(((drawn + drawn_twin) / 2).std()), noise)
    return Verdict(
        difference=difference,
        low=low_centre - quantile * sd,
        high=high_centre + quantile * sd,
        look=look,
        level=level,
        training_noise=noise,
        detectable=(quantile + float(stats.norm.ppf(POWER))) * sd,
    )
