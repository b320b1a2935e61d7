"""The process that looks after a job of this machine: ``python -P -m snpdeconv.launch.controller FOLDER``.

It waits for the jobs that come first, starts the ranks, and says how they ended when they could not.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller

from snpdeconv.launch.records import Outcome, Record, find_record, read_job
from snpdeconv.launch.status import read_status, tell_end

_POLL_S = 2.0
_GRACE_S = 5.0
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)


class _Controller(Controller):
    """submitit's, which waits for ranks that wait for one that has failed, and forgets how they ended."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.starts = 0
        self.codes: Sequence[int | None] = ()

    def start_tasks(self) -> None:
        os.environ["SNPDECONV_LOCAL_START"] = str(self.starts)
        self.starts += 1
        super().start_tasks()

    def wait(self, freq: int = 24) -> Sequence[int | None]:
        """Until all have ended, the time is up, or one has failed: the others would wait for it."""
        started, failed, is_told = time.monotonic(), math.inf, False
        while True:
            now, self.codes = time.monotonic(), [task.poll() for task in self.tasks]
            if any(code not in (None, 0, LOCAL_REQUEUE_RETURN_CODE) for code in self.codes):
                failed = min(failed, now)
            if None not in self.codes or now > min(started + self.timeout_s, failed + _GRACE_S):
                return self.codes
            if not is_told and now > started + self.timeout_s - self.signal_delay_s:
                is_told = True
                self._forward_signal(signal.SIGUSR2)
            time.sleep(1 / freq)


def main() -> None:
    """Looks after the job whose log is to lie in the folder."""
    folder = Path(sys.argv[1])
    record = read_job(folder.parent)
    try:
        end = _await_others(record) or _run(folder)
    except Exception as error:
        end = Outcome("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        raise
    finally:
        if end is not None:
            for place in record.places:
                if record.outcome(place) is None:
                    tell_end(record, place, end)


def _await_others(record: Record) -> Outcome | None:
    """Waits until the jobs before this one are done; how this one ends if one of them was not."""
    for name in record.after:
        while (now := read_status([find_record(name)])[0]).is_live:
            time.sleep(_POLL_S)
        if now.state != "done":
            return Outcome("cancelled", f"not begun: {name} {now.state}")
    return None


def _run(folder: Path) -> Outcome | None:
    """Runs the ranks to their end; what became of them if a signal ended one."""
    before = _num_killed_for_memory()
    # submitit's controller gives up after six starts; the countdown in the job is what counts here.
    controller = _Controller(folder)
    controller.run(10**6)
    codes = [code for code in controller.codes if code]
    if any(code in _KILLED for code in codes):
        if _num_killed_for_memory() > before:
            return Outcome("failed", "killed for memory: this machine has no more, or its limit is lower")
        return Outcome("failed", "killed (signal 9), as systems do when memory runs out")
    if any(code in _TERMINATED for code in codes):
        return Outcome("cancelled", "ended by SIGTERM")
    return Outcome("failed", f"it ended without a word, exit code {codes[0]}") if codes else None


def _num_killed_for_memory() -> int:
    """How many processes the kernel has killed so far, for the machine's memory or a limit of some."""
    try:
        found = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


if __name__ == "__main__":
    main()
