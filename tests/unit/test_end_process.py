"""How a rank ends: with its code and what it had to say, and before the interpreter takes threads down."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys, threading, time
from snpdeconv.console import end_process_after

threading.Thread(target=time.sleep, args=(60,)).start()  # as one of a library: nobody waits for it
atexit.register(print, "said at the end")

def work():
    print("written", end=" ")
    {ends}

end_process_after(work)
print("never reached")
"""


@pytest.mark.parametrize(
    ("ends", "code", "err"),
    [
        ("return 0", 0, ""),
        ("return 2", 2, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(143)", 143, ""),
        ("sys.exit('no')", 1, "no"),
        ("raise KeyError('x')", 1, "KeyError: 'x'"),
    ],
)
def test_its_code_and_words_are_kept(ends, code, err):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(ends=ends)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code
    assert done.stdout == "written said at the end\n"
    assert done.stderr.strip().splitlines()[-1:] == ([err] if err else [])
