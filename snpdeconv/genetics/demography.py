"""Histories of populations for the coalescent: one with human-like LD, and three of the out-of-Africa model.

Owns who belongs to which population. Knows no mutations and no genotypes; msprime is handed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

POPULATIONS = ("AFR", "EUR", "EAS")
"""The populations of the out-of-Africa model."""


def population_labels(num_samples: int) -> NDArray[np.object_]:
    """Tells who belongs to which population when three are simulated.

    Args:
        num_samples: N.

    Returns:
        (N,) names of :data:`POPULATIONS`, taking turns, so that any stretch of people holds all three.
    """
    return np.array(POPULATIONS, dtype=object)[np.arange(num_samples) % len(POPULATIONS)]


@dataclass(frozen=True)
class Population:
    """A history and the people drawn from it, who take turns among its present-day populations.

    Attributes:
        demography: The ``msprime.Demography``.
        names: Its present-day populations.
    """

    demography: Any
    names: tuple[str, ...]

    def samples(self, num_people: int) -> dict[str, int]:
        """Counts the people of each population.

        Args:
            num_people: People in all.

        Returns:
            Population to number, as msprime takes it.
        """
        share, rest = divmod(num_people, len(self.names))
        return {name: share + (p < rest) for p, name in enumerate(self.names)}

    def rows(self, num_people: int) -> NDArray[np.int64]:
        """Finds each person among msprime's, who are sorted by population.

        Args:
            num_people: N.

        Returns:
            (N,) the place of each person.
        """
        member = np.arange(num_people) % len(self.names)
        return np.argsort(np.argsort(member, kind="stable"))


def one_population(msprime: Any) -> Population:
    """Makes a population that went through a bottleneck 3,000 to 200 generations ago and has grown since.

    Args:
        msprime: The module.

    Returns:
        The population.
    """
    demography = msprime.Demography()
    demography.add_population(name="A", initial_size=20_000, growth_rate=0.01)
    demography.add_population_parameters_change(time=200, initial_size=2_700, growth_rate=0, population="A")
    demography.add_population_parameters_change(time=3_000, initial_size=12_000, population="A")
    return Population(demography, ("A",))


def three_populations(msprime: Any) -> Population:
    """Makes Africans, Europeans and East Asians of the out-of-Africa model.

    The figures are those of Gutenkunst et al. 2009 (PLoS Genetics 5:e1000695, table 1), in generations of
    25 years.

    Args:
        msprime: The module.

    Returns:
        The three populations.
    """
    split_of_eurasians, out_of_africa, growth_of_africans = 21.2e3 / 25, 140e3 / 25, 220e3 / 25
    growth_eur, growth_eas = 0.004, 0.0055
    demography = msprime.Demography()
    demography.add_population(name="AFR", initial_size=12_300)
    demography.add_population(
        name="EUR", initial_size=1_000 * math.exp(growth_eur * split_of_eurasians), growth_rate=growth_eur
    )
    demography.add_population(
        name="EAS", initial_size=510 * math.exp(growth_eas * split_of_eurasians), growth_rate=growth_eas
    )
    demography.add_population(name="EURASIA", initial_size=2_100)
    demography.add_population(name="AFRICA", initial_size=12_300)
    demography.add_population(name="ANCESTORS", initial_size=7_300)
    demography.set_symmetric_migration_rate(["AFR", "EUR"], 3e-5)
    demography.set_symmetric_migration_rate(["AFR", "EAS"], 1.9e-5)
    demography.set_symmetric_migration_rate(["EUR", "EAS"], 9.6e-5)
    demography.add_population_split(split_of_eurasians, derived=["EUR", "EAS"], ancestral="EURASIA")
    demography.add_symmetric_migration_rate_change(split_of_eurasians, ["AFR", "EURASIA"], 25e-5)
    demography.add_population_split(out_of_africa, derived=["AFR", "EURASIA"], ancestral="AFRICA")
    demography.add_population_split(growth_of_africans, derived=["AFRICA"], ancestral="ANCESTORS")
    return Population(demography, POPULATIONS)
