"""The same work for many batches: on a CPU one batch a core, each on a single thread.

Operations on small batches are too short to be shared out among cores, whole batches are not. Knows no model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    work: Callable[[Item], Result], items: Iterable[Item], *, device: torch.device | str
) -> Iterator[Result]:
    """What the work gives for each item, in order; on a GPU one after the other.

    Args:
        work: Changes nothing that another call reads. It runs on other threads, to which neither autocast nor
            the mode of gradients carries over.
        items: Taken as they are needed.
        device: Where the work is done.
    """
    num_threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    if num_threads == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == 2 * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        # Threads that are made later take the number that was set last.
        torch.set_num_threads(num_threads)
