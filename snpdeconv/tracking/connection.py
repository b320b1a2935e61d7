"""The way to an MLflow store: settings, the embedded database's first use, what failures mean, and the UI.

The UI runs on this machine over the home's own store, and listens on the loopback address only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snpdeconv.console import stand_in_for_passwd
from snpdeconv.errors import ConfigError, InputError, ResourceError, UserError
from snpdeconv.tracking.home import (
    address,
    artifacts_dir,
    home,
    is_database,
    redact_password,
    sqlite_path,
    sqlite_uri,
    tracking_uri,
)
from snpdeconv.tracking.spool import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_DEFAULTS = {
    # With MLflow's own values one call to a dead server blocks for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
# Whatever the user has set: with other values points are lost in silence, a server decides how long a command
# waits or where files come from, or the home's own store refuses for good what it should take.
_FORCED = {
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH": "2048",
    "MLFLOW_CREATE_MODEL_VERSION_SOURCE_VALIDATION_REGEX": None,
    "MLFLOW_READ_REPLICA_BACKEND_STORE_URI": None,
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
}
# MLflow raises at every call where such a one is out of range.
_NUMBERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": (0, 10),
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": (0, 120),
    "MLFLOW_HTTP_REQUEST_TIMEOUT": (1, 600),
}
_TRANSFER_TIMEOUT_S = "300"
_transfer_guard = threading.Lock()

# What MLflow itself answers to a request that it will never accept. Anything else may pass with time: a
# bare 400, 403 or 404 comes from a proxy whose server is away, or from a login that has run out.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
_TOO_LARGE = 413
_REASON_CHARS = 400
_START_TIMEOUT_S = 600.0


def prepare_environment() -> None:
    """Sets what MLflow reads from the environment; call it before threads start."""
    stand_in_for_passwd()
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name, (low, high) in _NUMBERS.items():
        given = os.environ[name]
        if not (given.isascii() and given.isdigit() and low <= int(given[:9]) <= high):
            raise ConfigError(
                f"'{given[:40]}' is no whole number from {low} to {high}",
                where=name,
                hint="correct or unset it",
            )
    registry = os.environ.get("MLFLOW_REGISTRY_URI")
    if registry and registry != os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError(
            f"models are registered where their runs are tracked, not at {redact_password(registry)}",
            where="MLFLOW_REGISTRY_URI",
            hint="unset it",
        )
    for name, forced in _FORCED.items():
        if forced is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = forced


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`; imports MLflow, which takes seconds.

    A fresh sqlite file is built under a lock and under another name: processes that build one at once,
    or one killed half-way, leave a database that no MLflow can open. An older schema is brought up to date.
    """
    prepare_environment()
    import mlflow

    from snpdeconv.tracking.http_limits import set_limits

    set_limits()
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    path = sqlite_path(uri)
    if path is None:
        return mlflow.MlflowClient(tracking_uri=uri)
    with locked(path.with_name(path.name + ".lock")):
        _build(path)
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)  # the first call makes the default experiment
    return client


def _build(path: Path) -> None:
    from mlflow.db import upgrade

    assert upgrade.callback is not None
    if path.exists():
        # A file that cannot be opened fails here at once; MLflow would try it again for minutes.
        sqlite3.connect(path).close()
        upgrade.callback(sqlite_uri(path))
        return
    half = path.with_name(path.name + ".new")
    half.unlink(missing_ok=True)
    half.touch(mode=0o600)
    upgrade.callback(sqlite_uri(half))
    half.rename(path)


def experiment_id(client: MlflowClient, *, uri: str, name: str) -> str:
    """The experiment called `name`, made if need be; artifacts of a database store go to the home."""
    with locked(home() / "experiments.lock"):
        found = client.get_experiment_by_name(name)
        if found is None:
            location = address(artifacts_dir()) if is_database(uri) else None
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except Exception as error:
                if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                    raise
                # A process with another home was quicker.
                found = client.get_experiment_by_name(name)
                assert found is not None
        if found.lifecycle_stage == "deleted":
            logger.warning("experiment '%s' was deleted in %s; it is restored", name, redact_password(uri))
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)


def error_code(error: BaseException) -> str:
    """MLflow's name of a failure, or an empty string."""
    return str(getattr(error, "error_code", ""))


def is_refusal(error: BaseException) -> bool:
    """Whether the store will never accept the request, however often it is repeated.

    Not to be asked of what `connect` raises, where the same names stand for a wrong address.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    return error_code(error) in _REFUSALS or status == _TOO_LARGE


def reason(error: BaseException) -> str:
    """A failure in one short line, without the store's password; the end of a long one names the cause."""
    lines = redact_password(str(error).strip()).splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= _REASON_CHARS else f"{text[:100]} … {text[103 - _REASON_CHARS :]}"


@contextlib.contextmanager
def answering(uri: str) -> Iterator[MlflowClient]:
    """Connects to a store, and turns the failures of one that does not work into one line for the user.

    The block holds calls to the store and what is read from its answers, nothing else: whatever fails there
    is the store's failure, a `ResourceError`, or an `InputError` where it refuses what the block asks.
    """
    prepare_environment()
    from snpdeconv.tracking.http_limits import command_deadline

    with command_deadline():
        try:
            client = connect(uri)
        except UserError:
            raise
        except Exception as error:
            raise _no_answer(uri, error) from error
        try:
            yield client
        except UserError:
            raise
        except Exception as error:
            if is_refusal(error):
                raise InputError(
                    f"the tracking store refuses this ({reason(error)})",
                    where=redact_password(uri),
                    hint="see what is there in `snpdeconv ui`",
                ) from error
            raise _no_answer(uri, error) from error


def _no_answer(uri: str, error: Exception) -> ResourceError:
    what = "needs a Python package that is missing" if isinstance(error, ImportError) else "does not answer"
    if isinstance(error, ValueError | TypeError | KeyError | AttributeError | RecursionError):
        what = f"answers with nonsense: {type(error).__name__}"
    return ResourceError(
        f"the tracking store {what} ({reason(error)})",
        where=redact_password(uri),
        hint="install it, or name a driver that is there"
        if isinstance(error, ImportError)
        else "start it, or point MLFLOW_TRACKING_URI at the right one",
    )


@contextlib.contextmanager
def transfer(*, most: int = 2**20) -> Iterator[None]:
    """Gives the store minutes instead of seconds to answer, for a file of at most so many bytes."""
    from snpdeconv.tracking.http_limits import transferring

    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    with _transfer_guard, transferring(most=most):
        before = os.environ[name]
        os.environ[name] = str(max(int(before), int(_TRANSFER_TIMEOUT_S)))
        try:
            yield
        finally:
            os.environ[name] = before


@dataclass(frozen=True)
class MlflowUi:
    """Where the UI is.

    Attributes:
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
    """Starts the UI over the tracking store on the loopback address, or says where it is; once it answers."""
    uri = tracking_uri()
    if not is_database(uri):
        return MlflowUi(redact_password(uri).rstrip("/"), None)
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
    import webbrowser

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
        if name in (*_DEFAULTS, *_FORCED) or not name.startswith(("MLFLOW_", "_MLFLOW_"))
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
    import urllib.error
    import urllib.request

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
