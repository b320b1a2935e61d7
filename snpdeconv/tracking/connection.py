"""The way to an MLflow store: settings, the embedded database's first use, and what its failures mean."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from snpdeconv.console import stand_in_for_passwd
from snpdeconv.errors import ConfigError, InputError, ResourceError, UserError
from snpdeconv.tracking.home import (
    address,
    artifacts_dir,
    home,
    is_database,
    shown,
    sqlite_path,
    sqlite_uri,
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
OWN_VARIABLES = frozenset((*_DEFAULTS, *_FORCED))
"""Those of MLflow's that `prepare_environment` has looked at."""
_TRANSFER_TIMEOUT_S = "300"
_transfer_guard = threading.Lock()

# What MLflow itself answers to a request that it will never accept. Anything else may pass with time: a
# bare 400, 403 or 404 comes from a proxy whose server is away, or from a login that has run out.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
_TOO_LARGE = 413
_REASON_CHARS = 400


def prepare_environment() -> None:
    """Sets what MLflow reads from the environment; call it before threads start.

    Raises:
        ConfigError: The user has set a number that MLflow cannot work with.
    """
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
            f"models are registered where their runs are tracked, not at {shown(registry)}",
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
            logger.warning("experiment '%s' was deleted in %s; it is restored", name, shown(uri))
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
    lines = shown(str(error).strip()).splitlines()
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= _REASON_CHARS else f"{text[:100]} … {text[103 - _REASON_CHARS :]}"


@contextlib.contextmanager
def answering(uri: str) -> Iterator[MlflowClient]:
    """Connects to a store, and turns the failures of one that does not work into one line for the user.

    The block holds calls to the store and what is read from its answers, nothing else: whatever fails there
    is the store's failure.

    Yields:
        A client of the store at `uri`.

    Raises:
        ResourceError: The store cannot be reached or opened, does not answer in time, or answers with an
            error of its own or with nonsense.
        InputError: It refuses what the block asks, and the block does not say why.
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
                    where=shown(uri),
                    hint="see what is there in `snpdeconv ui`",
                ) from error
            raise _no_answer(uri, error) from error


def _no_answer(uri: str, error: Exception) -> ResourceError:
    what = "needs a Python package that is missing" if isinstance(error, ImportError) else "does not answer"
    if isinstance(error, ValueError | TypeError | KeyError | AttributeError | RecursionError):
        what = f"answers with nonsense: {type(error).__name__}"
    return ResourceError(
        f"the tracking store {what} ({reason(error)})",
        where=shown(uri),
        hint="install it, or name a driver that is there"
        if isinstance(error, ImportError)
        else "start it, or point MLFLOW_TRACKING_URI at the right one",
    )


@contextlib.contextmanager
def transfer(*, most: int = 2**20) -> Iterator[None]:
    """Gives the store minutes instead of seconds to answer, for a file on its way through it.

    Args:
        most: Bytes that it may send.
    """
    from snpdeconv.tracking.http_limits import transferring

    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    with _transfer_guard, transferring(most=most):
        before = os.environ[name]
        os.environ[name] = str(max(int(before), int(_TRANSFER_TIMEOUT_S)))
        try:
            yield
        finally:
            os.environ[name] = before
