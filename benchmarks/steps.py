"""Training steps as the program takes them, timed, and the arithmetic and the bytes that they need at least.

Imports no more of snpdeconv than its models and its training: it runs where there is
no more than torch, psutil and what comes with them.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from snpdeconv.device import GIB, PeakMemory, Precision, choose_precision
from snpdeconv.models.model import GPUOptimizedSNPModel, InterpretableSNPModel
from snpdeconv.training.data import Batch, PackedLoader
from snpdeconv.training.memory import GPUMemoryManager
from snpdeconv.training.run_state import Optimization, start_run
from snpdeconv.training.step import AccumulatedStep, make_loss

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# The network of the medium preset.
SIZES: dict[str, Any] = {"encoding_dim": 2, "linear": "fitted"}
# Parameters are read by the forward and the backward pass, their gradients written and read, and AdamW reads
# and writes a parameter and two moments: four bytes each.
_PARAMETER_BYTES = 4 * (2 + 2 + 6)


@dataclass(frozen=True)
class Measured:
    """What some steps took.

    Attributes:
        seconds: Of a step, median.
        cpu_seconds: Of a step, all threads together, median.
        peak_gib: Most memory held over what was there before the model: allocated on a GPU, resident on a
            host.
        first_seconds: Of the first step, compilation included.
    """

    seconds: float
    cpu_seconds: float
    peak_gib: float
    first_seconds: float


def make_model(num_snps: int, architecture: str, **options: Any) -> InterpretableSNPModel:
    """The medium preset's network, from the same seed every time."""
    torch.manual_seed(1)
    return InterpretableSNPModel(num_snps, architecture, **{**SIZES, **options})


def random_genotypes(num_people: int, num_snps: int, *, device: torch.device) -> torch.Tensor:
    """(N, row_bytes) packed genotypes: a step takes as long whatever they are."""
    generator = torch.Generator(device).manual_seed(1)
    shape = (num_people, math.ceil(num_snps / 4))
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)


def make_window(
    model: torch.nn.Module, *, parallel: torch.nn.Module, precision: Precision, device: torch.device
) -> AccumulatedStep:
    """What takes the steps of a training, with the optimiser that the program gives it."""
    optimization = Optimization(
        learning_rate=1e-4,
        weight_decay=1e-5,
        schedule="constant",
        warmup_fraction=0.0,
        plateau_factor=0.5,
        plateau_patience=5,
        gradient_clip=1.0,
        accumulation=1,
        seed=1,
        monitor="val_loss",
        direction="min",
    )
    run = start_run(
        model,
        parallel=parallel,
        loss=make_loss("mse"),
        precision=precision,
        device=device,
        optimization=optimization,
        micro_batch_size=None,
        num_epochs=1,
        batches_per_epoch=None,
        folder=None,
    )
    return run.window


def measure_steps(
    num_snps: int,
    architecture: str,
    *,
    batch: int,
    precision: str,
    device: torch.device,
    compiled: dict[str, Any] | None = None,
    packed: torch.Tensor | None = None,
    least_seconds: float = 1.0,
    **options: Any,
) -> Measured:
    """Times steps of the training: batch drawn, forward, backward, clipped, AdamW.

    Args:
        num_snps: S.
        architecture: Of the network.
        batch: B.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        device: Where to train.
        compiled: Arguments of torch.compile; None for no compilation.
        packed: (N, row_bytes) genotypes to draw from, on the device or on the host; by default a few batches.
        least_seconds: How long to look.
        **options: Of the network.
    """
    _synchronise(device)
    with PeakMemory(device) as memory:
        base = make_model(num_snps, architecture, **options).to(device)
        if packed is None:
            packed = random_genotypes(4 * batch, num_snps, device=device)
        target = torch.randn(len(packed), generator=torch.Generator().manual_seed(1))
        loader = PackedLoader(packed, target, batch_size=batch, shuffle=True, device=device)
        chosen = choose_precision(device, requested=precision)
        if compiled is not None:
            base.compile(**compiled)
        amp = chosen.dtype is not None
        model = GPUOptimizedSNPModel(base, use_amp=amp, amp_dtype=chosen.dtype or torch.bfloat16).train()
        window = make_window(model, parallel=model, precision=chosen, device=device)
        batches = _endless(loader)
        first = _timed(lambda: window.run([next(batches)]), device)
        for _ in range(2):
            window.run([next(batches)])
        _synchronise(device)
        seconds = [_timed(lambda: window.run([next(batches)]), device) for _ in range(3)]
        # As many as fit the time; the device is waited for once in a while, as the training does.
        group = max(1, round(0.1 / max(statistics.median(seconds), 1e-4)))
        groups = max(3, min(200, round(least_seconds / (group * statistics.median(seconds)))))

        def take_group() -> None:
            for _ in range(group):
                window.run([next(batches)])

        seconds, cpu_seconds = [], []
        for _ in range(groups):
            cpu_started = time.process_time()
            seconds.append(_timed(take_group, device) / group)
            cpu_seconds.append((time.process_time() - cpu_started) / group)
        if window.micro_batch_size is not None:
            raise MemoryError(f"out of memory with {batch} samples")
    cpu = statistics.median(cpu_seconds)
    return Measured(statistics.median(seconds), cpu, memory.growth_bytes() / GIB, first)


def counted(
    num_snps: int, architecture: str, *, batch: int, precision: str, **options: Any
) -> dict[str, float]:
    """The arithmetic of a step by torch's operator counts, and the bytes that it must move at least.

    Bytes: what the backward pass keeps is written and read once, parameters, gradients and AdamW's moments as
    they must be, and the packed genotypes are read. Counted with two and with four samples, as a line.

    Returns:
        ``gflop`` and ``gbyte`` of a step, ``parameters`` and ``kept_bytes_a_sample``.
    """
    model = make_model(num_snps, architecture, **options).train()
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    flops, kept = [], []
    for size in (2, 4):
        genotypes = random_genotypes(size, num_snps, device=torch.device("cpu"))
        # Attention as matrix products: the counter knows not every kernel of it.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(genotypes).sum().backward()
        flops.append(counter.get_total_flops())
        kept.append(_kept_bytes(model, genotypes, dtype=DTYPES[precision], own=own))
    per_sample = (kept[1] - kept[0]) / 2
    parameters = sum(p.numel() for p in model.parameters())
    flop = flops[0] + (flops[1] - flops[0]) / 2 * (batch - 2)
    byte = batch * (2 * per_sample + math.ceil(num_snps / 4)) + parameters * _PARAMETER_BYTES
    return {
        "gflop": flop / 1e9,
        "gbyte": byte / 1e9,
        "parameters": parameters,
        "kept_bytes_a_sample": per_sample,
    }


def floor_seconds(least: dict[str, float], rates: dict[str, float], *, precision: str) -> float:
    """What a step takes at least: its arithmetic or its bytes, of `counted`, at the rates of a machine."""
    return max(least["gflop"] / 1e3 / rates[f"{precision}_tflops"], least["gbyte"] / rates["copy_gbs"])


def machine_rates(device: torch.device, *, precisions: tuple[str, ...] = tuple(DTYPES)) -> dict[str, float]:
    """The most that this device does: matrix products (TFLOP/s, by precision), and copies (GB/s)."""
    size, length = (8192, 2**29) if device.type == "cuda" else (2048, 2**26)
    rates = {}
    for name in precisions:
        a = torch.randn(size, size, device=device).to(DTYPES[name])
        rates[f"{name}_tflops"] = 2 * size**3 / _best(lambda a=a: a @ a, device) / 1e12
    source = torch.empty(length, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates["copy_gbs"] = 2 * length / _best(lambda: target.copy_(source), device) / 1e9
    return rates


def predicted_peak_gib(
    num_snps: int, architecture: str, *, batch: int, precision: str, device: torch.device, **options: Any
) -> tuple[float, float, float]:
    """The probe against the truth: GiB foretold from small batches, GiB measured, seconds of probing."""
    manager = GPUMemoryManager(device)
    model = make_model(num_snps, architecture, **options).to(device)
    dtype = DTYPES[precision]
    started = time.perf_counter()
    line = manager.measure(num_snps, dtype=dtype, model=model)
    seconds = time.perf_counter() - started
    genotypes = random_genotypes(batch, num_snps, device=device)
    profile = manager.profile(model, Batch(genotypes, torch.zeros(batch, device=device)), dtype=dtype)
    return (line.fixed_bytes + batch * line.per_sample_bytes) / GIB, profile.peak_gib, seconds


def _kept_bytes(
    model: InterpretableSNPModel, genotypes: torch.Tensor, *, dtype: torch.dtype, own: set[int]
) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once, parameters left out."""
    held: list[torch.Tensor] = []  # alive until the end, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32),
    ):
        model(genotypes)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(size for address, size in storages.items() if address not in own)


def _endless(loader: PackedLoader):
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


def _best(work: Callable[[], object], device: torch.device) -> float:
    work()
    return min(_timed(work, device) for _ in range(5))


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _synchronise(device)
    started = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - started


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
