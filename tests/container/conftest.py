"""A Docker engine, the image built from this tree, and the image of a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine import PROJECT, Engine
from required import missing, tell

FREE_GB = 12


@pytest.fixture(scope="session")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The engine that answers here already, else one from Debian's packages, stopped at the end."""
    config = request.config
    folder = Path(os.environ.get("SNPDECONV_ENGINE", "/tmp/snpdeconv-engine"))
    free_gb = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free / 1e9
    if free_gb < FREE_GB:
        missing("container", f"{free_gb:.0f} GB are free at {folder}, {FREE_GB} are needed", config=config)
    found = Engine.of_this_machine()
    if found is not None:
        yield found
        return
    if os.geteuid() != 0:
        missing("container", "no Docker engine answers, and only root can start one", config=config)
    if shutil.which("apt-get") is None:
        missing("container", "no Docker engine answers, and this is not Debian", config=config)
    started = time.monotonic()
    up = subprocess.run([PROJECT / "tests/container/engine-up.sh", folder], capture_output=True, text=True)
    if up.returncode != 0:
        missing("container", f"no Docker engine could be started: {up.stderr.strip()}", config=config)
    tell(f"container: engine and base image in {time.monotonic() - started:.0f} s", config=config)
    yield Engine.from_file(folder / "env.sh")
    # Its images stay: with them the next run takes seconds.
    subprocess.run([PROJECT / "tests/container/engine-down.sh", folder], check=True)


@pytest.fixture(scope="session")
def image(engine: Engine, request: pytest.FixtureRequest) -> str:
    """The image, built by the command that users type."""
    name = "snpdeconv:test"
    started = time.monotonic()
    engine.make("image", f"IMAGE={name}")
    took_s = time.monotonic() - started
    size_gb = int(engine.docker("image", "inspect", "--format", "{{.Size}}", name)) / 1e9
    tell(f"container: image in {took_s:.0f} s, {size_gb:.2f} GB", config=request.config)
    return name


@pytest.fixture(scope="session")
def postgres_image(engine: Engine, request: pytest.FixtureRequest) -> str:
    """PostgreSQL from Debian's packages, in the place of the official image."""
    name = "snpdeconv-postgres:test"
    folder = PROJECT / "tests/container"
    started = time.monotonic()
    engine.docker(
        "build", *engine.build_args, "--file", folder / "postgres.Dockerfile", "--tag", name, folder
    )
    tell(f"container: PostgreSQL image in {time.monotonic() - started:.0f} s", config=request.config)
    return name
