"""What to do when memory runs out in the middle of the work: know it, and go on with less at once.

Knows no model and no training. Imports torch.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import torch

from snpdeconv.device import release_memory
from snpdeconv.errors import ResourceError, UserError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Side = Literal["GPU", "host"]

# The host's first: some of its messages hold the words of a GPU's.
_ON_THE_HOST = re.compile(
    r"can't allocate memory|cannot allocate memory|DefaultCPUAllocator|bad_alloc|shared memory\(shm\)"
    r"|HOST_ALLOC|allocate memory on CPU",
    re.IGNORECASE,
)
# CUDA's own, status codes of its libraries (cuBLAS, cuDNN, cuSOLVER, cuRAND, MAGMA and others), cuDNN when no
# algorithm's work space fits, libraries that find no room for their handle, NCCL and triton.
_ON_A_GPU = re.compile(
    r"out of memory|_ALLOC(ATION)?_FAILED|_DEVICE_ALLOC|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|valid cuDNN algorithm|unable to find an engine|STATUS_NOT_INITIALIZED.*Create|out of resources?\b"
    r"|Failed to CUDA (host )?[cm]alloc",
    re.IGNORECASE,
)


def where_memory_ran_out(error: BaseException) -> Side | None:
    """The side that had no memory left, if that is what the error, or one that it came from, says."""
    cause: BaseException | None = error
    # An error that tells the user what to do is an end: nobody is to try again.
    while cause is not None and not isinstance(cause, UserError):
        if isinstance(cause, torch.OutOfMemoryError):
            return "GPU"
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return "host"
        # Triton's own errors are no RuntimeError.
        if isinstance(cause, RuntimeError) or type(cause).__module__.startswith("triton"):
            if _ON_THE_HOST.search(str(cause)):
                return "host"
            if _ON_A_GPU.search(str(cause)):
                return "GPU"
        cause = cause.__cause__
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it failed for want of memory, on a GPU or on the host."""
    return where_memory_ran_out(error) is not None


def reason_of(error: BaseException) -> str:
    """Which side had no memory left, and the first line of what it said."""
    return f"{where_memory_ran_out(error)}: {(str(error) or type(error).__name__).splitlines()[0]}"


class Halving:
    """Does work that takes a size, again with half of it where memory runs out; what fitted stays for later.

    Args:
        size: To begin with.
        smallest: Below this there is no trying again.
        what: Of what so many are taken at once, for the log.
    """

    def __init__(self, size: int, *, smallest: int, what: str) -> None:
        self.size = size
        self._smallest, self._what = smallest, what

    def do(self, work: Callable[[int], Result]) -> Result:
        """The work's result with the largest size that fits; it changes nothing outside before its end."""
        while True:
            try:
                return work(self.size)
            except Exception as error:
                if not is_out_of_memory(error) or self.size <= self._smallest:
                    raise
                reason = reason_of(error)
            # Outside the handler: there, the error's traceback still holds what the work had allocated.
            release_memory()
            tried, self.size = self.size, max(self._smallest, self.size // 2)
            logger.warning(
                "out of memory with %d %s at once; going on with %d (%s)",
                tried, self._what, self.size, reason,
            )  # fmt: skip


def or_on_the_cpu(work: Callable[[torch.device], Result], device: torch.device, *, what: str) -> Result:
    """Work on a GPU, or on the CPU where the GPU's memory does not suffice even for its smallest pieces.

    Args:
        work: Takes the device. It may be done twice.
        device: Where it would be best.
        what: Is done, for the log.
    """
    try:
        return work(device)
    except Exception as error:
        # What `Pieces` tells the user is no end here: there is another device.
        cause = error.__cause__ if isinstance(error, ResourceError) and error.__cause__ else error
        if device.type == "cpu" or where_memory_ran_out(cause) != "GPU":
            raise
        reason = reason_of(cause)
    release_memory()
    logger.warning("no memory for %s on %s: computed on the CPU (%s)", what, device, reason)
    return work(torch.device("cpu"))


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
            halving = Halving(min(self.size or num_samples, num_samples - start), smallest=1, what="samples")
            asked, first = halving.size, start

            def piece(size: int, first: int = first) -> Result:
                return work(slice(first, first + size))

            try:
                result = halving.do(piece)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                cpu = ", or --set resources.device=cpu" if where_memory_ran_out(error) == "GPU" else ""
                raise ResourceError(
                    f"no memory for a single sample ({reason_of(error)})",
                    where="memory",
                    mend=f"use fewer SNPs, a smaller model or a larger device{cpu}",
                ) from error
            yield result
            start += halving.size
            if halving.size < asked:
                self.size = halving.size
