"""No input, however damaged, ends in a traceback, a hang, much memory or half an output.

The short form runs with the other tests, with fixed seeds and a fresh one; `make fuzz INPUTS=300` is the long one.
"""

import os
import secrets
import shutil

import pytest
from fuzz.harness import fuzz, words_in
from fuzz.targets import TARGETS

INPUTS = int(os.environ.get("SNPDECONV_FUZZ_INPUTS", "2"))
FRESH = secrets.randbelow(10**6) + 100
ONLY = os.environ.get("SNPDECONV_FUZZ_ONLY", "")


@pytest.fixture(scope="session")
def sound(server, used_home, tmp_path_factory):
    """The sound folder of a target, made once; its command succeeds."""
    made = {}

    def folder_of(target):
        if target.name not in made:
            folder = tmp_path_factory.mktemp("sound") / target.name
            folder.mkdir()
            target.make(folder)
            trial = tmp_path_factory.mktemp("trial") / "folder"
            shutil.copytree(folder, trial)
            used_home(trial / "home")
            ended = server.run(trial, words_in(trial, target.words), dict(target.env))
            assert ended["code"] == 0, ended["err"]
            shutil.copytree(trial / "home", folder / "home")
            made[target.name] = folder
        return made[target.name]

    return folder_of


@pytest.mark.parametrize("seed", ["fixed", "fresh"])
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.timeout(3600)
def test_damaged_inputs(target, seed, server, sound, tmp_path):
    number, inputs = (1 if seed == "fixed" else FRESH), range(INPUTS)
    if ONLY:
        name, number, one = ONLY.split(":")
        if name != target.name or seed == "fresh":
            pytest.skip("another one is asked for")
        number, inputs = int(number), range(int(one), int(one) + 1)
    faults = fuzz(server, target, sound(target), tmp_path, seed=number, inputs=inputs)
    assert not faults, "\n".join(faults)
