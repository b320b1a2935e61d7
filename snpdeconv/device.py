"""What the hardware holds: devices by their full name, memory that is free, and what a piece of work takes.

Reads counters; what to do about them is for others. Knows no model and no training.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

GIB = 2**30

# Writing 5 sets a process's highest resident size (VmHWM) to its present one: `man 5 proc_pid_clear_refs`.
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_SAMPLING_INTERVAL_S = 0.002
_PHASE = "snpdeconv: end of a phase"


def with_index(device: torch.device | str) -> torch.device:
    """The device as tensors on it name it: ``cuda`` is the process's present GPU, ``cuda:0`` for example."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@contextlib.contextmanager
def deterministic(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Work in the block gives the same bits each time, on a GPU too: slower, and with a word where it cannot.

    A CPU does so anyway.
    """
    if device.type != "cuda" or not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cudnn.benchmark,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass adds up in any order
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cuda.enable_mem_efficient_sdp(before[2])
        torch.backends.cudnn.benchmark = before[3]


def keep_float32_exact() -> None:
    """Convolutions of float32 keep its bits: GPUs from Ampere on round their inputs to 11 bits by default."""
    torch.backends.cudnn.allow_tf32 = False


class PeakMemory:
    """The most memory held at once within a `with` block.

    On a GPU that of torch's allocator; on the host the resident size of this process, by the kernel's own
    high-water mark where it can be reset, else by looking every two milliseconds.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = 0
        self._sampler: _ResidentSampler | None = None

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif not _reset_high_water_mark():
            self._sampler = _ResidentSampler()
            self._sampler.start()
        self._start = used_bytes(self._device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._sampler is not None:
            self._sampler.stop()

    def peak_bytes(self) -> int:
        """The most held since the block was entered."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self._sampler is not None:
            return self._sampler.peak_bytes
        return max(self._start, _high_water_mark())

    def growth_bytes(self) -> int:
        """The most held at once, over what was held on entering."""
        return max(0, self.peak_bytes() - self._start)


class Allocations:
    """The most that torch's allocator held at once in each phase of a `with` block, over what it held before.

    The same for the same work, on every machine: counters on a GPU; on the host, where there are none, the
    allocations that torch's profiler sees. The resident size of a process is larger than these, since glibc
    keeps holes between live blocks.

    Attributes:
        peak_bytes: Of each phase; known after the block.

    Args:
        device: Whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.peak_bytes: list[int] = []
        self._device = device
        self._start = 0
        self._profile: torch.profiler.profile | None = None

    def __enter__(self) -> Allocations:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        else:
            self._profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            )
            self._profile.start()
        return self

    def end_phase(self) -> None:
        """Ends a phase; the next one begins."""
        if self._profile is None:
            self.peak_bytes.append(torch.cuda.max_memory_allocated(self._device) - self._start)
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with torch.profiler.record_function(_PHASE):
                pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is None:
            return
        self._profile.stop()
        recorded = self._profile.profiler
        if error is not None or recorded is None or recorded.kineto_results is None:
            return
        held = peak = 0
        events: list[Any] = recorded.kineto_results.events()
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
            elif event.name() == _PHASE:
                self.peak_bytes.append(peak)
                peak = held


def used_bytes(device: torch.device) -> int:
    """What torch holds of a GPU, or this process of the host, now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    import psutil  # a machine for statistics on a GPU alone may lack it

    return int(psutil.Process().memory_info().rss)


def available_bytes(device: torch.device) -> int:
    """What more this process can take: of the GPU, or of the host within the limits of its control group."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        # Torch gives no more than the share that it was told, whatever is free.
        share = torch.cuda.get_per_process_memory_fraction(device)
        allowed = max(0, min(free, int(share * total) - reserved))
        return allowed + reserved - torch.cuda.memory_allocated(device)
    import psutil

    return min(int(psutil.virtual_memory().available), control_group_bytes())


def control_group_bytes(root: Path = Path("/")) -> int:
    """What the control groups of this process (containers, SLURM) leave it; 2**63 without a limit.

    Args:
        root: Where /proc and /sys are.

    Returns:
        The least of the group's and its parents' limits, less what is used and cannot be given back.
    """
    left = 2**63
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = mount / path.strip("/")
        for folder in (group, *group.parents):
            left = min(left, _left_in_group(folder, names))
            if folder == mount:
                break
    return left


def release_memory() -> None:
    """Gives freed memory back: Python's cycles, torch's GPU cache, glibc's heap."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    # Not every C library has malloc_trim, and there is nothing to do where it has not.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _left_in_group(folder: Path, names: tuple[str, str, str]) -> int:
    limit_name, used_name, cache_name = names
    limit_file = folder / limit_name
    if not limit_file.is_file() or (limit := limit_file.read_text().strip()) == "max":
        return 2**63
    used = int((folder / used_name).read_text())
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return max(0, int(limit) - used + int(statistics.get(cache_name, 0)))


def _reset_high_water_mark() -> bool:
    try:
        _CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("Linux without VmHWM")


class _ResidentSampler(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        import psutil

        self._process = psutil.Process()
        self._is_over = threading.Event()
        self.peak_bytes = int(self._process.memory_info().rss)

    def run(self) -> None:
        while not self._is_over.wait(_SAMPLING_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, int(self._process.memory_info().rss))

    def stop(self) -> None:
        self._is_over.set()
        self.join()
