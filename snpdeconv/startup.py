"""How large libraries are loaded: without the garbage collector's help, which finds nothing there.

Knows no libraries.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


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
