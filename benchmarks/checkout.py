"""A checkout of the project, this one or another: its interpreter, its command line, its commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
COMMAND = "from snpdeconv.cli import main; main()"


@dataclass(frozen=True)
class Checkout:
    """A working tree of the project; its own .venv is used where it has one, else this interpreter."""

    root: Path

    @property
    def python(self) -> str:
        """The interpreter."""
        own = self.root / ".venv" / "bin" / "python"
        return str(own) if own.exists() else sys.executable

    def environment(self, home: Path) -> dict[str, str]:
        """The surroundings of a command: this package first, a home of its own, one thread."""
        given = {
            "PYTHONPATH": str(self.root),
            "SNPDECONV_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }
        without = {"MLFLOW_TRACKING_URI", "SNPDECONV_REVISION"}
        return {name: value for name, value in os.environ.items() if name not in without} | given

    def commit(self) -> str:
        """The commit, with -dirty where files differ from it."""
        words = ["git", "-C", str(self.root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    def words(self, *arguments: object) -> list[str]:
        """The `snpdeconv` command."""
        return [self.python, "-c", COMMAND, *map(str, arguments)]

    def command(self, *arguments: object, home: Path) -> str:
        """Runs the `snpdeconv` command; gives what it printed.

        Raises:
            RuntimeError: It failed; with what it said.
        """
        return self._run(self.words(*arguments), home=home)

    def script(self, text: str, *arguments: object, home: Path) -> Any:
        """Runs a text of Python; gives the JSON of the last line that it printed."""
        return self._last_line([self.python, "-c", text, *map(str, arguments)], home=home)

    def script_file(self, path: Path, *arguments: object, home: Path) -> Any:
        """As `script`, of a file."""
        return self._last_line([self.python, str(path), *map(str, arguments)], home=home)

    def seconds(self, *arguments: object, home: Path) -> dict[str, float]:
        """Runs the `snpdeconv` command: seconds on the clock, and of the processor."""
        return self.seconds_of(self.words(*arguments), home=home)

    def seconds_of(self, words: list[str], *, home: Path) -> dict[str, float]:
        """As `seconds`, of any command."""
        before, started = os.times(), time.perf_counter()
        self._run(words, home=home)
        wall, after = time.perf_counter() - started, os.times()
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return {"wall": wall, "cpu": cpu}

    def _last_line(self, words: list[str], *, home: Path) -> Any:
        return json.loads(self._run(words, home=home).splitlines()[-1])

    def _run(self, words: list[str], *, home: Path) -> str:
        # In the home: a folder that holds a package called snpdeconv would come first.
        home.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            words, cwd=home, env=self.environment(home), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"{self.root}: {' '.join(words[2:])}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done.stdout
