"""Products of all columns with the few that carry the posterior: a Gram matrix made where it is asked for.

Owns sample weights, the cache and when a pass over the genotypes is worth it; knows no trait.
Shapes: N samples, P columns, S columns held.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.interpret.single_effects.columns import Columns
from snpdeconv.interpret.single_effects.kept_rows import KeptRows

# Fetching so many columns costs about as much as the passes that a dense product would take in all sweeps.
MOST_FETCHED = 256
# Products (P, K) of a pass in float64; with what is made of them they exist about three times.
BLOCK_BYTES = 2**28


class LazyGram:
    """Rows of X'WX, where X is projected off the covariates under the weights W.

    Args:
        columns: The columns X.
        weight: (N,) of the samples; None for equal weights of 1.
        precision: (Q,) of the covariates' coefficients before the data, in their basis; flat by default.
        cache_bytes: Most memory that rows may keep.
    """

    def __init__(
        self,
        columns: Columns,
        *,
        weight: Tensor | None = None,
        precision: Tensor | None = None,
        cache_bytes: int = 2**29,
    ) -> None:
        self._columns = columns
        self._weight = weight
        basis = columns.basis
        self.cross = basis if weight is None else basis * weight[:, None]
        known = basis.T @ self.cross
        self.inverse = torch.linalg.inv(known if precision is None else known + torch.diag(precision))
        self.is_constant = weight is None
        self.most_rows = max(2 * MOST_FETCHED, cache_bytes // (4 * columns.num_columns))
        self._rows = KeptRows(
            columns.num_columns, width=columns.num_columns, most=self.most_rows, device=columns.device
        )
        self.has = self._rows.has
        self.num_passes = 0

    @cached_property
    def diagonal(self) -> Tensor:
        """(P,) diagonal of X'WX; two passes where samples have weights."""
        columns = self._columns
        if self._weight is None:
            squares = torch.full((columns.num_columns,), float(columns.num_samples), dtype=torch.float64)
            return squares.to(columns.device)
        squares = columns.weighted_squares(self._weight, cross=self.cross, inverse=self.inverse)
        usable = torch.from_numpy(columns.usable).to(columns.device)
        # A column that is left out has prior weight 0; 1 keeps its unused quotients finite.
        return torch.where(usable & (squares > 0), squares, 1.0)

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors (N, K) less what the covariates explain under the weights."""
        values: Tensor = vectors.double()
        return values.sub(self._columns.basis @ (self.inverse @ (self.cross.T @ values)))

    def correlate(self, vectors: Tensor) -> Tensor:
        """X'v of vectors (N, K) as they are, (P, K); one pass."""
        self.num_passes += 1
        return self._columns.correlate(vectors)

    def fetch(self, index: NDArray[np.int64]) -> None:
        """Makes rows available; those missing are made together.

        Args:
            index: Columns, in any order; at most ``most_rows`` of them count.
        """
        absent = self._rows.absent(np.unique(index)[: self.most_rows])
        step = max(16, BLOCK_BYTES // (8 * self._columns.num_columns))
        for start in range(0, len(absent), step):
            block = absent[start : start + step]
            values = self._columns.take(block, again=self._weight is not None)
            weighted = values if self._weight is None else self.project(values) * self._weight[:, None]
            self._rows.add(block, self.correlate(weighted).T.float())

    def score(self, index: NDArray[np.int64], weight: Tensor) -> Tensor:
        """(N,) projected X b of a vector b with entries at an index (S,); a pass if they are many."""
        if len(index) <= MOST_FETCHED:
            return self.project(self._columns.take(index, again=True)) @ weight
        full = torch.zeros(self._columns.num_columns, dtype=torch.float64, device=weight.device)
        full[torch.from_numpy(index).to(weight.device)] = weight
        return self.project(self._columns.combine(full)[:, None])[:, 0]

    def times(self, index: NDArray[np.int64], weight: Tensor, *, score: Tensor | None = None) -> Tensor:
        """X'WX b of a vector b with few entries other than zero.

        Args:
            index: (S,) where.
            weight: (S,) float64 what.
            score: What :meth:`score` gives, if it is known, which spares a pass where entries are many.

        Returns:
            (P,) float64.
        """
        if len(index) > MOST_FETCHED:
            return self._dense_times(index, weight, score)
        self.fetch(index)
        # In float64 this would move twice the memory for digits that the rows do not have.
        return (weight.float() @ self._rows.of(index)).double()

    def _dense_times(self, index: NDArray[np.int64], weight: Tensor, score: Tensor | None) -> Tensor:
        """The same from the genotypes, for many entries: one pass, or two under weights."""
        self.num_passes += 1
        if self._weight is None:
            full = torch.zeros(self._columns.num_columns, dtype=torch.float64, device=weight.device)
            full[torch.from_numpy(index).to(weight.device)] = weight
            return self._columns.gram_times(full)
        score = self.score(index, weight) if score is None else score
        return self.correlate((score * self._weight)[:, None])[:, 0]
