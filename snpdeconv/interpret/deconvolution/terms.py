"""A fit as a sum of terms of one SNP or two: all that another program needs to predict.

Owns the terms' values and their sum; numpy only. Knows no posterior and no file.
Shapes: n samples, T terms, O outputs, C covariates; a value for each of the codes 0, 1, 2, missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.genotypes import PackedGenotypes

Floats = NDArray[np.float64]

NUM_CODES = 4
# Samples times terms made at once: 64 MiB of float64.
BATCH_ELEMENTS = 2**23


@dataclass(frozen=True)
class Terms:
    """Linear predictors: intercept, covariates, and weighted products of one value or two a sample.

    Attributes:
        first: (T,) variant.
        second: (T,) other variant, -1 where the term is of one SNP.
        first_value: (T, 4) value of each code of the first variant.
        second_value: (T, 4) of the second, ones where there is none.
        weight: (O, T).
        intercept: (O,).
        covariate_weight: (O, C) of the covariates as given to the fit.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_value: Floats
    second_value: Floats
    weight: Floats
    intercept: Floats
    covariate_weight: Floats

    def __len__(self) -> int:
        return len(self.first)

    def predict(self, genotypes: PackedGenotypes, covariates: ArrayLike | None = None) -> Floats:
        """Linear predictors of samples.

        Args:
            genotypes: The variants of the fit, in its order.
            covariates: (n, C) as given to the fit.

        Returns:
            (n, O) means of a quantitative trait, or log odds.

        Raises:
            InputError: Variants are missing, or the covariates are not those of the fit.
        """
        given = np.empty((genotypes.num_samples, 0)) if covariates is None else np.asarray(covariates)
        expected = self.covariate_weight.shape[1]
        if given.shape[1] != expected:
            raise InputError(
                f"{given.shape[1]} columns, but the fit had {expected}",
                where="covariates",
                mend="give those of the fit in its order",
            )
        last = max(self.first.max(initial=-1), self.second.max(initial=-1))
        if last >= genotypes.num_variants:
            raise InputError(
                f"{genotypes.num_variants} variants, but variant {last} has a weight",
                where="genotypes",
                mend="give those of the fit in its order",
            )
        total: Floats = self.intercept + given @ self.covariate_weight.T
        single = np.flatnonzero(self.second < 0)
        paired = np.flatnonzero(self.second >= 0)
        step = max(1, BATCH_ELEMENTS // max(1, genotypes.num_samples))
        for start in range(0, len(single), step):
            terms = single[start : start + step]
            codes = genotypes.codes(columns=self.first[terms])
            for code in range(NUM_CODES):
                total += (codes == code) @ (self.first_value[terms, code] * self.weight[:, terms]).T
        for start in range(0, len(paired), step):
            terms = paired[start : start + step]
            value = self._values(genotypes, self.first[terms], self.first_value[terms])
            value *= self._values(genotypes, self.second[terms], self.second_value[terms])
            total += value @ self.weight[:, terms].T
        return total

    @staticmethod
    def _values(genotypes: PackedGenotypes, variants: NDArray[np.int64], value: Floats) -> Floats:
        """(n, t) values of the codes of (t,) variants."""
        codes = genotypes.codes(columns=variants)
        out: Floats = value[np.arange(len(variants)), codes]
        return out
