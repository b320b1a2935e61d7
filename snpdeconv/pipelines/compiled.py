"""Where compiled networks are kept between runs. Knows neither networks nor who compiles them."""

from __future__ import annotations

import os
from pathlib import Path

from snpdeconv.tracking.home import cache_dir

_FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton"}
_TORCHS_OWN = "torchinductor_"  # and the user's name


def keep_compiled() -> None:
    """Points torch.compile at the home, where a later run on any machine finds what this one compiled.

    Left to itself it compiles into the machine's temporary folder, which on a cluster is another one for
    every job. A folder that the user named is left as it is. To be called before anything is compiled.
    """
    for variable, folder in _FOLDERS.items():
        named = os.environ.get(variable)
        # torch writes its own choice into the environment as soon as it is imported.
        if named is None or any(part.startswith(_TORCHS_OWN) for part in Path(named).parts):
            os.environ[variable] = str(cache_dir() / folder)
