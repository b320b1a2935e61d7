"""How a process begins: in surroundings that libraries can work in, and without the garbage collector's help.

Knows no libraries.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import locale
import os
import pwd
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from snpdeconv.errors import ConfigError


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """For the imports with which a long command begins.

    They make a million objects that stay. Looking through these again and again is a sixth of the time that
    the imports take; afterwards they are set aside, so that no later collection looks at them either.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def mend_surroundings() -> None:
    """Gives a command what it was started without: open streams, a person's name and home, UTF-8.

    In another encoding, of an old locale or of none, a trait called größe would be found in no table: the
    command starts again in Python's UTF-8 mode, which its jobs inherit.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(
                os.devnull, os.O_RDWR
            )  # the lowest that is free: else the next file opened takes its place
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    stand_in_for_passwd()
    if sys.flags.utf8_mode or os.environ.get("PYTHONUTF8") == "1":
        return  # also where Python was told not to listen: it would start again for ever
    if locale.getencoding().lower().replace("-", "") != "utf8":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def stand_in_for_passwd() -> None:
    """Names a user whom the system does not know, as `docker --user` makes one: libraries ask for it."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        os.environ.setdefault("USER", f"uid{os.getuid()}")
        if not os.environ.get("HOME") and (given := os.environ.get("SNPDECONV_HOME")):
            os.environ["HOME"] = str(Path(given).absolute())


def check_surroundings() -> None:
    """Refuses words that no file can hold, and a working folder that is gone.

    Raises:
        ConfigError: Names it.
    """
    words = [*sys.argv, os.environ.get("SNPDECONV_HOME", "")]
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise ConfigError("is not in UTF-8", where=ascii(word), mend="rename it in UTF-8")
    try:
        folder = os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise ConfigError(
            "is gone", where="the working folder", mend="change into one that is there"
        ) from error
    if any("\ud800" <= letter <= "\udfff" for letter in folder):
        raise ConfigError("is not in UTF-8", where=ascii(folder), mend="work in a folder named in UTF-8")


def end_process_after(work: Callable[[], int]) -> NoReturn:
    """Ends the process with the code that the work gives, before the interpreter takes itself down.

    A thread of gloo or NCCL that still drops the tensors of the last collective asks for Python's lock. At
    the interpreter's end it is ended for that inside C++, which aborts the process: a rank whose work is done
    and written would fail the job.
    """
    try:
        code = work()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):  # nobody reads them any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code % 256)
