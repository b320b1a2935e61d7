"""Interactions of SNPs with covariates in the sum of single effects: prior, columns and result.

Knows neither how products are tested nor in what order fits are made. Shapes: N samples, E products of a SNP
and a covariate, K covariates that may interact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snpdeconv.epistasis import CovariateScan
from snpdeconv.finemapping.columns import ExtraColumns
from snpdeconv.finemapping.susie import SingleEffectsFit

Floats = NDArray[np.float64]

# Prior weight of the products of all SNPs with one covariate; the dosages of all SNPs together weigh 1.
INTERACTIONS_WEIGHT = 1.0


@dataclass(frozen=True)
class InteractionEffects:
    """Products of a SNP and a covariate that joined the last fit, in the order of its last E columns."""

    variant: NDArray[np.int64]  # (E,)
    covariate: NDArray[np.int64]  # (E,) column of the covariates
    # (E,) posterior mean coefficient of the standardised product without what dosage, dominance and
    # covariates explain of it, in the trait's unit or log odds; NaN where it does not act
    effect: Floats
    pip: Floats  # (E,) probability that the product acts
    neg_log10_p: Floats  # (E,) -log10 p-value of the robust test, not corrected for the number of products
    # (E,) false discovery rate of the signal that this one belongs to: the larger of what the p-values of all
    # products and the posterior say
    q_value: Floats

    def __len__(self) -> int:
        return len(self.variant)

    @classmethod
    def none(cls) -> InteractionEffects:
        """Of a fit without."""
        nothing, whole = np.empty(0), np.empty(0, dtype=np.int64)
        return cls(whole, whole, nothing, nothing, nothing, nothing)

    @classmethod
    def of(
        cls, fit: SingleEffectsFit, scan: CovariateScan, *, covariates: Sequence[int]
    ) -> InteractionEffects:
        """Of a fit whose last columns are those of the scan, the scan's modifiers being `covariates` (K,)."""
        last = slice(len(fit.column_pip) - len(scan), None)
        pip = fit.column_pip[last]
        # A signal is true as far as one of its products acts; one of a larger p-value makes none surer.
        missed = 1 - np.minimum(np.bincount(scan.signal, pip), 1.0)
        by_p = scan.q_value
        order = np.argsort(by_p[scan.leads], kind="stable")
        by_posterior = np.empty(len(order))
        rate = np.cumsum(missed[order]) / np.arange(1, len(order) + 1)
        by_posterior[order] = np.maximum.accumulate(rate)
        return cls(
            variant=scan.variant,
            covariate=np.asarray(covariates, dtype=np.int64)[scan.modifier],
            effect=fit.column_effect[last],
            pip=pip,
            neg_log10_p=scan.neg_log10_p,
            q_value=np.maximum(by_p, by_posterior[scan.signal]),
        )


def interaction_columns(scan: CovariateScan) -> ExtraColumns:
    """Columns of the products that a scan kept.

    A robust test that sees less evidence than the likelihood lowers the prior by as much, so that posterior
    odds rest on what the robust test says.
    """
    each = INTERACTIONS_WEIGHT / np.maximum(1, scan.num_tested)[scan.modifier]
    return ExtraColumns(
        values=scan.values,
        variants=np.column_stack([scan.variant, np.full(len(scan), -1)]),
        weight=each * np.exp(scan.log_discount),
    )


def centred_squares(values: NDArray[np.generic]) -> Floats:
    """(N, any number) centred squares of the columns (N, K) that are no indicators."""
    numbers = values.astype(np.float64)[:, [len(np.unique(column)) > 2 for column in values.T]]
    squares = (numbers - numbers.mean(axis=0)) ** 2
    return np.asarray(squares - squares.mean(axis=0))
