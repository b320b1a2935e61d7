"""Files on their way to a store and back: their checksums, where they may lie, and what is taken from there.

An address comes from the server, where others may have written it: it is followed to the server itself, to
cloud stores and to folders that are plainly a run's, and never with a login to another host.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from snpdeconv.errors import InputError
from snpdeconv.files import read_whole, sha256_of
from snpdeconv.tracking.connection import error_code, is_refusal, transfer
from snpdeconv.tracking.home import address, artifacts_dir, embedded_uri, is_database, redact_password

if TYPE_CHECKING:
    from mlflow import MlflowClient


CHECKSUMS = "SHA256SUMS"
_COPY_HINT = "delete a cached copy to fetch it anew, or train the model again"
MOST_BYTES = 2 * 2**30
"""Bytes that the files of a model may have together; one of a million SNPs has 100 million."""
_MOST_FILES = 100
_LINE = re.compile(r"(?P<digest>[0-9a-f]{64})  (?P<name>[^\x00-\x1f\\]{1,300})")
_CLOUD = ("s3", "gs", "wasb", "wasbs", "abfs", "abfss", "hdfs", "viewfs", "dbfs", "ftp", "sftp")
_SERVER_HINT = "ask whoever runs the server or registered the model"
_SUMS_BYTES = 2**20


def write_checksums(folder: Path) -> str:
    """Writes SHA256SUMS of all files of a folder; gives the folder's digest, the SHA-256 of that file."""
    text = _checksums(folder)
    sums = folder / CHECKSUMS
    # The sender may be checking a folder that is listed again: it must never find a half-written list.
    if not sums.is_file() or sums.read_bytes() != text.encode():
        sums.write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(folder: Path, *, digest: str) -> None:
    """Checks that a folder holds exactly the files, byte for byte, whose digest `write_checksums` gave."""
    sums = folder / CHECKSUMS
    text = read_whole(sums, limit=2**20, hint=_COPY_HINT) if sums.is_file() else b""
    of_sums = hashlib.sha256(text).hexdigest()
    listed = _table(text.decode(errors="replace"), where=sums)
    found = _table(_checksums(folder), where=sums)
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            what = (
                "is missing"
                if name not in found
                else "is not listed"
                if name not in listed
                else "has changed"
            )
            raise InputError(
                f"{what}: SHA-256 {found.get(name, 'none')}, in {CHECKSUMS} {listed.get(name, 'none')}",
                where=folder / name,
                hint=_COPY_HINT,
            )
    if of_sums != digest:
        raise _another(sums, digest)


def listed(text: bytes, *, where: str, digest: str) -> list[str]:
    """The names in a list of checksums that came from a store; refuses what is no file of a model."""
    if hashlib.sha256(text).hexdigest() != digest:
        raise _another(where, digest)
    return list(_table(text.decode(errors="replace"), where=where))


def _another(where: str | Path, digest: str) -> InputError:
    return InputError(
        f"is not the one that was registered (digest {digest[:12]})", where=where, hint=_COPY_HINT
    )


def _checksums(folder: Path) -> str:
    return "".join(
        f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / CHECKSUMS
    )


def _table(text: str, *, where: str | Path) -> dict[str, str]:
    table = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None or any(part in ("", ".", "..") for part in match["name"].split("/")):
            raise InputError(f"is no list of checksums ({line[:100]!r})", where=where, hint=_COPY_HINT)
        table[match["name"]] = match["digest"]
    if len(table) > _MOST_FILES:
        raise InputError(f"lists {len(table)} files", where=where, hint=_COPY_HINT)
    return table


def upload(client: MlflowClient, path: Path, *, uri: str, run_id: str, folder: str | None) -> str:
    """Copies a file, or the files of a folder, to a run's artifacts; gives the address of these."""
    place, repository = of_run(client, uri=uri, run_id=run_id)
    with transfer():
        (repository.log_artifacts if path.is_dir() else repository.log_artifact)(str(path), folder)
    return place


def of_run(client: MlflowClient, *, uri: str, run_id: str) -> tuple[str, Any]:
    """Address of a run's artifacts, and MLflow's repository of them."""
    place = str(client.get_run(run_id).info.artifact_uri)
    local = _local(place, uri=uri, run_id=run_id)
    if local is not None and not (local.name == "artifacts" and run_id in local.parts):
        raise InputError(
            f"is no run's folder of artifacts ({place[:200]})", where=redact_password(uri), hint=_SERVER_HINT
        )
    return place, _repository(place if local is None else address(local), uri=uri)


def fetch_checked(source: str, *, uri: str, run_id: str | None, digest: str, into: Path) -> None:
    """Copies a folder here: its list of files, which the digest vouches for, and what that names."""
    local = _local(source, uri=uri, run_id=run_id)
    repository = None if local is not None else _repository(source, uri=uri)

    def fetch(name: str, *, most: int) -> Path:
        place = into / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if local is not None:
            _copy(local / name, place)
        else:
            assert repository is not None
            with transfer(most=most):
                _download(repository, name, place)
        return place

    text = read_whole(fetch(CHECKSUMS, most=_SUMS_BYTES), limit=_SUMS_BYTES, hint=_COPY_HINT)
    for name in listed(text, where=f"{source}/{CHECKSUMS}", digest=digest):
        fetch(name, most=MOST_BYTES if name.endswith(".safetensors") else MOST_BYTES // 8)


def check_place(place: str, *, uri: str) -> None:
    """Refuses an address of files that would take a login, or us, where it has no business."""
    try:
        there, store = urlsplit(place), urlsplit(uri)
    except ValueError as error:
        raise InputError(
            f"names no place of files ({place[:200]!r})", where=redact_password(uri), hint=_SERVER_HINT
        ) from error
    if there.scheme in ("", "file") or there.scheme in _CLOUD:
        return
    host = there.netloc.rpartition("@")[2]
    if there.scheme in ("mlflow-artifacts", "http", "https") and (
        host == store.netloc.rpartition("@")[2] or (not host and there.scheme == "mlflow-artifacts")
    ):
        return
    raise InputError(
        f"keeps the files at another host or by an unknown way ({place[:200]})",
        where=redact_password(uri),
        hint=_SERVER_HINT,
    )


def is_missing(error: BaseException) -> bool:
    """Whether files are not there, as the store or the file system tells it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return (
        isinstance(error, FileNotFoundError)
        or status == 404
        or is_refusal(error)
        or error_code(error) == "RESOURCE_DOES_NOT_EXIST"
    )


def _local(place: str, *, uri: str, run_id: str | None) -> Path | None:
    """The folder behind an address on this machine; None for any other.

    A home that was moved, or is seen from inside and outside of a container, has its runs below its own path
    of the moment, whatever path the store remembers.
    """
    check_place(place, uri=uri)
    parts = urlsplit(place)
    if parts.scheme not in ("", "file"):
        return None
    path = Path(unquote(parts.path) if parts.scheme else place)
    if is_database(uri) and run_id is not None and run_id in path.parts:
        at = path.parts.index(run_id)
        root, ours = Path(*path.parts[:at]), artifacts_dir().joinpath(*path.parts[at:])
        is_a_homes = root.name == artifacts_dir().name
        if (
            is_a_homes
            and (uri == embedded_uri() or not root.exists())
            and (ours.exists() or not path.exists())
        ):
            return ours
    return path


def _repository(place: str, *, uri: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(place, tracking_uri=uri)


def _download(repository: Any, name: str, place: Path) -> None:
    # Not by `download_artifacts`, which asks the server which files there are, and does so without end.
    repository._download_file(name, str(place))


def _copy(source: Path, place: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(2, os.strerror(2), str(source))
    if not source.is_file():
        raise InputError("is no regular file", where=source, hint=_SERVER_HINT)
    shutil.copyfile(source, place)
