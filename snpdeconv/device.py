"""What the hardware holds and how work goes on within it: memory that is free and taken, work that ran out of
it, the precision that a device computes natively. Knows no model and no training.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import torch

from snpdeconv.errors import ConfigError, ResourceError, UserError, nearest

logger = logging.getLogger(__name__)


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


def default_device() -> torch.device:
    """The GPU of this process's local rank, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", environment_number("LOCAL_RANK", otherwise=0))


def choose_device(requested: str) -> torch.device:
    """The device that `resources.device` asks for: auto is the GPU where there is one."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "no GPU is visible",
            where="resources.device",
            hint="--set resources.device=auto takes the CPU then",
        )
    keep_float32_exact()
    return torch.device("cpu") if requested == "cpu" else default_device()


def environment_number(name: str, *, otherwise: int) -> int:
    """One of torchrun's variables."""
    text = os.environ.get(name) or str(otherwise)
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ConfigError(f"'{text[:40]}' is no number", where=name, hint="unset it, or start by torchrun")
    return int(text)


@contextlib.contextmanager
def deterministic(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Work in the block gives the same bits each time, on a GPU too: slower, with a word where it cannot."""
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
    keeps holes between live blocks. `peak_bytes` is known after the block.
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

    The least of the group's and its parents' limits, less what is used and cannot be given back. `root` is
    where /proc and /sys are.
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
    """Does work that takes a size, again with half of it where memory runs out; the size stays for later."""

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
    """Work on a GPU, or once more on the CPU where the GPU does not hold even its smallest pieces."""
    try:
        return work(device)
    except Exception as error:
        # What `OomSafeBatches` tells the user is no end here: there is another device.
        cause = error.__cause__ if isinstance(error, ResourceError) and error.__cause__ else error
        if device.type == "cpu" or where_memory_ran_out(cause) != "GPU":
            raise
        reason = reason_of(cause)
    release_memory()
    logger.warning("no memory for %s on %s: computed on the CPU (%s)", what, device, reason)
    return work(torch.device("cpu"))


class OomSafeBatches:
    """Takes samples `size` at a time (None: all that there are); pieces that were too large stay small."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def map(self, work: Callable[[slice], Result], *, num_samples: int) -> Iterator[Result]:
        """What the work gives for each slice of the samples, in halves where memory runs out.

        It changes nothing outside, since it may be done again.
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
                    hint=f"use fewer SNPs, a smaller model or a larger device{cpu}",
                ) from error
            yield result
            start += halving.size
            if halving.size < asked:
                self.size = halving.size


# NVIDIA's first generation with bf16 units (Ampere). `torch.cuda.is_bf16_supported()` is no test: it says yes
# too where bf16 is only emulated.
_BF16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Precision:
    """A numeric format for forward and backward."""

    name: str  # bf16, fp16 or fp32
    dtype: torch.dtype | None  # of autocast; None for fp32, and for models in float64, which are left as is
    needs_scaler: bool  # or small gradients vanish
    reason: str
    device_type: str

    def autocast(self) -> torch.autocast:
        """A context in which the model's operations run in this precision."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.dtype is not None)

    def make_scaler(self) -> torch.amp.GradScaler:
        """A gradient scaler; one that passes everything through where none is needed."""
        return torch.amp.GradScaler(self.device_type, enabled=self.needs_scaler)


def choose_precision(device: torch.device, *, requested: str = "auto") -> Precision:
    """The best precision that a device computes natively, and says why in the log, if not by request alone.

    `auto` gives the fastest: bf16 where there are matrix units for it, fp16 on GPUs without, fp32 on other
    processors. `bf16` gives bf16 where there are any instructions for it, else the next best. `fp16` and
    `fp32` are taken at their word.
    """
    precision = _choose(device, requested)
    keep_float32_exact()
    if requested not in ("fp16", "fp32"):
        logger.info("precision %s: %s", precision.name, precision.reason)
    return precision


def requested_precision(*, use_amp: bool, amp_dtype: torch.dtype) -> str:
    """The word for `choose_precision` that the two public arguments mean."""
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    if amp_dtype not in names:
        hint = "use torch.bfloat16"
        raise ConfigError(f"{amp_dtype} is no precision to train in", where="amp_dtype", hint=hint)
    return names[amp_dtype] if use_amp else "fp32"


def _choose(device: torch.device, requested: str) -> Precision:
    options = ["auto", "bf16", "fp16", "fp32"]
    if requested not in options:
        raise ConfigError(
            f"no precision is called '{requested}'", where="precision", hint=nearest(requested, options)
        )
    if requested == "fp32":
        return Precision("fp32", None, False, "requested", device.type)
    if requested == "fp16":
        return Precision("fp16", torch.float16, True, "requested, with a gradient scaler", device.type)
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        named = f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}"
        if capability >= _BF16_CAPABILITY:
            return Precision("bf16", torch.bfloat16, False, named, device.type)
        reason = f"{named}, and bf16 needs 8.0: fp16 with a gradient scaler"
        return Precision("fp16", torch.float16, True, reason, device.type)
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    if capabilities.get("amx_bf16"):
        return Precision("bf16", torch.bfloat16, False, "this processor has bf16 matrix units", device.type)
    if not (capabilities.get("avx512_bf16") or capabilities.get("bf16")):
        return Precision("fp32", None, False, f"no bf16 instructions on this {device.type}", device.type)
    if requested == "bf16":
        return Precision("bf16", torch.bfloat16, False, "this processor has bf16 instructions", device.type)
    # With vector instructions alone a step of the transformer took twice as long in bf16 as in fp32.
    reason = "this processor has bf16 instructions but no matrix units: bf16 would be slower"
    return Precision("fp32", None, False, reason, device.type)
