"""A Docker engine as the tests speak to it: by its command line; and the image, built from this tree."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from required import missing, tell

PROJECT = Path(__file__).parents[1]
FREE_GB = 12
# What `make run-container` and compose.yaml ask for too.
LOCKED_DOWN = (
    "--network=none",
    "--read-only",
    "--tmpfs=/tmp",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        program: The client.
        environment: Variables that lead the client to the engine.
        build_args: What a build needs here to reach the package index.
    """

    program: str
    environment: dict[str, str] = field(default_factory=dict)
    build_args: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls) -> Engine | None:
        """The engine that the user has, if it answers and its client can build."""
        program = shutil.which("docker")
        if program is None:
            return None
        found = cls(program, {"DOCKER_BUILDKIT": "1"}, tuple(shlex.split(os.environ.get("BUILD_ARGS", ""))))
        # A client without BuildKit offers no secrets.
        if "--secret" not in found.run("build", "--help", check=False).stdout:
            return None
        for words in (["info"], ["compose", "version"]):
            if found.run(*words, check=False).returncode != 0:
                return None
        return found

    @classmethod
    def from_file(cls, path: Path) -> Engine:
        """The engine that a script of shell exports, written by engine-up.sh, describes."""
        exports = dict(word.split("=", 1) for word in shlex.split(path.read_text()) if "=" in word)
        build_args = tuple(shlex.split(exports.pop("BUILD_ARGS")))
        return cls(exports.pop("DOCKER"), exports, build_args)

    def run(
        self, *words: object, check: bool = True, timeout_s: float = 900.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs the client; a failure shows the end of what it said."""
        return _run([self.program, *words], self.environment | environment, check=check, timeout_s=timeout_s)

    def docker(self, *words: object, **environment: str) -> str:
        """What the client printed."""
        return self.run(*words, **environment).stdout.strip()

    def make(self, *words: object, **environment: str) -> str:
        """What make printed."""
        words = ("make", "--directory", PROJECT, f"DOCKER={self.program}", *words)
        given = self.environment | {"BUILD_ARGS": shlex.join(self.build_args)} | environment
        return _run(words, given, check=True, timeout_s=1800.0).stdout

    def snpdeconv(self, image: str, data: Path, *words: object, user: int = 10001, program: str = "") -> str:
        """Runs a command in a container that may do nothing but compute and write to `data`.

        Args:
            image: The image.
            data: Mounted as /data, writable by `user`.
            words: Arguments.
            user: Number of the user and the group.
            program: What to run in the place of `snpdeconv`.
        """
        entry = [f"--entrypoint={program}"] if program else []
        mount = ("--volume", f"{data}:/data", f"--user={user}:{user}")
        return self.docker("run", "--rm", *LOCKED_DOWN, *mount, *entry, image, *words)


def _run(
    words: object, environment: dict[str, str], *, check: bool, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    assert isinstance(words, (list, tuple))
    # The tests' own store and home are of no concern to a container.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SNPDECONV_"))}
    done = subprocess.run(
        [str(word) for word in words],
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{shlex.join(done.args)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


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
