from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ran

from snpdeconv.errors import ConfigError, ResourceError
from snpdeconv.tracking.connection import connect
from snpdeconv.tracking.home import (
    artifacts_dir,
    cache_dir,
    home,
    is_database,
    redact_password,
    spool_dir,
    tracking_uri,
    without_folders,
)


def test_home_is_made_where_the_variable_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "a" / "b"))
    assert home() == tmp_path / "a" / "b"
    assert home().is_dir()


def test_home_defaults_to_the_users_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SNPDECONV_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home() == tmp_path / ".local/share/snpdeconv"


def test_home_that_cannot_be_made_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(
        ResourceError, match=r"file/home: cannot be made \(Not a directory\); set SNPDECONV_HOME"
    ):
        home()


def test_home_that_cannot_be_written_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNPDECONV_HOME", "/proc/self")  # not even root writes there
    with pytest.raises(ResourceError, match="is not writable"):
        home()


def test_a_new_home_and_all_in_it_is_its_owners_alone(no_home: Path) -> None:
    no_home.rmdir()
    connect(tracking_uri())
    for folder in (home(), cache_dir(), artifacts_dir()):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert (no_home / "mlflow.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_home_that_others_may_write_gets_a_warning_that_mends_it(
    mode: int, no_home: Path, run: Callable[..., Ran]
) -> None:
    no_home.chmod(mode)
    (line,) = run("status").err.splitlines()
    assert f"{no_home}: other users may write here" in line
    subprocess.run(line.rpartition("; ")[2], shell=True, check=True)
    assert home().stat().st_mode & 0o022 == 0


def test_spools_are_private_since_addresses_may_hold_passwords(no_home: Path) -> None:
    assert spool_dir().stat().st_mode & 0o077 == 0


def test_store_is_an_sqlite_file_in_the_home(no_home: Path) -> None:
    assert tracking_uri() == f"sqlite:///{no_home}/mlflow.db"


def test_relative_sqlite_address_does_not_depend_on_the_folder(
    no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    monkeypatch.chdir(no_home)
    assert tracking_uri() == f"sqlite:///{no_home}/runs.db"


def test_server_address_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri() == "http://tracking:5000"
    assert not is_database(tracking_uri())
    assert is_database("postgresql+psycopg://u:p@db/mlflow")


@pytest.mark.parametrize("uri", ["./mlruns", "file:///data/mlruns"])
def test_folder_of_plain_files_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        tracking_uri()


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("localhost:5000", r"did you mean 'http://localhost:5000'\?"),
        ("tracking.lab.org:80/mlflow", r"did you mean 'http://tracking.lab.org:80/mlflow'\?"),
        ("htpp://ann:secret@host:5000", r"'htpp://host:5000' is .*did you mean 'http://host:5000'\?"),
        ("http:/host:5000", r"did you mean 'http://host:5000'\?"),
        ("HTTP://host:5000", r"did you mean 'http://host:5000'\?"),
        ("postgres://ann@db/mlflow", r"did you mean 'postgresql://db/mlflow'\?"),
        ("foo://x", "no tracking server and no database; unset it .*or give http://host:port or sqlite:////"),
        ("s3://bucket/mlruns", "is the address of no tracking server"),
        ("databricks", "'databricks' is the address of no tracking server"),
        ("http://", "is the address of no tracking server"),
        ("sqlite://", "or sqlite:////path/mlflow.db"),
        ("sqlite:/data/mlflow.db", "or sqlite:////path/mlflow.db"),
        ("/data/mlruns", "is a folder"),
    ],
)
def test_mistyped_address_is_refused_with_the_nearest_right_one(
    uri: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=told) as caught:
        tracking_uri()
    assert "secret" not in str(caught.value)
    assert caught.value.where == "MLFLOW_TRACKING_URI"


@pytest.mark.parametrize(
    "uri",
    [
        "https://ann:secret@host/mlflow",
        "postgresql://db/mlflow",
        "postgresql+psycopg2://ann:secret@db:5432/mlflow",
        "postgresql:///mlflow",
        "mysql+pymysql://db/mlflow",
        "mssql+pyodbc://db/mlflow?driver=x",
        "sqlite:////data/mlflow.db",
    ],
)
def test_addresses_of_servers_and_databases_are_taken(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri() == uri


def test_passwords_are_not_shown() -> None:
    assert redact_password("https://ann:secret@host:5000/x") == "https://host:5000/x"
    assert redact_password("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"


def test_what_leaves_the_machine_names_files_without_folders() -> None:
    told = "/data/me/p.tsv: no column; see '/home/me/a b/c.bed', http://host:5000/x/y and a/b (3/4)"
    assert without_folders(told) == "p.tsv: no column; see 'a b/c.bed', http://host:5000/x/y and a/b (3/4)"


def test_import_brings_neither_mlflow_nor_torch() -> None:
    code = "import sys, snpdeconv.tracking; print({'mlflow', 'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
