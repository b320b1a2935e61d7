"""The process that looks after a job of this machine, a module to run: see `main` for its words.

It waits for the jobs that come first, starts the ranks, and says how they ended when they could not.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from submitit.core.utils import JobPaths
from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

from snpdeconv.launch.records import Outcome, Record, find_record, read_job
from snpdeconv.launch.status import read_status, tell_end

_POLL_S = 2.0
_GRACE_S = 5.0
_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)
_TERMINATED = (-signal.SIGTERM, 128 + signal.SIGTERM)


class _Ranks:
    """The processes of a job, started again as long as one asks for it, as submitit's do at a time limit."""

    def __init__(self, folder: Path, words: list[str], *, number: int, limit_s: int, notice_s: int) -> None:
        self._folder, self._words, self._number = folder, words, number
        self._limit_s, self._notice_s = limit_s, notice_s
        self._ranks: list[subprocess.Popen[bytes]] = []
        signal.signal(signal.SIGTERM, self._tell)

    def run(self) -> list[int | None]:
        """Their exit codes; None for one that had to be killed."""
        for start in itertools.count():
            with ExitStack() as logs:
                try:
                    self._start(start, logs)
                    codes = self._wait()
                finally:
                    self._end()
            if LOCAL_REQUEUE_RETURN_CODE not in codes:
                break
        return codes

    def _start(self, start: int, logs: ExitStack) -> None:
        job = str(os.getpid())
        for rank in range(self._number):
            log = logs.enter_context(JobPaths(self._folder, job, rank).stdout.open("a"))
            environment = os.environ | {
                "SNPDECONV_LOCAL_START": str(start),
                "SUBMITIT_EXECUTOR": "local",
                "SUBMITIT_LOCAL_JOB_ID": job,
                "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
                "SUBMITIT_LOCAL_NODEID": "0",
                "SUBMITIT_LOCAL_NTASKS": str(self._number),
                "SUBMITIT_LOCAL_GLOBALID": str(rank),
                "SUBMITIT_LOCAL_LOCALID": str(rank),
            }
            self._ranks.append(subprocess.Popen(self._words, env=environment, stdout=log, stderr=log))

    def _wait(self) -> list[int | None]:
        """Until all have ended, the time is up, or one has failed: the others would wait for it."""
        started, failed, is_told = time.monotonic(), math.inf, False
        while True:
            now, codes = time.monotonic(), [rank.poll() for rank in self._ranks]
            if any(code not in (None, 0, LOCAL_REQUEUE_RETURN_CODE) for code in codes):
                failed = min(failed, now)
            if None not in codes or now > min(started + self._limit_s, failed + _GRACE_S):
                return codes
            if not is_told and now > started + self._limit_s - self._notice_s:
                is_told = True
                self._tell(signal.SIGUSR2)
            time.sleep(1 / 24)

    def _end(self) -> None:
        self._tell(signal.SIGINT)
        deadline = time.monotonic() + 1.0
        while any(rank.poll() is None for rank in self._ranks) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._tell(signal.SIGKILL)
        self._ranks.clear()

    def _tell(self, number: int, frame: FrameType | None = None) -> None:
        for rank in self._ranks:
            with contextlib.suppress(OSError):  # one that cannot be told keeps it from no other
                rank.send_signal(number)  # does nothing to one that has ended


def main() -> None:
    """Looks after the job whose log is to lie in the folder: FOLDER LIMIT_S NOTICE_S -- WORDS OF A RANK."""
    folder, limit_s, notice_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    record = read_job(folder.parent)
    try:
        end = _await_others(record) or _run(
            _Ranks(folder, sys.argv[5:], number=record.num_tasks, limit_s=limit_s, notice_s=notice_s)
        )
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


def _run(ranks: _Ranks) -> Outcome | None:
    """Runs the ranks to their end; what became of them if a signal ended one."""
    before = _num_killed_for_memory()
    codes = [code for code in ranks.run() if code]
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
