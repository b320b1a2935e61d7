from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snpdeconv.errors import ResourceError
from snpdeconv.tracking.spool import FileLock, locked

HOLDER = """
import os, sys, time
from pathlib import Path
from snpdeconv.tracking.spool import FileLock
assert FileLock(Path(sys.argv[1])).acquire()
worker = os.fork()
if worker:
    print(worker, flush=True)
time.sleep(60)
"""


def test_lock_ends_with_its_process_although_a_forked_worker_lives_on(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        assert not FileLock(path).acquire()
        with pytest.raises(ResourceError, match="still locked by another process"), locked(path, wait_s=0.1):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(worker, 0)  # it is there
        with locked(path, wait_s=1.0):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_threads_take_turns(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(3):
            with locked(tmp_path / "lock"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_failed_try_does_not_drop_what_this_process_holds(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        assert not FileLock(path).acquire()
        code = (
            "import sys; from pathlib import Path; from snpdeconv.tracking.spool import FileLock;"
            "print(FileLock(Path(sys.argv[1])).acquire())"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
        )
        assert done.stdout == "False\n"
