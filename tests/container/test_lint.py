from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docker_engine import PROJECT
from required import missing

pytestmark = pytest.mark.container


def test_the_build_files_are_clean(request: pytest.FixtureRequest) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if hadolint is None:
        missing("container", "hadolint is not installed", config=request.config)
    files = [PROJECT / "Dockerfile", PROJECT / "tests/container/postgres.Dockerfile"]
    done = subprocess.run([hadolint, "--failure-threshold=style", *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
