"""The folder of one run (who works in it, what it was started with, what is done already) and its inputs.

A run that was interrupted is found again here; a folder never holds two runs, and none that never began.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, FiniteFloat, JsonValue, with_config
from typing_extensions import TypedDict

from snpdeconv.config import RENAMED, Config
from snpdeconv.errors import ConfigError, InputError, ResourceError
from snpdeconv.files import private_folder, read_record, sha256_of, write_json
from snpdeconv.tracking.spool import FileLock

if TYPE_CHECKING:
    from snpdeconv.genetics.samples import HashedSamples, Samples

_STATE = "run.json"
_LOCK = ".lock"

_Metrics = dict[str, FiniteFloat | None]
_Intervals = dict[str, _Metrics]
_Paths = dict[str, str]
_LISTS = ("keep", "remove", "extract", "exclude")
_TABLES = ("phenotypes", "covariates", "blocks", "held_out", *_LISTS)
# Unused, these are no part of a digest: it names a run of the versions before them alike.
_LATER = (*_LISTS, "chrom", "covariate_columns")


class _Ranked(TypedDict):
    tags: dict[str, str]
    paths: _Paths


@with_config(ConfigDict(extra="ignore"))
class _Result(TypedDict):
    run_id: str | None
    model: str
    version: Annotated[int, Field(ge=1)] | None
    test: _Intervals
    paths: _Paths
    validation: NotRequired[_Metrics]
    added: NotRequired[dict[str, JsonValue]]


@with_config(ConfigDict(extra="allow"))
class _State(TypedDict):
    """What stands in run.json; a run that has come further has more of it."""

    key: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    settings: dict[str, str]
    batch_size: NotRequired[Annotated[int, Field(ge=1, le=2**31)]]
    validated: NotRequired[_Metrics]
    micro_batch_size: NotRequired[Annotated[int, Field(ge=1, le=2**31)] | None]
    tested: NotRequired[dict[str, JsonValue]]
    ranked: NotRequired[_Ranked]
    result: NotRequired[_Result]


def hold(folder: Path) -> FileLock:
    """Takes a folder that is there for this process alone, until the lock that it gives is released."""
    lock = FileLock(folder / _LOCK, mode=0o666)  # less what the user's umask takes: a folder may be a group's
    try:
        ours = lock.acquire()
    except OSError as error:
        raise ResourceError(
            f"cannot be written ({error.strerror})", where=folder, hint="choose another --out"
        ) from error
    if not ours:
        raise ResourceError(
            "another process works in this folder", where=folder, hint="wait for it or choose another --out"
        )
    return lock


class RunFolder:
    """A run's folder, held by this process from `__enter__` to `__exit__`.

    `settings` name the run: its configuration and inputs, as text by key.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, str]) -> None:
        self.path = path
        self.settings = dict(settings)
        self.state: dict[str, Any] = {}
        self._is_new = False

    def __enter__(self) -> RunFolder:
        """Takes the folder."""
        self._refuse_strangers()
        self._is_new = not self.path.exists()
        try:
            private_folder(self.path)
        except OSError as error:
            raise ResourceError(
                f"cannot be written ({error.strerror})", where=self.path, hint="choose another --out"
            ) from error
        self._lock = hold(self.path)
        try:
            self._refuse_strangers()  # again: what was there before the lock may be another process's by now
            self.state = self._read() or {"key": uuid.uuid4().hex, "settings": self.settings}
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        was_begun = not self._is_new or (self.path / _STATE).exists()
        try:
            if not was_begun:
                (self.path / _LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    self.path.rmdir()
        finally:
            self._lock.release()
        if not was_begun:
            with contextlib.suppress(OSError):  # NFS keeps an open file that was unlinked until it is closed
                self.path.rmdir()

    def begin(self, **settings: str) -> None:
        """Makes the folder a run's, once its input is known to be good; `settings` name it too."""
        self._compare(self.state["settings"], self.settings | settings, keys=settings)
        self.state["settings"] = self.settings | settings
        self.remember()

    @property
    def key(self) -> str:
        """The name of the run that its tracking goes by."""
        return str(self.state["key"])

    def remember(self, **facts: Any) -> None:
        """Keeps facts that a restart must not find out anew."""
        self.state |= facts
        write_json(self.path / _STATE, self.state)

    def _read(self) -> dict[str, Any] | None:
        try:
            state = read_record(self.path / _STATE, _State, hint="choose another --out")
        except FileNotFoundError:
            return None
        settings = {RENAMED.get(key, key): value for key, value in state["settings"].items()}
        return {**state, "settings": settings}

    def _refuse_strangers(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError("is a file", where=self.path, hint="choose another --out")
        state = self._read()
        if state is None:
            names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
            # A dot-file is our lock, or what a kill left of a file that was being written.
            if any(not name.startswith(".") for name in names):
                raise ConfigError(
                    "holds other files and no run", where=self.path, hint="choose another --out"
                )
            return
        self._compare(state["settings"], self.settings, keys=self.settings)

    def _compare(self, before: Mapping[str, str], now: Mapping[str, str], *, keys: Iterable[str]) -> None:
        for key in keys:
            if key in before and before[key] != now[key]:
                raise ConfigError(
                    f"holds a run with {key} = {before[key]}, and now it is {now[key]}",
                    where=self.path,
                    hint="choose another --out, or the same settings to resume it",
                )


def run_settings(config: Config, *, model_name: str) -> dict[str, str]:
    """What tells one run from another, besides its input: every setting and the model's name."""
    return {**config.flat(), "model": model_name}


@dataclass(frozen=True)
class Inputs:
    """Where a run's cohort and tables are.

    Attributes:
        genotypes: A .bed, .pgen or VCF file, a PLINK prefix, or an imported folder.
        phenotypes: Table with IID (and #FID) and the trait.
        trait: The trait's column.
        covariates: Table of covariates.
        blocks: Table of LD blocks or haploblocks.
        groups: Column of the phenotype table that names families or other groups.
        held_out: Table of the samples to test on, or their hashes; drawn from the cohort where there is none.
        covariate_columns: Those of the covariate table that are used, with commas; all by default.
        keep: List of the only samples used.
        remove: List of samples left out.
        extract: List of the only variants used.
        exclude: List of variants left out.
        chrom: The only chromosomes used, such as ``1-4,22,X``.
    """

    genotypes: str
    phenotypes: str
    trait: str
    covariates: str | None = None
    blocks: str | None = None
    groups: str | None = None
    held_out: str | None = None
    covariate_columns: str | None = None
    keep: str | None = None
    remove: str | None = None
    extract: str | None = None
    exclude: str | None = None
    chrom: str | None = None

    @classmethod
    def from_paths(
        cls,
        *,
        genotypes: str | Path,
        phenotypes: str | Path,
        trait: str,
        **others: str | Path | None,
    ) -> Inputs:
        """Resolves the paths and checks that the tables are there; `others` are the further fields."""
        given = {"phenotypes": phenotypes, **others}
        if given.get("covariate_columns") is not None and given.get("covariates") is None:
            raise ConfigError("there is no table", where="--covariate-columns", hint="give --covariates too")
        for name in _TABLES:
            table = given.get(name)
            if table is not None and not Path(table).exists():
                raise InputError("no such file", where=table, hint="check the path")
            if table is not None and not Path(table).is_file():
                raise InputError("is not a regular file", where=table, hint="give the path of a table")
        values = {
            name: str(Path(value).absolute()) if name in _TABLES else str(value)
            for name, value in given.items()
            if value is not None
        }
        return cls(genotypes=str(Path(genotypes).absolute()), trait=trait, **values)

    def table_digests(self) -> dict[str, str]:
        """SHA-256 of each table that there is."""
        tables = {name: getattr(self, name) for name in _TABLES}
        return {name: sha256_of(Path(path)) for name, path in tables.items() if path is not None}

    def digest(self, *, genotypes_digest: str) -> str:
        """Names what the files hold, not where they lie."""
        content = {k: v for k, v in asdict(self).items() if v is not None or k not in _LATER}
        content |= {"genotypes": genotypes_digest, **self.table_digests()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_held_out(path: Path) -> Samples | HashedSamples:
    """The samples to test on: a table of IDs, or the hashes that a model carries."""
    # Not before: it loads pandas, which `status` and `submit` do without.
    from snpdeconv.genetics.samples import HashedSamples, Samples

    if path.suffix != ".json":
        return Samples.read_tsv(path)
    return read_record(path, HashedSamples, hint="give a table with the columns #FID IID")
