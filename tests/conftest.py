"""Shared by all tests: a home of their own, a small simulated cohort, and the container image."""

import os
import shutil
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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A database as the first use of a home leaves it; building one takes two seconds of computing."""
    from snpdeconv.tracking.connection import connect

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNPDECONV_HOME", str(path.parent))
        connect(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def used_home(empty_store) -> Callable[[Path], Path]:
    """Makes a folder a home that was used before, unless it is one: it has a store, with nothing in it."""

    def use(folder: Path) -> Path:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "mlflow.db").exists():
            shutil.copy(empty_store, folder / "mlflow.db")
        return folder

    return use


@pytest.fixture
def run(capsys, monkeypatch, home, used_home) -> Callable[..., Ran]:
    """Runs the `snpdeconv` command in this process, as a user types it, in a home that was used before."""
    from snpdeconv.cli import main

    used_home(home)

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
    from snpdeconv.simulation.simulate import simulate

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
