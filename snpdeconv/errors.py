"""Errors that the user can fix: where, what, and how to fix it, in one line; exit code 2.

Anything else that escapes is a bug of ours and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160), *range(0x2028, 0x202F))}


def one_line(text: str, most_characters: int = 600) -> str:
    """Text that may quote a file or a server, fit for a message: without line breaks, and not long."""
    text = text.rstrip().translate(_CONTROL)
    half = most_characters // 2
    return text if len(text) <= most_characters else f"{text[:half]} … {text[-half:]}"


def has_control(text: str) -> bool:
    """Whether it holds a line break, or another character that steers a terminal."""
    return text.translate(_CONTROL) != text


class UserError(Exception):
    """A mistake in the input, the configuration or the surroundings, told in one line.

    `where` is the file, option or key concerned, `hint` what the user can do about it.
    """

    def __init__(self, problem: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        self.problem = one_line(problem)
        self.where = where
        self.hint = None if hint is None else one_line(hint)
        text = self.problem if where is None else f"{one_line(str(where))}: {self.problem}"
        super().__init__(text if hint is None else f"{text}; {self.hint}")

    def __reduce__(self) -> tuple[Any, ...]:
        """One rank tells it to the others."""
        return partial(type(self), where=self.where, hint=self.hint), (self.problem,)


class InputError(UserError):
    """A file that cannot be read as what it claims to be, or tables that do not fit together."""


class DamagedFile(InputError):
    """A file of ours that is not as it was written: cut off, altered, or something else in its place."""


class ConfigError(UserError):
    """A preset, key or value that does not exist or does not hold together."""


class ResourceError(UserError):
    """Memory, disk, device or server that the work needs and this machine does not give."""


class TrainingError(UserError):
    """A training run that cannot go on: a non-finite loss, or no memory for a batch of one."""


def nearest(word: str, options: Iterable[str]) -> str:
    """Names the option closest to a misspelt word, or the only one, or lists them all.

    A phrase such as ``did you mean 'epochs'?`` or ``choose one of a, b``.
    """
    choices = sorted(options)
    close = choices if len(choices) == 1 else difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else f"choose one of {', '.join(choices)}"
