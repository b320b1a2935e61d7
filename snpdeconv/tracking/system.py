"""What this process uses of its machine, sampled now and then. Knows neither spool nor training."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psutil

_GIB = 1024.0**3


class SystemSampler:
    """A thread that reports resident memory, CPU and GPU memory of this process.

    MLflow's own monitor reads every GPU of the node and stops for good after one failed call.

    Args:
        report: Takes the sample; names end in their unit.
        every_s: Seconds between samples.
    """

    def __init__(self, report: Callable[[Mapping[str, float]], None], *, every_s: float) -> None:
        self._report = report
        self._every_s = every_s
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def sample(self) -> dict[str, float]:
        """One reading; GPU memory only where torch is in use already and has touched a GPU."""
        reading = {
            "system/rss_gib": self._process.memory_info().rss / _GIB,
            "system/cpu_percent": self._process.cpu_percent(),
        }
        # The main thread may be half-way through importing torch.
        cuda: Any = sys.modules.get("torch.cuda")
        if getattr(cuda, "is_initialized", bool)():
            reading["system/gpu_allocated_gib"] = cuda.memory_allocated() / _GIB
            reading["system/gpu_reserved_gib"] = cuda.memory_reserved() / _GIB
        return reading

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._report(self.sample())
