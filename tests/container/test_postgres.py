"""The plain command of examples/mlflow_server.sh, over Debian's PostgreSQL and without containers."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from docker_engine import PROJECT
from required import missing, tell
from writers import assert_nothing_lost, log_at_once

pytestmark = [pytest.mark.container, pytest.mark.timeout(900)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def database(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """PostgreSQL on a socket of its own; yields what libpq needs to find it."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders:
        missing("container", "PostgreSQL is not installed (Debian: postgresql)", config=request.config)
    data = Path("/tmp") / f"snpdeconv-postgres-{os.getpid()}"
    data.mkdir(mode=0o700)
    # It refuses to run as root.
    become = {}
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(data, user.pw_uid, user.pw_gid)
        become = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    initdb = [folders[-1] / "initdb", "--username=mlflow", "--auth=trust", "--no-sync", data / "cluster"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=data, **become)
    with (tmp_path / "postgres.log").open("wb") as log:
        server = subprocess.Popen(
            [folders[-1] / "postgres", "-D", data / "cluster", "-c", "listen_addresses=", "-k", data],
            stdout=log, stderr=log, cwd=data, **become,
        )  # fmt: skip
    try:
        while not (data / ".s.PGSQL.5432").exists():
            assert server.poll() is None, (tmp_path / "postgres.log").read_text()
            time.sleep(0.1)
        yield {"PGHOST": str(data), "PGUSER": "mlflow", "PGDATABASE": "postgres"}
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        shutil.rmtree(data)


@pytest.fixture
def server(database: dict[str, str], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The server as the README starts it; yields what leads a job there."""
    port = str(free_port())
    login = {"MLFLOW_TRACKING_USERNAME": "root-of-all", "MLFLOW_TRACKING_PASSWORD": "a long pass%phrase:/"}
    settings = {
        "MLFLOW_AUTH_ADMIN_USERNAME": login["MLFLOW_TRACKING_USERNAME"],
        "MLFLOW_AUTH_ADMIN_PASSWORD_FILE": str(tmp_path / "password"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any",
        "ALLOWED_HOSTS": "127.0.0.1:*",
        "FOLDER": str(tmp_path / "server"),
        "PORT": port,
    }
    (tmp_path / "password").write_text(login["MLFLOW_TRACKING_PASSWORD"] + "\n")
    for name in ("mlflow", "uvicorn", "sqlalchemy"):  # a server that imported them would not start
        (tmp_path / f"{name}.py").write_text("raise SystemExit('taken from the working folder')\n")
    log = tmp_path / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["sh", PROJECT / "examples/mlflow_server.sh"],
            env=os.environ
            | database
            | settings
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            stdout=stream,
            stderr=stream,
            cwd=tmp_path,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 600
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}", **login}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def test_eight_jobs_of_eight_users_lose_nothing(
    server: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    took_s = log_at_once(tmp_path, os.environ | server, one_home=False)
    tell(f"PostgreSQL: eight writers in {took_s:.0f} s", config=request.config)
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    assert_nothing_lost(server["MLFLOW_TRACKING_URI"])
    # All files are where the server was told to keep them.
    assert len(list((tmp_path / "server/artifacts").rglob("weights"))) == 16
