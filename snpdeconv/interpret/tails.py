"""Tails of t, F and normal statistics as -log10 p, where p itself may be far below the smallest float.

Knows no genotype and no trait. Shapes: V variants.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
# Below this the incomplete beta function is close to underflow, and its continued fraction converges fast.
SMALLEST_DIRECT = 1e-250
# Of the variation, the share that a fit always leaves: rounding, and what keeps -log10 p finite.
SMALLEST_RESIDUAL = 1e-15


def t_tail(statistic: Floats, *, df: float) -> Floats:
    """-log10 of the two-sided p-value of t statistics (V,)."""
    return f_tail(statistic**2, df_model=1, df_residual=df)


def f_tail(statistic: Floats, *, df_model: float, df_residual: float) -> Floats:
    """-log10 of the upper tail of F statistics (V,)."""
    unexplained = df_residual / (df_residual + df_model * statistic)
    # Never -0.0 for a statistic of 0.
    neg_log10_p: Floats = np.abs(_log_betainc(df_residual / 2, df_model / 2, unexplained)) / np.log(10)
    return neg_log10_p


def normal_tail(statistic: Floats) -> Floats:
    """-log10 of the two-sided p-value of standard normal statistics (V,)."""
    upper: Floats = special.log_ndtr(-np.abs(statistic))
    # Twice the upper tail is 1 at 0, which rounding must not carry past 1.
    neg_log10_p: Floats = np.maximum(-(upper + np.log(2)) / np.log(10), 0.0)
    return neg_log10_p


def deviate(neg_log10_p: Floats) -> Floats:
    """Normal deviate, from 0 up, of two-sided p-values (V,)."""
    deviates: Floats = -special.ndtri_exp(-neg_log10_p * np.log(10) - np.log(2))
    return deviates


def inflation(neg_log10_p: Floats) -> float:
    """Genomic control lambda (Devlin and Roeder 1999): median chi-square of the p-values over that expected.

    Args:
        neg_log10_p: (V,) of the variants tested, at least one.
    """
    return float(deviate(np.asarray(np.median(neg_log10_p))) ** 2 / special.ndtri(0.25) ** 2)


def _log_betainc(a: float, b: float, x: Floats) -> Floats:
    """Log of the regularised incomplete beta function I_x(a, b)."""
    direct = special.betainc(a, b, x)
    tail = direct < SMALLEST_DIRECT
    out: Floats = np.log(np.where(tail, 1.0, direct))
    far = np.maximum(x[tail], SMALLEST_RESIDUAL)
    front = a * np.log(far) + b * np.log1p(-far) - np.log(a) - special.betaln(a, b)
    out[tail] = front + np.log(_beta_fraction(a, b, far))
    return out


def _beta_fraction(a: float, b: float, x: Floats) -> Floats:
    """Continued fraction of I_x(a, b) (DLMF 8.17.22) by Lentz's method, for x < a / (a + b)."""
    c = np.ones_like(x)
    d = 1 / (1 - (a + b) * x / (a + 1))
    value = d.copy()
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        change = np.ones_like(x)
        for coefficient in (even, odd):
            d = 1 / (1 + coefficient * d)
            c = 1 + coefficient / c
            change *= c * d
        value *= change
        if np.all(np.abs(change - 1) < 1e-14):
            break
    return value
