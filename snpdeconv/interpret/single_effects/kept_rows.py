"""Rows of numbers by key, made where they are asked for and kept while there is room.

Owns the memory and what is thrown away; knows not what the rows are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class KeptRows:
    """Rows (width,) of float32 by keys 0 to num_keys - 1.

    Args:
        num_keys: Keys there can be.
        width: Numbers in a row.
        most: Most rows.
        device: Where they are.
    """

    def __init__(self, num_keys: int, *, width: int, most: int, device: torch.device) -> None:
        self.most = most
        self._row_of = np.full(num_keys, -1)
        self._rows = torch.empty((0, width), dtype=torch.float32, device=device)
        self._num_rows = 0

    def absent(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Keys of an index (up to `most`) whose rows have to be added; all of them where room was lacking."""
        index = np.unique(index)
        absent = index[self._row_of[index] < 0]
        if self._num_rows + len(absent) <= self.most:
            return absent
        # All that the last effects used comes again within a sweep; older rows are unlikely to.
        self._row_of[:] = -1
        self._num_rows = 0
        return index

    def has(self, index: NDArray[np.int64]) -> bool:
        """Whether all these rows are there."""
        return bool((self._row_of[index] >= 0).all())

    def of(self, index: NDArray[np.int64]) -> Tensor:
        """(S, width) of keys that are there."""
        return self._rows[torch.from_numpy(self._row_of[index]).to(self._rows.device)]

    def add(self, index: NDArray[np.int64], rows: Tensor) -> None:
        """Takes rows (S, width) of :meth:`absent` keys."""
        needed = self._num_rows + len(index)
        if needed > len(self._rows):
            capacity = min(max(2 * len(self._rows), needed, 64), max(self.most, needed))
            grown = torch.empty((capacity, rows.shape[1]), dtype=torch.float32, device=rows.device)
            grown[: self._num_rows] = self._rows[: self._num_rows]
            self._rows = grown
        self._rows[self._num_rows : needed] = rows
        self._row_of[index] = np.arange(self._num_rows, needed)
        self._num_rows = needed
