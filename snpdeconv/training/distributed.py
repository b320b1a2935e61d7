"""What ranks tell each other: who is first, sums, gathered objects, agreement, and that they meet at all.

With one process every function answers at once, so that callers need no second path.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import psutil
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from snpdeconv.device import default_device, environment_number
from snpdeconv.errors import ResourceError
from snpdeconv.models.model import in_parallel

T = TypeVar("T")

# How long the ranks, which start together, wait for each other.
_MEETING = timedelta(minutes=5)

# How long the other ranks wait while the first imports or fits.
LONGEST_WORK_MIN = 24 * 60.0

# Groups are kept to the end of the process. DistributedDataParallel may be what holds a group last, and if it
# goes while gloo's thread still drops the tensors of the last collective, it waits for that thread with
# Python's lock held, and the thread waits for the lock (test_two_ranks.py hung once in ten runs).
_ended_groups: list[Any] = []

# Where the ranks have met. A rank that ends with an error has the others ended (by torchrun or srun), and the
# first one needs time to tell of it.
_meetings: list[Any] = []
_LAST_WORDS = timedelta(seconds=60)
_HAS_LEFT = "the first rank has left"


@dataclass(frozen=True)
class Placement:
    """Where this process stands among its peers."""

    rank: int
    world_size: int
    device: torch.device


def init_from_environment(
    *, device: torch.device | None = None, timeout_min: float = LONGEST_WORK_MIN
) -> Placement:
    """Joins the other ranks if torchrun's variables (RANK, WORLD_SIZE and so on) say there are any.

    After `timeout_min` of waiting for the others in a collective a rank gives up.
    """
    num_processes = environment_number("WORLD_SIZE", otherwise=1)
    device = default_device() if device is None or device.type == "cuda" else device
    if num_processes > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # collectives of objects go through the current device
        # Objects go by gloo: while one rank works for hours, NCCL would have the others' GPUs busy waiting.
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        _meet(backend, timeout=timedelta(minutes=timeout_min))
    return Placement(rank(), world_size(), device)


def _meet(backend: str, *, timeout: timedelta) -> None:
    """Finds the other ranks."""
    for variable in ("GLOO_SOCKET_IFNAME", *(["NCCL_SOCKET_IFNAME"] if "nccl" in backend else [])):
        _check_interface(variable)
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, number, count = next(rendezvous("env://", timeout=_MEETING))
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=timeout)
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"the ranks cannot meet there ({str(error).splitlines()[0][:200]})",
            where=where,
            hint="is the port free (MASTER_PORT), and does every node reach the first (GLOO_SOCKET_IFNAME)?",
        ) from error
    store.set_timeout(timeout)
    _meetings.append(store)


def _check_interface(variable: str) -> None:
    """Refuses a name that no interface of this node has; gloo and NCCL fail without a sentence."""
    value = os.environ.get(variable, "")
    here = sorted(psutil.net_if_addrs())
    if not value or value.startswith("^"):
        return
    exact = variable.startswith("GLOO") or value.startswith("=")
    names = value.removeprefix("=").split(",")
    if not any(name == known if exact else known.startswith(name) for name in names for known in here):
        raise ResourceError(
            f"there is no network interface '{value}' on {socket.gethostname()}",
            where=variable,
            hint=f"it has {', '.join(here)}; set the variable in the cluster's file, or leave it out",
        )


def rank() -> int:
    """This process's number; 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes and logs."""
    return rank() == 0


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device, in DistributedDataParallel where there are several ranks; a collective."""
    if isinstance(model, DistributedDataParallel):
        return model
    model = model.to(device)
    if world_size() == 1:
        return model
    return in_parallel(model, device)


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over the ranks of a tensor of equal shape on each, where it is; the argument is left alone."""
    if world_size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def min_over_ranks(value: int, device: torch.device) -> int:
    """The smallest of the ranks' numbers."""
    if world_size() == 1:
        return value
    smallest = torch.tensor(value, device=device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up on at least one rank."""
    return bool(sum_over_ranks(torch.tensor(int(flag), device=device)))


def gather_objects(value: T) -> list[T]:
    """An object of every rank, by rank, on every rank; tensors in it should be on the CPU."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_first_rank(value: T) -> T:
    """The first rank's value on every rank, so that all decide alike."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def first_rank_does(work: Callable[[], T]) -> T:
    """What only one may do, as to read, write or measure; its value, or error, comes to every rank."""
    if world_size() == 1:
        return work()
    outcome: tuple[T | None, Exception | None] = (None, None)
    if is_first():
        try:
            outcome = (work(), None)
        except Exception as error:
            outcome = (None, _sendable(error))
    value, failure = from_first_rank(outcome)
    if failure is not None:
        raise failure
    return cast(T, value)


def every_rank_does(work: Callable[[], T]) -> list[T]:
    """What each does a share of: the values by rank, or the first failed rank's error, on every rank.

    Tensors in the values should be on the CPU.
    """
    if world_size() == 1:
        return [work()]
    outcome: tuple[T | None, Exception | None]
    try:
        outcome = (work(), None)
    except Exception as error:
        outcome = (None, _sendable(error))
    outcomes = gather_objects(outcome)
    for _, failure in outcomes:
        if failure is not None:
            raise failure
    return [cast(T, value) for value, _ in outcomes]


def _sendable(error: Exception) -> Exception:
    """The error, or what it says where it cannot go to another process and come out as it was."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def all_or_none_do(work: Callable[[], T]) -> T:
    """What each does whole and for itself, as to read its copy of the files, before a collective.

    One that failed alone would leave the others in that collective until they give up: the first error comes
    to all.
    """
    own: list[T] = []
    every_rank_does(lambda: own.append(work()))
    return own[0]


def shut_down() -> None:
    """Leaves the group, if there is one; others wait for the first rank, for a minute at most."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # nobody has come, or the first rank's process is gone
            for store in _meetings[-1:]:  # none, where others have made the group
                if is_first():
                    store.set(_HAS_LEFT, "")
                else:
                    store.wait([_HAS_LEFT], _LAST_WORDS)
        _ended_groups.append(dist.group.WORLD)
        dist.destroy_process_group()
