"""Linkage disequilibrium between nearby variants: squared correlations of dosages from packed genotypes.

Missing genotypes are imputed by the mean of the rows used. Shapes: N samples, V variants, W window.
Knows neither blocks nor files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.genetics.packed import MISSING, PackedGenotypes

MAX_ROWS = 2_000
"""Samples used at most: the standard error of an r of 2,000 people is .02, and more only cost time."""

_MIN_TILE = 128
_VARIANTS_AT_ONCE = 4_096


class LDNeighbors(NamedTuple):
    """The LD graph as the strongest partners of each variant.

    Attributes:
        neighbors: (V, k) int64 partners, strongest first; the variant itself where there are fewer than k.
        weights: (V, k) float32 r² divided by its sum over the row; 0 where there is no partner.
    """

    neighbors: NDArray[np.int64]
    weights: NDArray[np.float32]


def backward_r2(
    genotypes: PackedGenotypes,
    *,
    chrom: NDArray[np.object_],
    window: int,
    rows: NDArray[np.integer] | None = None,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Walks along the variants and correlates each with the ones before it.

    One tile of standardised columns, as many as the window has, is in memory at a time and is correlated with
    itself and the ``window`` columns before it by one matrix product: O(N W) memory and O(N V W) work.

    `chrom`: (V,), those of one chromosome together; `rows`: samples to use, those of the training set. Yields
    the first variant v of the tile, and (v', W) r²: [i, j] is that of variants v + i and v + i - 1 - j, and 0
    where the latter does not exist or lies on another chromosome or either of the two does not vary.
    """
    chosen = draw_rows(genotypes.num_samples, rows=rows, max_rows=max_rows, seed=seed)
    chrom_code = pd.factorize(chrom)[0]
    tile = max(_MIN_TILE, window)
    standardised = np.zeros((len(chosen), window + tile), dtype=np.float32)
    for start, codes in genotypes.column_chunks(rows=chosen, max_variants=tile):
        num_new = codes.shape[1]
        filled = window + num_new
        standardised[:, window:filled] = _standardise(codes)
        r = standardised[:, window:filled].T @ standardised[:, :filled]
        partner = np.arange(num_new)[:, None] + (window - 1 - np.arange(window))
        r2 = np.minimum(np.take_along_axis(r, partner, axis=1) ** 2, np.float32(1))
        earlier = np.maximum(partner + (start - window), 0)
        r2[chrom_code[earlier] != chrom_code[start : start + num_new, None]] = 0
        yield start, r2
        standardised[:, :window] = standardised[:, num_new:filled].copy()


def banded_r2(
    genotypes: PackedGenotypes,
    *,
    chrom: NDArray[np.object_],
    window: int,
    rows: NDArray[np.integer] | None = None,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Squared correlations of each variant with the ones that follow it.

    Takes V * W * 4 bytes: 26 MB for 100,000 variants and a window of 64.

    Returns (V, W) r²: [v, j] is that of variants v and v + 1 + j; 0 across chromosomes, past the last variant
    and where a variant does not vary. See :func:`backward_r2`.
    """
    num_variants = genotypes.num_variants
    band = np.zeros((num_variants, window), dtype=np.float32)
    lag = np.arange(window)
    for start, r2 in backward_r2(
        genotypes, chrom=chrom, window=window, rows=rows, max_rows=max_rows, seed=seed
    ):
        earlier = np.arange(start, start + len(r2))[:, None] - 1 - lag
        exists = earlier >= 0
        band[earlier[exists], np.broadcast_to(lag, earlier.shape)[exists]] = r2[exists]
    return band


def ld_neighbors(
    genotypes: PackedGenotypes,
    *,
    chrom: NDArray[np.object_],
    rows: NDArray[np.integer] | None = None,
    k: int = 8,
    window: int = 64,
    r2_min: float = 0.05,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> LDNeighbors:
    """Finds the variants in strongest LD with each variant, on both sides of it.

    Of equal partners the nearer comes first. For genotypes repacked into the slots of a token layout give
    ``layout.from_variants(chrom, fill="")``: a padding slot then is its own partner with weight 0.

    `k` is at most ``2 * window``, and partners below `r2_min` do not count. Takes the memory of
    :func:`banded_r2` besides.
    """
    assert k <= 2 * window
    band = banded_r2(genotypes, chrom=chrom, window=window, rows=rows, max_rows=max_rows, seed=seed)
    num_variants = len(band)
    index = np.empty((num_variants, k), dtype=np.int64)
    weight = np.empty((num_variants, k), dtype=np.float32)
    lag = np.arange(window)
    # Nearest first on either side, so that the stable sort below prefers the nearer of equals.
    offset = np.stack([-1 - lag, 1 + lag], axis=1).reshape(-1)
    for start in range(0, num_variants, _VARIANTS_AT_ONCE):
        here = np.arange(start, min(start + _VARIANTS_AT_ONCE, num_variants))
        earlier = here[:, None] - 1 - lag
        before = np.where(earlier >= 0, band[np.maximum(earlier, 0), lag], 0)
        r2 = np.stack([before, band[here]], axis=2).reshape(len(here), -1)
        best = np.argsort(-r2, axis=1, kind="stable")[:, :k]
        strength = np.take_along_axis(r2, best, axis=1)
        strength[strength < r2_min] = 0
        index[here] = np.where(strength > 0, here[:, None] + offset[best], here[:, None])
        weight[here] = strength / np.maximum(strength.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return LDNeighbors(neighbors=index, weights=weight)


def draw_rows(
    num_samples: int, *, rows: NDArray[np.integer] | None, max_rows: int, seed: int
) -> NDArray[np.int64]:
    """The rows to compute LD from: of more than `max_rows`, as many drawn at random, in their order."""
    candidates = np.arange(num_samples) if rows is None else np.asarray(rows, dtype=np.int64)
    if len(candidates) <= max_rows:
        return candidates
    drawn = np.random.default_rng(seed).choice(len(candidates), size=max_rows, replace=False)
    return candidates[np.sort(drawn)]


def evenly_spaced(num_all: int, num_most: int) -> NDArray[np.int64]:
    """At most `num_most` of the indices of `num_all` things, the first and the last among them."""
    return np.linspace(0, num_all - 1, min(num_all, num_most)).round().astype(np.int64)


def _standardise(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Centres columns, puts their mean 0 for missing and scales them to length 1, constant ones to 0."""
    missing = codes == MISSING
    dosage = codes.astype(np.float32)
    dosage[missing] = 0
    called = np.maximum(len(codes) - missing.sum(axis=0), 1)
    dosage -= (dosage.sum(axis=0) / called).astype(np.float32)
    dosage[missing] = 0
    length = np.sqrt(np.einsum("nv,nv->v", dosage, dosage))
    # Sums of codes are exact in float32, so a constant column is exactly 0 here.
    dosage *= np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    return dosage
