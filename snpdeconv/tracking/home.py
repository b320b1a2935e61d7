"""Where a person's runs live: the home folder, its parts and the address of the tracking store.

Imports nothing of MLflow, so that every command may ask.
"""

from __future__ import annotations

import difflib
import functools
import logging
import os
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from snpdeconv.errors import ConfigError, ResourceError
from snpdeconv.files import others_may_write, private_folder

logger = logging.getLogger(__name__)

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_REMOTE = ("http", "https", *_DATABASES[1:])
_ADDRESS = re.compile(r"https?://[^/].*|(postgresql|mysql|mssql)(\+\w+)?://.+|sqlite:///+[^/].*")


def home() -> Path:
    """The folder of models, runs, caches and unsent results, absolute; made when it is missing.

    It is ``SNPDECONV_HOME``, else ``~/.local/share/snpdeconv``.
    """
    hint = "set SNPDECONV_HOME to a folder that you may write"
    given = os.environ.get("SNPDECONV_HOME") or "~/.local/share/snpdeconv"
    try:
        root = Path(given).expanduser().absolute()
    except RuntimeError as error:  # a user without HOME and without an entry in passwd, as in a container
        raise ResourceError("has no home folder", where="this user", hint=hint) from error
    try:
        private_folder(root)
    except OSError as error:
        raise ResourceError(f"cannot be made ({error.strerror})", where=root, hint=hint) from error
    if not os.access(root, os.W_OK | os.X_OK):
        raise ResourceError("is not writable", where=root, hint=hint)
    _warn_if_shared(root)
    return root


@functools.cache
def _warn_if_shared(root: Path) -> None:
    """Once a process: whoever can write into the home can have jobs run what they like."""
    if others_may_write(root):
        logger.warning(
            "%s: other users may write here, and could run programs as you; chmod go-w %s",
            root,
            shlex.quote(str(root)),
        )


def artifacts_dir() -> Path:
    """Where the embedded store keeps artifacts."""
    return private_folder(home() / "artifacts")


def cache_dir() -> Path:
    """Where imported cohorts and downloaded models are kept; safe to delete."""
    return private_folder(home() / "cache")


def spool_dir() -> Path:
    """Where results wait until the tracking store has them; readable by the owner only.

    An address in a spool may hold a password.
    """
    return private_folder(home() / "spool")


def tracking_uri() -> str:
    """The address of the tracking store: ``MLFLOW_TRACKING_URI``, else an sqlite file in the home.

    A relative sqlite path is made absolute, so that a restart elsewhere finds the same file. MLflow 3 has no
    store of plain files: a folder is refused.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return embedded_uri()
    if not _ADDRESS.fullmatch(uri):
        raise ConfigError(
            f"'{redact_password(uri)}' is a folder, and MLflow has given up its store of plain files"
            if uri.startswith(("file:", ".", "/", "~"))
            else f"'{redact_password(uri)}' is the address of no tracking server and no database",
            where="MLFLOW_TRACKING_URI",
            hint=_right_form(uri),
        )
    path = sqlite_path(uri)
    return uri if path is None else sqlite_uri(path) + uri.partition("?")[1] + uri.partition("?")[2]


def _right_form(uri: str) -> str:
    """What the user may have meant by an address that is none."""
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri):
        return f"did you mean 'http://{uri}'?"
    scheme, _, rest = uri.partition(":")
    close = difflib.get_close_matches(scheme.lower(), _REMOTE, n=1)
    if close and rest.strip("/"):
        return f"did you mean '{redact_password(close[0] + '://' + rest.lstrip('/'))}'?"
    return "unset it for the embedded store, or give http://host:port or sqlite:////path/mlflow.db"


def embedded_uri() -> str:
    """The address of the home's own store, an sqlite file; not for homes on network file systems."""
    return sqlite_uri(home() / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """The address of an sqlite file.

    A path that would mean another one in an address is refused. Escaped it would mean this one, but MLflow
    makes the folder that the escaped one names.
    """
    if "?" in str(path) or unquote(str(path)) != str(path):
        raise ConfigError(
            "MLflow reads '?', and '%' with two digits, in the path of a database as something else",
            where=path,
            hint="set SNPDECONV_HOME to a folder without them, or MLFLOW_TRACKING_URI to a server",
        )
    return f"sqlite:///{path}"


def sqlite_path(uri: str) -> Path | None:
    """The file behind an sqlite address, absolute; None for any other address."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).absolute()


def address(folder: Path) -> str:
    """A folder as MLflow takes it: its path, which MLflow reads as part of an address."""
    return folder.as_uri() if set(str(folder)) & set("%?#") else str(folder)


def is_database(uri: str) -> bool:
    """Whether the address is a database that this process opens itself, with artifacts in the home."""
    return urlsplit(uri).scheme.partition("+")[0] in _DATABASES


def without_folders(text: str) -> str:
    """Text with the names of files alone, for what leaves this machine."""
    return re.sub(r"(?<![\w:/])/(?:[^/\s'\";,()]+/)+", "", text)


def redact_password(uri: str) -> str:
    """The address without user name and password, for messages and logs."""
    return re.sub(r"//[^/\s]*@", "//", uri)
