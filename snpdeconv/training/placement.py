"""Owns where a cohort's packed genotypes are during training: on the device, or on the host and sent ahead.

Two bits a genotype: 100,000 people with 100,000 SNPs are 2.5 GB. What does not fit beside a model stays on
the host, in memory or memory-mapped, and batches are gathered and sent while the device works.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.device import GIB, available_bytes, with_index

if TYPE_CHECKING:
    from snpdeconv.training.data import Batch

logger = logging.getLogger(__name__)

# Of the device's free memory: the rest is the model's and its activations'.
_RESIDENT_SHARE = 0.5
_BATCHES_AHEAD = 2


def place_genotypes(packed: NDArray[np.uint8], *, device: torch.device) -> Tensor:
    """Puts packed genotypes where training will gather its batches from.

    Args:
        packed: (N, row_bytes), in memory or memory-mapped.
        device: Where the model is.

    Returns:
        (N, row_bytes) uint8: on the device where half of its free memory holds them, else a view of `packed`.
    """
    host = torch.from_numpy(packed)
    if device.type == "cpu":
        return host
    free = available_bytes(device)
    fits = packed.nbytes <= _RESIDENT_SHARE * free
    logger.info(
        "%.2f GiB of genotypes %s: %.2f GiB are free on %s",
        packed.nbytes / GIB,
        "live on the device" if fits else "stay on the host, sent batch by batch",
        free / GIB,
        device,
    )
    return host.to(device) if fits else host


def sent_ahead(batches: Iterator[Batch], *, device: torch.device) -> Iterator[Batch]:
    """The same batches on a device, each gathered, pinned and sent while the device works on those before it.

    A thread runs at most two batches ahead. It ends with the iteration, finished or left; what it raises is
    raised here.

    Args:
        batches: Batches on the host.
        device: Where to send them.
    """
    device = with_index(device)  # here: the thread's own present GPU is the first
    ahead: queue.Queue[tuple[Batch, torch.cuda.Event | None] | BaseException | None]
    ahead = queue.Queue(maxsize=_BATCHES_AHEAD)
    is_left = threading.Event()
    sender = threading.Thread(
        target=_send_all, args=(batches, device, ahead, is_left), name="batches ahead", daemon=True
    )
    sender.start()
    try:
        while (item := ahead.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, is_sent = item
            if is_sent is not None:
                stream = torch.cuda.current_stream(device)
                stream.wait_event(is_sent)
                for tensor in batch.tensors():
                    tensor.record_stream(stream)  # its memory is not given away before this stream is done
            yield batch
    finally:
        is_left.set()
        while sender.is_alive():  # it may be waiting for a place in the queue
            with contextlib.suppress(queue.Empty):
                ahead.get(timeout=0.01)
        sender.join()


def _send_all(
    batches: Iterator[Batch],
    device: torch.device,
    ahead: queue.Queue[tuple[Batch, torch.cuda.Event | None] | BaseException | None],
    is_left: threading.Event,
) -> None:
    last: BaseException | None = None
    try:
        stream = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            if device.type == "cuda"
            else None
        )
        for batch in batches:
            if is_left.is_set():
                return
            if stream is None:
                ahead.put((batch.to(device), None))
                continue
            with torch.cuda.stream(stream):
                sent = batch.to(device)
                ahead.put((sent, stream.record_event()))
    except BaseException as error:  # whatever it is, the training loop must see it
        last = error
    ahead.put(last)
