"""What a fuzz target is, and what every command owes whatever it is given.

A target is a folder of sound files, the names of those that get damaged, and a command. Each input is told by
target, seed and number alone: `SNPDECONV_FUZZ_ONLY=import-vcf:17:42` runs that one again and keeps its folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzz.mutate import mutate_file

SECONDS, GIB, MOST_CHARACTERS = 60.0, 2.0, 1_500
_TOOL = Path(__file__).with_name("server.py")


@dataclass(frozen=True)
class Target:
    """Something that reads files.

    Attributes:
        name: In the test's name.
        words: The command; it stands in the folder, so that paths are names. `@name`: what that file holds.
        files: Names of the files that may be damaged, one for each input.
        make: Writes sound files into a new folder; made once for all inputs. The command must succeed on them.
        out: What the command writes: whole where it succeeds, not there where it fails.
        damage: How a file is damaged.
        env: Further variables of the environment.
    """

    name: str
    words: Sequence[str]
    files: Sequence[str]
    make: Callable[[Path], None]
    out: str | None = None
    damage: Callable[[Path, Random], None] = mutate_file
    env: tuple[tuple[str, str], ...] = ()


class Server:
    """The process that forks; a context manager."""

    def __enter__(self) -> Server:
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        self._process = subprocess.Popen(
            [sys.executable, str(_TOOL)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, folder: Path, words: Sequence[str], env: dict[str, str] | None = None) -> dict[str, Any]:
        """A command in a folder: its code, seconds, GiB, out and err."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        env = {"SNPDECONV_HOME": str(folder / "home"), **(env or {})}
        job = {"folder": str(folder), "words": list(words), "env": env, "seconds": SECONDS, "gib": GIB}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


def words_in(folder: Path, words: Sequence[str]) -> list[str]:
    """The command's words; `@name` is what a file of the folder holds, so that words can be damaged too."""
    return [
        (folder / word[1:]).read_bytes().replace(b"\0", b"").decode(errors="surrogateescape")
        if word[:1] == "@"
        else word
        for word in words
    ]


def listing(folder: Path) -> set[str]:
    """Everything in a folder but what lies in the home, which keeps caches and logs."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "home" not in path.relative_to(folder).parts[:1]
    }


def faults(ended: dict[str, Any], *, before: set[str], after: set[str], out: str | None) -> list[str]:
    """What a command owes and did not do."""
    found = []
    if ended["code"] == "hang":
        return [f"ran over {SECONDS:.0f} s"]
    if ended["code"] not in (0, 2):
        found.append(
            f"ended with {ended['code']}: {' | '.join(ended['err'].strip().splitlines()[-4:])[-600:]}"
        )
    elif "Traceback (most recent call last)" in ended["err"]:
        found.append("a traceback in the log")
    if ended["gib"] > GIB:
        found.append(f"took {ended['gib']:.1f} GiB")
    errors = [line for line in ended["err"].splitlines() if line.startswith("error: ")]
    if ended["code"] == 2 and (not errors or ended["err"].splitlines()[-1] not in errors):
        found.append(f"ended with 2 and no line that says why: {ended['err'][-300:]!r}")
    longest = max((len(line) for line in ended["err"].splitlines()), default=0)
    if longest > MOST_CHARACTERS:
        found.append(f"a line of {longest} characters: {ended['err'][:120]!r}")
    if any(ord(sign) < 32 and sign not in "\n\t" for sign in ended["err"]):
        found.append("control characters in what it says")
    new = after - before
    if ended["code"] != 0 and new:
        found.append(f"failed and left {sorted(new)[:4]}")
    elif out is not None and ended["code"] == 0 and out not in after:
        found.append(f"succeeded without {out}")
    elif any(Path(name).name.startswith(".") and not name.endswith(".lock") for name in new):
        found.append(f"left temporary files {sorted(new)[:4]}")
    return found


def fuzz(server: Server, target: Target, sound: Path, work: Path, *, seed: int, inputs: range) -> list[str]:
    """Runs damaged inputs.

    Args:
        server: Runs the commands.
        target: What is tried.
        sound: The folder that `target.make` wrote.
        work: Where the damaged copies go.
        seed: With the number of an input it tells all about it.
        inputs: Numbers of the inputs.

    Returns:
        One line for each fault.
    """
    told = []
    for number in inputs:
        folder = work / f"{target.name}-{seed}-{number}"
        shutil.copytree(sound, folder)
        rng = Random(f"{target.name}:{seed}:{number}")
        target.damage(folder / rng.choice(list(target.files)), rng)
        before = listing(folder)
        ended = server.run(folder, words_in(folder, target.words), dict(target.env))
        found = faults(ended, before=before, after=listing(folder), out=target.out)
        told += [f"{target.name}:{seed}:{number}: {fault}" for fault in found]
        if not os.environ.get("SNPDECONV_FUZZ_ONLY"):
            shutil.rmtree(folder)
    return told
