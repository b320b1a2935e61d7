"""Sums of terms of one SNP or two: all of a sparse fit that prediction needs, of samples or in a network.

Owns the terms' values and their sum; numpy only. Knows no posterior and no file.
Shapes: n samples, V variants (or a model's slots), T terms, O outputs, C covariates; a value for each of the
codes 0, 1, 2, missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.packed import PackedGenotypes

Floats = NDArray[np.float64]

NUM_CODES = 4
# Samples times terms made at once: 64 MiB of float64.
BATCH_ELEMENTS = 2**23


@dataclass(frozen=True)
class Terms:
    """Linear predictors: intercept, covariates, and weighted products of one value or two a sample."""

    first: NDArray[np.int64]  # (T,) variant
    second: NDArray[np.int64]  # (T,) other variant, -1 where the term is of one SNP
    first_value: Floats  # (T, 4) value of each code of the first variant
    second_value: Floats  # (T, 4) of the second, ones where there is none
    weight: Floats  # (O, T)
    intercept: Floats  # (O,)
    covariate_weight: Floats  # (O, C) of the covariates as given to the fit

    def __len__(self) -> int:
        return len(self.first)

    def predict(self, genotypes: PackedGenotypes, covariates: ArrayLike | None = None) -> Floats:
        """Linear predictors of samples.

        `covariates`: (n, C) as given to the fit; returns (n, O) means of a quantitative trait, or log odds.
        """
        given = np.empty((genotypes.num_samples, 0)) if covariates is None else np.asarray(covariates)
        expected = self.covariate_weight.shape[1]
        if given.shape[1] != expected:
            raise InputError(
                f"{given.shape[1]} columns, but the fit had {expected}",
                where="covariates",
                hint="give those of the fit in its order",
            )
        last = max(self.first.max(initial=-1), self.second.max(initial=-1))
        if last >= genotypes.num_variants:
            raise InputError(
                f"{genotypes.num_variants} variants, but variant {last} has a weight",
                where="genotypes",
                hint="give those of the fit in its order",
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

    def scaled(self, slope: Floats) -> Terms:
        """The predictors slope @ these; slope is (O', O)."""
        return replace(
            self,
            weight=slope @ self.weight,
            intercept=slope @ self.intercept,
            covariate_weight=slope @ self.covariate_weight,
        )

    def variance(self, frequency: Floats) -> Floats:
        """(T,) variance of each term, outputs added up, under Hardy-Weinberg proportions and no linkage."""
        mean_first, square_first = self._moments(self.first, self.first_value, frequency)
        mean_second, square_second = self._moments(self.second, self.second_value, frequency)
        variance = square_first * square_second - (mean_first * mean_second) ** 2
        return np.asarray(np.square(self.weight).sum(axis=0) * np.maximum(variance, 0.0))

    def variance_of_variants(self, frequency: Floats) -> Floats:
        """(V,) the variance of each one's terms; a pair's counts half for either. See `variance`."""
        variance, paired = self.variance(frequency), self.second >= 0
        total = np.bincount(self.first, np.where(paired, variance / 2, variance), minlength=len(frequency))
        total += np.bincount(self.second[paired], variance[paired] / 2, minlength=len(frequency))
        return np.asarray(total)

    def drop_negligible(self, frequency: Floats) -> Terms:
        """The terms without the smallest, which together change the sum by at most a hundredth of its spread.

        A fit that is unsure of an effect gives a little of it to thousands of SNPs.

        `frequency`: (V,) of the counted allele.
        """
        variance = self.variance(frequency)
        order = np.argsort(variance, kind="stable")
        # Linked terms add up: the sum's standard deviation is at most the sum of theirs.
        left_out = np.cumsum(np.sqrt(variance[order])) <= 0.01 * np.sqrt(variance.sum())
        kept = np.sort(order[~left_out])
        return replace(
            self,
            first=self.first[kept],
            second=self.second[kept],
            first_value=self.first_value[kept],
            second_value=self.second_value[kept],
            weight=self.weight[:, kept],
        )

    @staticmethod
    def _moments(variant: NDArray[np.int64], value: Floats, frequency: Floats) -> tuple[Floats, Floats]:
        p = frequency[variant]
        share = np.column_stack([(1 - p) ** 2, 2 * p * (1 - p), p**2])
        return (share * value[:, :3]).sum(axis=1), (share * value[:, :3] ** 2).sum(axis=1)

    @staticmethod
    def _values(genotypes: PackedGenotypes, variants: NDArray[np.int64], value: Floats) -> Floats:
        """(n, t) values of the codes of (t,) variants."""
        codes = genotypes.codes(columns=variants)
        out: Floats = value[np.arange(len(variants)), codes]
        return out
