"""What a person sees while work goes on: progress bars on a terminal, plain lines in a log.

Everything goes to standard error; standard output is for results. Knows nothing of the work itself.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from snpdeconv.errors import one_line

Progress = Callable[[int, int], None]
"""Called with what is done and the total, in the same unit; a total of 0 is not known."""

logger = logging.getLogger(__name__)

_LOG_EVERY_S = 15.0


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is now, not to what it was when logging was set up."""

    def emit(self, record: logging.LogRecord) -> None:
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


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Shows how far a long piece of work is.

    Args:
        title: What is being done, in a few words.

    Yields:
        A function to call with (done, total) as often as convenient.
    """
    if sys.stderr.isatty():
        with _bar(title) as update:
            yield update
    else:
        yield _lines(title)


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(title, total=None)

        def update(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total or None)

        yield update


def _lines(title: str) -> Progress:
    last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last < _LOG_EVERY_S or done == total:
            return
        last = time.monotonic()
        if total:
            logger.info("%s: %d of %d (%.0f %%)", title, done, total, 100 * done / total)
        else:
            logger.info("%s: %d so far", title, done)

    return update
