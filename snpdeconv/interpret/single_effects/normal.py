"""The climb of a normal likelihood's bound, and the search for a higher one beyond the first that it reaches.

Owns the residual variance and when to stop; knows effects only by their sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from snpdeconv.interpret.single_effects.sweeps import SingleEffectSum

# Gain of the bound at which, where passes are dear, effects spread over very many columns are left alone:
# they creep on for many sweeps, each of which takes two passes an effect.
SPREAD_TOLERANCE = 0.02
# Gain of the bound for which another solution is taken, and sweeps in which it has to show.
REFINED_GAIN = 0.5
REFINED_SWEEPS = 12
REFINED_TOLERANCE = 0.05
MOST_REFINEMENTS = 10
# Sweeps after which a trial that has lost so much of the bound is given up.
FIRST_SWEEPS = 2
HOPELESS = 20.0
# Of the trait's variance: single precision cannot tell less noise from none, which has no Bayes factors.
LEAST_NOISE = 1e-6


@dataclass
class NormalClimb:
    """Effects of a linear regression on their way up.

    Attributes:
        effects: The posterior.
        noise: Residual variance.
        total: Sum of squares of the trait.
        df: Degrees of freedom of the residual variance.
        elbo: The bound after each sweep.
    """

    effects: SingleEffectSum
    noise: float
    total: float
    df: int
    elbo: list[float]

    def run(self, *, max_sweeps: int, tolerance: float, spread: bool, never_spread: bool = False) -> bool:
        """Sweeps until the bound stands still; the residual variance is set to its best value after each.

        Args:
            max_sweeps: Most sweeps in all.
            tolerance: Gain of the bound at which to stop.
            spread: Whether effects spread over very many columns take part from the first sweep on; else they
                do whenever the others have settled.
            never_spread: Whether they stay as they are.

        Returns:
            Whether the bound stands still.
        """
        always = spread
        while len(self.elbo) < max_sweeps:
            self.effects.sweep(self.noise, spread=spread)
            squares = self.effects.expected_squares(self.total)
            likelihood = self.df * math.log(2 * math.pi * self.noise) + squares / self.noise
            self.elbo.append(-0.5 * likelihood - self.effects.divergence())
            dear = spread and self.effects.spare_passes
            settled = has_converged(self.elbo, max(tolerance, SPREAD_TOLERANCE) if dear else tolerance)
            if settled and (spread or never_spread):
                return True
            spread = not never_spread and (settled or always)
            self.noise = max(squares, LEAST_NOISE * self.total) / self.df
        return False


def refined(climb: NormalClimb, *, tolerance: float) -> NormalClimb:
    """Leaves a local optimum for a higher one, if taking an effect's columns away for a while leads there.

    Coordinate ascent is caught where one column stands in for two that it is linked to. As in susieR's
    ``refine``, the columns of one effect are forbidden, the other effects settle without them, and all settle
    again with them; the first solution whose bound is higher is taken, until there is none.

    Args:
        climb: At its top.
        tolerance: Gain of the bound at which to stop.

    Returns:
        The highest found.
    """
    tried: set[bytes] = set()
    for _ in range(MOST_REFINEMENTS):
        better = next(_higher(climb, tried), None)
        if better is None:
            return climb
        sweeps = len(better.elbo)
        better.effects.wake()
        better.run(max_sweeps=sweeps + 50, tolerance=tolerance, spread=not climb.effects.spare_passes)
        climb = better
    return climb


def _higher(climb: NormalClimb, tried: set[bytes]) -> Iterator[NormalClimb]:
    for index in climb.effects.entangled():
        if index.tobytes() in tried:
            continue
        tried.add(index.tobytes())
        trial = NormalClimb(
            effects=climb.effects.without(index), noise=climb.noise, total=climb.total, df=climb.df, elbo=[]
        )
        trial.run(max_sweeps=FIRST_SWEEPS, tolerance=REFINED_TOLERANCE, spread=False, never_spread=True)
        # Where two columns lie behind the one taken away, they are there by now; nothing else replaces it.
        if trial.elbo[-1] < climb.elbo[-1] - HOPELESS:
            continue
        trial.run(max_sweeps=REFINED_SWEEPS, tolerance=REFINED_TOLERANCE, spread=False, never_spread=True)
        trial.effects.allow_all_of(climb.effects)
        trial.elbo.clear()
        trial.run(max_sweeps=REFINED_SWEEPS, tolerance=REFINED_TOLERANCE, spread=False, never_spread=True)
        if trial.elbo[-1] > climb.elbo[-1] + REFINED_GAIN:
            trial.elbo[:] = [*climb.elbo, trial.elbo[-1]]
            yield trial


def has_converged(elbo: list[float], tolerance: float) -> bool:
    """Whether the last sweep gained less than the tolerance."""
    return len(elbo) > 1 and elbo[-1] - elbo[-2] < tolerance
