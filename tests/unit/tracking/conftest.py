from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from snpdeconv.tracking.connection import connect


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as the first use leaves it; building one takes two seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNPDECONV_HOME", str(path.parent))
        connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # MLflow's own experiment 0 keeps artifacts in the folder it stands in
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def tracking_home(no_home: Path, empty_store: Path) -> Path:
    """A home folder with an empty store."""
    shutil.copy(empty_store, no_home / "mlflow.db")
    return no_home


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "cnn"}')
    (folder / "weights.safetensors").write_bytes(bytes(range(256)))
    return folder
