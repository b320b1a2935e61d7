"""The image's requirements with hashes say what constraints.txt says."""

import re
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def pins(path):
    return {
        re.sub(r"[._]", "-", name.lower()): version
        for name, version in re.findall(r"^([\w.-]+)==([^\s\\;]+)", path.read_text(), re.MULTILINE)
    }


def test_the_image_installs_the_versions_of_the_constraints_each_with_hashes():
    locked, constraints = (pins(PROJECT / name) for name in ("requirements-image.txt", "constraints.txt"))
    # setuptools comes with every virtual environment: nothing else may be beside the constraints.
    assert set(locked) - set(constraints) <= {"setuptools"}
    assert {name for name in set(locked) & set(constraints) if locked[name] != constraints[name]} == set()
    text = (PROJECT / "requirements-image.txt").read_text()
    assert len(re.findall(r"^[\w.-]+==.*\\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) == len(
        locked
    )
