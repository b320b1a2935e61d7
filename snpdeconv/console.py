"""What a person sees while work goes on: progress bars on a terminal, plain lines in a log; how it starts.

Everything goes to standard error; standard output is for results. A command is given what it was started
without (streams, a user, UTF-8). Knows nothing of the work itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import locale
import logging
import operator
import os
import pwd
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO, TypeVar

from snpdeconv.errors import ConfigError, one_line

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

logger = logging.getLogger(__name__)


Item = TypeVar("Item")
Progress = Callable[[float, int], None]
"""Called with what is done and the total, in the same unit; a total of 0 is not known."""

# What is over sooner is not worth a word.
_SOON_S = 3.0
_LOG_EVERY_S = 15.0


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is now, not to what it was when logging was set up."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "is_progress", False) and _on_terminal():
            return  # a bar shows it there
        self.stream = sys.stderr
        super().emit(record)


class _OneLine(logging.Formatter):
    """A message quotes files, servers and names: none of them may break the line or run on for pages."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message, 1_500)
        return super().formatMessage(record)


def configure_logging(*, verbose: bool = False) -> None:
    """Sends the package's log lines to standard error, with the time and without noise from libraries."""
    handler = _StandardError()
    handler.setFormatter(_OneLine("%(asctime)s  %(message)s", datefmt="%H:%M:%S"))
    package = logging.getLogger("snpdeconv")
    package.handlers[:] = [handler]
    package.setLevel(logging.DEBUG if verbose else logging.INFO)
    package.propagate = False


def shortened(text: str, *, limit: int) -> str:
    """Text without its middle where it is longer than the limit: IDs of indels spell out alleles."""
    half = (limit - 1) // 2
    return text if len(text) <= limit else f"{text[:half]}…{text[-half:]}"


@dataclass
class _Work:
    """A piece of work under way."""

    title: str
    started: float
    done: float = 0.0
    total: int = 0

    def update(self, done: float, total: int) -> None:
        self.done, self.total = done, total

    @property
    def count(self) -> str:
        """How much is done, or for how long it has been going on where that is not known."""
        if self.total:
            return f"{min(int(self.done), self.total):,} of {self.total:,}"
        return f"{int(self.done):,} so far" if self.done else f"for {_span(time.monotonic() - self.started)}"

    @property
    def left(self) -> str:
        """The time left at the rate so far."""
        if not 0 < self.done < self.total:
            return ""
        elapsed = time.monotonic() - self.started
        return f"about {_span(elapsed / self.done * (self.total - self.done))} left"


# Outermost first: work within work shares its bars and its lines.
_under_way: list[_Work] = []


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Shows how far a long piece of work is: by a bar on a terminal, by a line now and then in a log.

    Nothing is shown of work that is soon over, on ranks other than the first, and where nobody listens to
    the package's log. Yields a function to call with (done, total) as often as convenient.
    """
    work = _Work(title, started=time.monotonic())
    _under_way.append(work)
    shown = None
    if len(_under_way) == 1 and os.environ.get("RANK", "0") == "0" and logger.isEnabledFor(logging.INFO):
        ended = threading.Event()
        shown = threading.Thread(target=_show, args=(ended,), name="progress", daemon=True)
        shown.start()
    try:
        yield work.update
    finally:
        if shown is not None:
            ended.set()
            shown.join()
        _under_way.remove(work)


def track(items: Iterable[Item], title: str, *, total: int | None = None) -> Iterator[Item]:
    """The items, one after the other, while :func:`progress` shows how many are done."""
    number = operator.length_hint(items) if total is None else total
    with progress(title) as update:
        update(0, number)
        for done, item in enumerate(items, start=1):
            yield item
            update(done, number)


def _show(ended: threading.Event) -> None:
    """Shows what is under way until it has ended; on a thread, since the work calls when it likes."""
    if ended.wait(_SOON_S):
        return
    with _bars() if _on_terminal() else contextlib.nullcontext():
        while not ended.wait(_LOG_EVERY_S):
            told = [
                f"{work.title}: {', '.join(filter(None, (work.count, work.left)))}" for work in [*_under_way]
            ]
            logger.info("%s", "; ".join(told), extra={"is_progress": True})


def _on_terminal() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _bars() -> Live:
    from rich.console import Console
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    def table() -> Table:
        rows = Table.grid(padding=(0, 1))
        for work in [*_under_way]:
            bar = ProgressBar(total=work.total or None, completed=work.done, width=30, pulse=not work.total)
            rows.add_row(work.title, bar, work.count, work.left)
        return rows

    return Live(
        get_renderable=table,
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=2,
        redirect_stdout=False,
    )


def _span(seconds: float) -> str:
    """A time in the largest unit that it has two of."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
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


def fix_environment() -> None:
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


def check_environment() -> None:
    """Refuses words that no file can hold, and a working folder that is gone."""
    words = [*sys.argv, os.environ.get("SNPDECONV_HOME", "")]
    for word in words:
        if any("\ud800" <= letter <= "\udfff" for letter in word):
            raise ConfigError("is not in UTF-8", where=ascii(word), hint="rename it in UTF-8")
    try:
        folder = os.getcwd()  # noqa: PTH109
    except OSError as error:
        raise ConfigError(
            "is gone", where="the working folder", hint="change into one that is there"
        ) from error
    if any("\ud800" <= letter <= "\udfff" for letter in folder):
        raise ConfigError("is not in UTF-8", where=ascii(folder), hint="work in a folder named in UTF-8")


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
