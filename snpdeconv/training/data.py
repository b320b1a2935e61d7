"""Batches: how they are drawn, epochs that restart alike, windows of batches, and the way to a GPU.

A loader is any iterable of `Batch`, (x, y) or (x, y, covariates). Knows neither files nor what a code means.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import queue
import random
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.device import GIB, available_bytes, with_index
from snpdeconv.errors import ConfigError, InputError

logger = logging.getLogger(__name__)


# Of the device's free memory: the rest is the model's and its activations'.
_RESIDENT_SHARE = 0.5
_BATCHES_AHEAD = 2


# B batch, N samples
@dataclass(frozen=True)
class Batch:
    """Some samples with what is to be predicted for them."""

    genotypes: Tensor  # (B, ...) packed bytes, codes or encoded floats; whatever the model takes
    target: Tensor  # (B,) float for binary and quantitative traits, int64 for classes
    covariates: Tensor | None = None  # (B, covariates)

    def __len__(self) -> int:
        return len(self.target)

    def inputs(self) -> list[Tensor]:
        """What a model is called with: genotypes and, where given, covariates."""
        return [self.genotypes] if self.covariates is None else [self.genotypes, self.covariates]

    def tensors(self) -> list[Tensor]:
        """The tensors that are there: genotypes, target and, where given, covariates."""
        given = [self.genotypes, self.target]
        return given if self.covariates is None else [*given, self.covariates]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; from host to GPU by pinned memory, without waiting for the copy."""
        return Batch(*(_send(tensor, device) for tensor in self.tensors()))

    def split(self, max_size: int | None) -> list[Batch]:
        """Pieces of at most `max_size` samples, of almost equal size; none for a batch without samples."""
        if len(self) == 0:
            return []
        if max_size is None or len(self) <= max_size:
            return [self]
        num_pieces = math.ceil(len(self) / max_size)
        pieces = zip(*(tensor.tensor_split(num_pieces) for tensor in self.tensors()), strict=True)
        return [Batch(*piece) for piece in pieces]


def as_batch(item: object) -> Batch:
    """A `Batch` from what a loader gave."""
    if isinstance(item, Batch):
        return item
    if isinstance(item, (tuple, list)) and 2 <= len(item) <= 3 and all(isinstance(x, Tensor) for x in item):
        return Batch(*item)
    raise InputError(
        f"a data loader gave {type(item).__name__} instead of a batch",
        hint="let it give (genotypes, target) or (genotypes, target, covariates) as tensors",
    )


class PackedLoader:
    """Batches of packed genotypes by gathering rows; the same global batches whatever the number of ranks.

    Every rank draws the same order from (seed, epoch) and takes its share of each global batch of
    `batch_size`, so that no sample is lost or doubled; in a last batch smaller than the number of ranks some
    shares are empty. `packed` (N, row_bytes) may be a memory map or resident on a device; where `device`, at
    which batches are wanted, is another, they are sent ahead.
    """

    def __init__(
        self,
        packed: Tensor,
        target: Tensor,
        covariates: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"a batch of {batch_size} samples", where="batch_size", hint="use at least 1")
        if len(target) != len(packed) or (covariates is not None and len(covariates) != len(packed)):
            raise InputError(
                f"{len(packed)} rows of genotypes do not match {len(target)} targets or covariates"
            )
        self.packed = packed
        self.target = target.to(packed.device)
        self.covariates = None if covariates is None else covariates.to(packed.device)
        self.rows = torch.arange(len(packed)) if rows is None else rows.to("cpu", torch.int64)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._device = packed.device if device is None else device
        self._epoch = 0

    def __len__(self) -> int:
        """Global batches an epoch, the same on every rank."""
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch's order the next iteration gives."""
        self._epoch = epoch

    def batches(self, *, skip: int = 0) -> Iterator[Batch]:
        """The epoch's batches from number `skip` on, without reading the ones before."""
        gathered = self._gathered(skip)
        if self._device.type == self.packed.device.type:
            return gathered
        return sent_ahead(gathered, device=self._device)

    def _gathered(self, skip: int) -> Iterator[Batch]:
        rows = self.rows
        if self.shuffle:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, self._epoch))
            rows = rows[torch.randperm(len(rows), generator=generator)]
        rows = rows.to(self.packed.device)
        for start in range(skip * self.batch_size, len(rows), self.batch_size):
            share = rows[start : start + self.batch_size].tensor_split(self.world_size)[self.rank]
            covariates = None if self.covariates is None else self.covariates[share]
            yield Batch(self.packed[share], self.target[share], covariates)


def derived_seed(*parts: int) -> int:
    """A seed of 63 bits that differs for every tuple of parts (numpy's SeedSequence)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_epoch(seed: int, epoch: int, rank: int) -> None:
    """Sets every global generator for an epoch, so that a resumed epoch draws as the first time did."""
    value = derived_seed(seed, epoch, rank)
    torch.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - a user's Dataset may draw from the global generator


def epoch_batches(loader: Iterable[Any], *, seed: int, epoch: int, skip: int = 0) -> Iterator[Batch]:
    """Starts an epoch of any loader from batch number `skip` on; sets its generators and sampler's epoch.

    The batches skipped, which a checkpoint has behind it, are already drawn when this returns.
    """
    # Samplers may sit inside a batch sampler, and share the loader's generator.
    sampler = getattr(loader, "sampler", None)
    inner_sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    holders: tuple[Any, ...] = (loader, sampler, inner_sampler)
    for holder in holders:
        if hasattr(holder, "set_epoch"):
            holder.set_epoch(epoch)
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(derived_seed(seed, epoch))
    if isinstance(loader, PackedLoader):
        return loader.batches(skip=skip)
    items = iter(loader)
    next(itertools.islice(items, skip, skip), None)
    return map(as_batch, items)


def windows(batches: Iterator[Batch], *, size: int) -> Iterator[list[Batch]]:
    """Groups of `size` batches for one step of the optimiser each; the last one may be smaller."""
    while window := list(itertools.islice(batches, size)):
        yield window


def num_batches(loader: Iterable[Any]) -> int | None:
    """Batches an epoch where the loader knows, else None."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # an IterableDataset without a length
        return None


def _send(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def place_genotypes(packed: NDArray[np.uint8], *, device: torch.device) -> Tensor:
    """(N, row_bytes) packed genotypes on the device where half of its free memory holds them, else as a view
    of the host's (a memory map too).
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
