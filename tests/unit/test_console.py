"""What is shown of long work: bars on a terminal, plain lines in a log, nothing of what is soon over."""

import contextlib
import logging
import os
import pty
import re
import threading
import time
from types import SimpleNamespace

import pytest

from snpdeconv import console
from snpdeconv.console import configure_logging, progress, track

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@pytest.fixture
def log(monkeypatch, tmp_path):
    """The log file of a command, soon and often told how far the work is."""
    monkeypatch.setattr(console, "_SOON_S", 0.0)
    monkeypatch.setattr(console, "_LOG_EVERY_S", 0.01)
    monkeypatch.delenv("RANK", raising=False)
    package = logging.getLogger("snpdeconv")
    before = package.handlers[:], package.level, package.propagate
    configure_logging()
    path = tmp_path / "log.txt"
    file = logging.FileHandler(path)
    package.addHandler(file)
    yield path
    file.close()
    package.handlers[:], package.level, package.propagate = before


@contextlib.contextmanager
def terminal():
    """Standard error is a terminal; gives what was written to it, whole once it is closed."""
    leader, follower = pty.openpty()
    written = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(leader, 4096):
                written.extend(part)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    with os.fdopen(follower, "w") as screen, contextlib.redirect_stderr(screen):
        yield written
    reader.join(5)
    os.close(leader)


def until_told(path, words):
    deadline = time.monotonic() + 10
    while words not in (told := path.read_text()):
        assert time.monotonic() < deadline, told
        time.sleep(0.005)


def test_a_log_has_lines_with_the_time_left(log, monkeypatch, capsys):
    now = 1_000.0
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now))
    with progress("linear part"):
        for fold in track(range(5), "folds"):
            until_told(log, f"folds: {fold} of 5")
            now += 90
        with progress("bytes") as update:
            update(1_234.5, 0)
            until_told(log, "linear part: for 8 min; bytes: 1,234 so far\n")
    lines = log.read_text().splitlines()
    assert "linear part: for 0 s; folds: 0 of 5" in lines
    assert "linear part: for 3 min; folds: 2 of 5, about 4 min left" in lines
    assert "linear part: for 6 min; folds: 4 of 5, about 90 s left" in lines
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "about 4 min left" in captured.err
    assert not CONTROL.search(captured.err)


def test_a_terminal_has_a_bar_and_its_log_file_lines(log, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with terminal() as written:
        for draw in track(range(3), "draws"):
            if draw == 2:
                until_told(log, "draws: 2 of 3, about ")
                time.sleep(1.2)  # bars are drawn twice a second
                logging.getLogger("snpdeconv.work").info("said meanwhile")
    screen = written.decode()
    assert re.search(r"draws .*━.* 2 of 3 about \d+ s left", screen)
    assert screen.count("said meanwhile") == 1
    assert "draws: 2 of 3" not in screen
    assert screen.endswith(("\x1b[2K", "\x1b[?25h"))  # nothing stays
    assert not CONTROL.search(log.read_text())


def test_a_terminal_that_takes_no_bar_has_lines(log, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with terminal() as written, progress("work"):
        until_told(log, "work: for 0 s")
    assert "work: for 0 s" in written.decode()
    assert "\x1b" not in written.decode()


@pytest.mark.parametrize("why", ["short", "another rank", "no log"])
def test_nothing_is_shown(log, monkeypatch, why):
    if why == "short":
        monkeypatch.setattr(console, "_SOON_S", 60.0)
    elif why == "another rank":
        monkeypatch.setenv("RANK", "1")
    else:
        logging.getLogger("snpdeconv").setLevel(logging.WARNING)
    started = time.monotonic()
    with terminal() as written:
        assert [time.sleep(0.02) or letter for letter in track("abc", "letters")] == ["a", "b", "c"]
    assert time.monotonic() - started < 5  # nobody waits until it would be shown
    assert not written
    assert log.read_text() == ""


def numbers_until(last):
    for number in track(range(3), "numbers"):
        if number == last:
            raise ValueError("the last")


def test_a_failure_ends_what_is_shown(log):
    with pytest.raises(ValueError, match="the last"):
        numbers_until(2)
    assert "progress" not in {thread.name for thread in threading.enumerate()}
    size = log.stat().st_size
    time.sleep(0.05)
    assert log.stat().st_size == size
