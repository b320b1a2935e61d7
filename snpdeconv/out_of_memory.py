"""What to do when memory runs out in the middle of the work: know it, and go on with fewer samples at once.

Knows no model and no training. Imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from snpdeconv.errors import ResourceError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_NO_MEMORY = ("can't allocate memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch failed for want of memory, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    )


class Pieces:
    """Takes samples a piece at a time; pieces that were too large stay small for what comes after.

    Args:
        size: Largest number of samples at once; None for all that there are.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def each(self, work: Callable[[slice], Result], *, num_samples: int) -> Iterator[Result]:
        """Does the work for one piece of the samples after the other, again in halves where memory runs out.

        Args:
            work: Takes the rows of a piece. It changes nothing outside, since it may be done again.
            num_samples: How many there are.

        Yields:
            What `work` gave for each piece, in order.

        Raises:
            ResourceError: There is no memory for a single sample.
        """
        start = 0
        while start < num_samples:
            size = min(self.size or num_samples, num_samples - start)
            try:
                result = work(slice(start, start + size))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            else:
                yield result
                start += size
                continue
            # Outside the handler: there, the error's traceback still holds what the work had allocated.
            self._halve(size, reason)

    def _halve(self, tried: int, reason: str) -> None:
        if tried == 1:
            raise ResourceError(
                f"no memory for a single sample ({reason})",
                where="memory",
                mend="use fewer SNPs, a smaller model or a larger device",
            )
        torch.cuda.empty_cache()
        self.size = tried // 2
        logger.warning(
            "out of memory with %d samples at once; going on with %d (%s)", tried, self.size, reason
        )
