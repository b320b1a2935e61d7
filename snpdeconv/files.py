"""Files of ours: written whole or not at all, by a rename; read if they are what they are said to be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from snpdeconv.errors import ConfigError, DamagedFile, InputError, ResourceError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")

RECORD_LIMIT = 64 * 2**20
"""Bytes that a record of ours never reaches."""
_adapters: dict[Any, TypeAdapter[Any]] = {}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, that takes its place when the block ends well."""
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise ConfigError("is not a regular file", where=path, hint="give the path of a file to write")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(6)}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # as the user's umask says; some libraries write for the owner alone
        sync_to_disk(temporary)
        temporary.replace(path)
        sync_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def private_folder(path: Path) -> Path:
    """A folder for its owner alone, made when it is missing; one that is there stays as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def others_may_write(path: Path) -> bool:
    """Whether group or others may change a file, or what is in a folder."""
    return bool(path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def require_own(path: Path) -> None:
    """Refuses what another user could have written, before something in it is run."""
    problem = "what is in it would run as you"
    if path.stat().st_uid not in (0, os.geteuid()):
        raise ResourceError(
            f"belongs to another user, and {problem}", where=path, hint="give the path of a file of your own"
        )
    if others_may_write(path):
        raise ResourceError(
            f"others may write it, and {problem}", where=path, hint=f"chmod go-w {shlex.quote(str(path))}"
        )


def sync_to_disk(path: Path) -> None:
    """Waits until a file, or the names in a folder, would outlast a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, whole or not at all; a number that is not finite is an error, as JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_whole(path: Path, *, limit: int, hint: str) -> bytes:
    """The bytes of a regular file; never waits for a pipe, and never takes in more than `limit` bytes.

    Raises:
        FileNotFoundError: There is nothing at `path`; a folder on the way may be a file.
        DamagedFile: It is not a regular file, or too large.
        InputError: The system does not let it be read.
    """
    try:
        # Without O_NONBLOCK the opening of a pipe waits for a writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise DamagedFile("is a pipe or a device, not a file", where=path, hint=hint)
            if found.st_size > limit:
                raise DamagedFile(f"holds more than {limit} bytes", where=path, hint=hint)
            data = file.read(min(found.st_size, limit) + 1)
    except IsADirectoryError as error:
        raise DamagedFile("is a folder, not a file", where=path, hint=hint) from error
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint=hint) from error
    if len(data) > limit:
        raise DamagedFile(f"holds more than {limit} bytes", where=path, hint=hint)
    return data


def read_record(path: Path, kind: type[T], *, hint: str, limit: int = RECORD_LIMIT) -> T:
    """A JSON file of ours, as what it was written from: a dataclass, a pydantic model or a type.

    Types are strict; keys that a dataclass does not know (of a later version) are passed over.

    Raises:
        FileNotFoundError: It is not there.
        DamagedFile: It is cut off, altered, too large or no file.
        InputError: The system does not let it be read.
    """
    return parse_record(read_whole(path, limit=limit, hint=hint), kind, where=path, hint=hint)


def parse_record(data: bytes, kind: type[T], *, where: str | Path, hint: str) -> T:
    """One JSON value, such as a line of a file of them, as what it was written from; see `read_record`."""
    import pydantic
    import pydantic_core

    try:
        json.dumps(pydantic_core.from_json(data), allow_nan=False)  # 1e999 is a number, and no finite one
        adapter = _adapters.get(kind) or _adapters.setdefault(kind, pydantic.TypeAdapter(kind))
        value: T = adapter.validate_json(data, strict=True)
    except pydantic_core.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        problem = f"{place}: {first['msg']}" if place else first["msg"]
        raise DamagedFile(f"is damaged ({problem[:200]})", where=where, hint=hint) from error
    except ValueError as error:
        what = "is empty" if not data.strip() else f"is damaged ({str(error)[:200]})"
        raise DamagedFile(what, where=where, hint=hint) from error
    return value
