"""What tests need beyond Python: where it is missing they skip, and say so aloud, or fail if it must be."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import pytest


def missing(what: str, why: str, *, config: pytest.Config) -> NoReturn:
    """Skips the test, or fails it where SNPDECONV_REQUIRE, a list with commas, names `what`."""
    if what in os.environ.get("SNPDECONV_REQUIRE", "").split(","):
        pytest.fail(f"{why}, and SNPDECONV_REQUIRE names {what}", pytrace=False)
    tell(f"SKIPPED: the {what} tests do not run here: {why}", config=config)
    pytest.skip(why)


def tell(line: str, *, config: pytest.Config) -> None:
    """Prints a line past pytest's capture: what was left out, how long it took, how large it is."""
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print(f"\n{line}", file=sys.stderr, flush=True)
