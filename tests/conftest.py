"""Shared by all tests: a home of their own, a small simulated cohort, and the container image."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ran
from docker_engine import engine, image  # noqa: F401  fixtures of the tests in containers, and of one job on SLURM

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """Every test has a home of its own and no tracking server but the embedded one."""
    folder = tmp_path / "home"
    monkeypatch.setenv("SNPDECONV_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def run(capsys, monkeypatch) -> Callable[..., Ran]:
    """Runs the `snpdeconv` command in this process, as a user would type it."""
    from snpdeconv.cli import main

    def run_command(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["snpdeconv", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        code = exit_.value.code
        return Ran(code if isinstance(code, int) else 0 if code is None else 1, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """A folder as `snpdeconv simulate` writes it: 240 people, 200 SNPs, 4 causal, and 60 people held out."""
    from snpdeconv.genetics.simulate import simulate

    folder = tmp_path_factory.mktemp("simulated") / "cohort"
    simulate(folder, num_samples=240, num_variants=200, num_causal=4, pve=0.8, seed=3, num_holdout=60)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real genotypes, where SNPDECONV_TEST_DATA says they are."""
    folder = os.environ.get("SNPDECONV_TEST_DATA")
    if not folder:
        pytest.skip("SNPDECONV_TEST_DATA is not set: no real genotypes")
    return Path(folder)
