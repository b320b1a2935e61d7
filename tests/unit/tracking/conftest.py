from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without a store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # MLflow's own experiment 0 keeps artifacts in the folder it stands in
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def tracking_home(no_home: Path, used_home: Callable[[Path], Path]) -> Path:
    """A home folder with an empty store."""
    return used_home(no_home)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "cnn"}')
    (folder / "weights.safetensors").write_bytes(bytes(range(256)))
    return folder
