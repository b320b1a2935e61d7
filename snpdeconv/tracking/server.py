"""The MLflow UI on this machine, over the home's own store. Listens on the loopback address only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snpdeconv.errors import ResourceError
from snpdeconv.tracking.connection import OWN_VARIABLES, connect
from snpdeconv.tracking.home import artifacts_dir, home, is_database, shown, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_START_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class MlflowUi:
    """Where the UI is.

    Attributes:
        url: Address for a browser.
        process: The server that was started; None if one is running already, by MLFLOW_TRACKING_URI.
        experiment: The one of the newest run, if there is a run.
    """

    url: str
    process: subprocess.Popen[bytes] | None
    experiment: str | None = None

    @property
    def page(self) -> str:
        """The page of the runs; without the parameter MLflow opens its view of language models."""
        place = "" if self.experiment is None else f"/{self.experiment}/runs"
        return f"{self.url}/#/experiments{place}?workflowType=machine_learning"

    def wait(self) -> None:
        """Waits until the server ends or the user interrupts, and stops it."""
        assert self.process is not None
        try:
            self.process.wait()
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends the server and its workers."""
        assert self.process is not None
        try:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(timeout=20)
        except ProcessLookupError:
            self.process.wait()
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def serve_ui(port: int) -> MlflowUi:
    """Starts the UI over the tracking store, or says where it is.

    Args:
        port: Port of the loopback address.

    Returns:
        The UI, once it answers.

    Raises:
        ResourceError: The port is taken, or the server does not start.
    """
    uri = tracking_uri()
    if not is_database(uri):
        return MlflowUi(shown(uri).rstrip("/"), None)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ResourceError(
                f"cannot be used ({error.strerror})", where=f"port {port}", hint="choose another with --port"
            ) from error
    client = connect(uri)  # two workers that build a fresh database at once would break it
    log = home() / "ui.log"
    log.touch(mode=0o600)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            server_command(port=port, artifacts=artifacts_dir()),
            env=_environment(uri),
            # uvicorn imports from its working folder before all others: nobody but root writes here.
            cwd="/",
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    ui = MlflowUi(f"http://127.0.0.1:{port}", process, _newest_experiment(client))
    try:
        _wait_until_healthy(ui, log=log)
    except BaseException:
        ui.stop()
        raise
    return ui


def _newest_experiment(client: MlflowClient) -> str | None:
    """ID of the experiment that the newest run belongs to."""
    everything = [one.experiment_id for one in client.search_experiments()]
    newest = client.search_runs(everything, max_results=1, order_by=["attributes.start_time DESC"])
    return newest[0].info.experiment_id if newest else None


def show_page(url: str) -> None:
    """Opens a window of the user's browser, where there is a display or $BROWSER names one."""
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    if has_display or sys.platform == "darwin":  # one that draws into the terminal would take it over
        webbrowser.open(url)


def _environment(uri: str) -> dict[str, str]:
    """What the server is told where no list of processes shows it: the address may hold a password.

    MLflow takes every option from the environment too. What a user has there is for servers of their own: it
    could open this one to other machines or pages, move its page or leave the runs out.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in OWN_VARIABLES or not name.startswith(("MLFLOW_", "_MLFLOW_"))
    }
    return kept | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONSAFEPATH": "1",
    }


def server_command(*, port: int, artifacts: Path) -> list[str]:
    """The command that serves artifacts, and the database of `_environment`, on the loopback address."""
    names = ("127.0.0.1", "localhost")
    hosts = [*names, *(f"{name}:{port}" for name in names)]
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--artifacts-destination", str(artifacts)),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "2"),
        *("--allowed-hosts", ",".join(hosts)),
    ]


def _wait_until_healthy(ui: MlflowUi, *, log: Path) -> None:
    assert ui.process is not None
    deadline = time.monotonic() + _START_TIMEOUT_S
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy knows this machine's
    while ui.process.poll() is None and time.monotonic() < deadline:
        try:
            with directly.open(f"{ui.url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    raise ResourceError("the MLflow server did not start", where=log, hint="its last lines say why")
