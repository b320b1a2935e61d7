"""The image of a PostgreSQL server."""

from __future__ import annotations

import time

import pytest
from docker_engine import PROJECT, Engine
from required import tell


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
