"""Brings the events of a spool to the tracking store, in order, each as often as it takes.

Every step may be repeated without a trace: runs and versions are found by their tags, points keep their
times, files are written over. So a kill between sending and noting it down loses and doubles nothing. `sync`
does it for all spools of a home.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from snpdeconv.errors import InputError
from snpdeconv.tracking import artifacts, registry
from snpdeconv.tracking.connection import connect, experiment_id, is_refusal, prepare_environment, reason
from snpdeconv.tracking.home import embedded_uri, home, redact_password, spool_dir
from snpdeconv.tracking.spool import Event, History, Sent, Spool, peek

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)


# What MLflow takes in one call.
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100
# A living run writes every ten seconds; locks may not reach from one host to another.
_SILENCE_S = 600.0
# A store that failed so many runs in a row is not asked again.
_PATIENCE = 2


class _Rejected(Exception):
    """An event that no repetition will bring through."""


class _RunIsGone(Exception):
    """The run is no longer in the store."""


class Shipper:
    """Sends one spool, held by this process, to one store.

    Attributes:
        sent: How far the store has the spool.
        registered: The versions made from this spool by this object, by model name.
        problems: One line for each event that was refused for good.
    """

    def __init__(self, spool: Spool, *, uri: str) -> None:
        self.spool = spool
        self.uri = uri
        self.sent = spool.sent(uri)
        self.registered: dict[str, registry.ModelRef] = {}
        self.problems: list[str] = []
        self._client: MlflowClient | None = None

    def ship(self, *, stopped: Callable[[], bool] = lambda: False) -> None:
        """Sends all that is in the spool and not sent yet; returns early once `stopped` says so.

        Raises whatever the store, the network or MLflow raised; what was sent before it is noted.
        """
        made_anew = False
        while True:
            try:
                self._ship(stopped)
            except _RunIsGone:
                if made_anew:
                    raise ConnectionError("the run is deleted as soon as it is made") from None
                # All that it has said is on disk: it is made once more, from its first word.
                logger.warning(
                    "run %s was deleted for good in %s; it is made anew",
                    self.spool.key,
                    redact_password(self.uri),
                )
                made_anew = True
                self.sent = Sent(self.uri)
                self.spool.commit(self.sent)
            else:
                return

    def _ship(self, stopped: Callable[[], bool]) -> None:
        for batch in _batches(self.spool.read(self.sent.offset)):
            if stopped():
                return
            rejected = 0
            # Outside: what fails here is the way to the store, never its verdict on an event.
            client = self._connected()
            try:
                self._apply_or_revive(client, batch)
            except _Rejected as error:
                rejected = self._reject(batch, str(error))
            except Exception as error:
                if not is_refusal(error):
                    raise
                rejected = self._reject(batch, reason(error))
            self.sent = replace(self.sent, offset=batch[-1].end, rejected=self.sent.rejected + rejected)
            self.spool.commit(self.sent)

    def _apply_or_revive(self, client: MlflowClient, batch: list[Event]) -> None:
        """Sends a batch; a run that somebody deleted in the page is brought back, so that nothing is lost."""
        if batch[0].kind in ("register", "status") and self.sent.run_id is not None:
            self._revive(client)  # MLflow takes these of a deleted run too
        try:
            self._apply(client, batch)
        except Exception as error:
            if not is_refusal(error) or self.sent.run_id is None or not self._revive(client):
                raise
            self._apply(client, batch)

    def _revive(self, client: MlflowClient) -> bool:
        """Brings the run back from the bin, and its experiment; says whether it was there."""
        try:
            run = client.get_run(self._run_id)
        except Exception as error:
            if not is_refusal(error):
                raise
            raise _RunIsGone from error
        if run.info.lifecycle_stage != "deleted":
            return False
        logger.warning("run %s was deleted in %s; it is restored", self._run_id, redact_password(self.uri))
        if client.get_experiment(run.info.experiment_id).lifecycle_stage == "deleted":
            client.restore_experiment(run.info.experiment_id)
        client.restore_run(self._run_id)
        return True

    def _connected(self) -> MlflowClient:
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    def _apply(self, client: MlflowClient, batch: list[Event]) -> None:
        event = batch[0]
        if event.kind == "create":
            self.sent = replace(self.sent, run_id=self._create(client, event))
            return
        if self.sent.run_id is None:
            raise _Rejected("the run itself could not be made")
        match event.kind:
            case "open":
                client.update_run(self.sent.run_id, status="RUNNING")
            case "metrics":
                self._metrics(client, batch)
            case "tags":
                self._tags(client, event.data["tags"])
            case "artifact":
                self._artifact(client, event)
            case "register":
                self._register(client, event)
            case "status":
                client.set_terminated(self.sent.run_id, event.data["status"], end_time=event.time_ms)
            case _:
                raise _Rejected("the line is damaged")

    def _create(self, client: MlflowClient, event: Event) -> str:
        from mlflow.entities import Param, RunTag, ViewType

        data = event.data
        tags = {**data["tags"], "snpdeconv.key": self.spool.key}
        experiment = experiment_id(client, uri=self.uri, name=data["experiment"])
        query = f"tags.`snpdeconv.key` = '{self.spool.key}'"
        found = client.search_runs([experiment], query, run_view_type=ViewType.ALL, max_results=1)
        if found:
            run = found[0]
            if run.info.lifecycle_stage == "deleted":
                client.restore_run(run.info.run_id)
            client.log_batch(run.info.run_id, tags=[RunTag(*item) for item in tags.items()], synchronous=True)
        else:
            run = client.create_run(experiment, start_time=event.time_ms, tags=tags, run_name=data["name"])
        # MLflow refuses to change a parameter: what stands, stands.
        params = [Param(*item) for item in data["params"].items() if item[0] not in run.data.params]
        for chunk in _chunks(params, _PARAMS_PER_CALL):
            client.log_batch(run.info.run_id, params=chunk, synchronous=True)
        return str(run.info.run_id)

    def _metrics(self, client: MlflowClient, batch: list[Event]) -> None:
        from mlflow.entities import Metric

        points = [
            Metric(name, value, event.time_ms, event.data["step"])
            for event in batch
            for name, value in event.data["values"].items()
        ]
        for chunk in _chunks(points, _METRICS_PER_CALL):
            client.log_batch(self._run_id, metrics=chunk, synchronous=True)

    def _tags(self, client: MlflowClient, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        for chunk in _chunks([RunTag(*item) for item in tags.items()], _PARAMS_PER_CALL):
            client.log_batch(self._run_id, tags=chunk, synchronous=True)

    def _artifact(self, client: MlflowClient, event: Event) -> None:
        path = self._here(event)
        if not path.exists():
            raise _Rejected(f"{path}: is gone and was not sent")
        try:
            artifacts.upload(
                client, path, uri=self.uri, run_id=self._run_id, folder=event.data["folder"] or None
            )
        except InputError as error:
            raise _Rejected(str(error)) from error

    def _here(self, event: Event) -> Path:
        """The file or folder of an event, where it lies by its own path or beside the home."""
        path = Path(event.data["path"])
        beside = (
            Path(os.path.normpath(home() / event.data["from_home"])) if "from_home" in event.data else path
        )
        return path if path.exists() else beside

    def _register(self, client: MlflowClient, event: Event) -> None:
        data = event.data
        try:
            registry.check_model_name(data["name"])
            ref = registry.register_bundle(
                client,
                uri=self.uri,
                run_id=self._run_id,
                key=self.spool.key,
                name=data["name"],
                folder=self._here(event),
                digest=data["digest"],
                tags=data["tags"],
                champion_if_none=data["champion_if_none"],
            )
        except InputError as error:
            raise _Rejected(f"model '{data['name']}' was not registered: {error}") from error
        self.registered[ref.name] = ref

    @property
    def _run_id(self) -> str:
        assert self.sent.run_id is not None
        return self.sent.run_id

    def _reject(self, batch: list[Event], why: str) -> int:
        for event in batch:
            self.spool.reject(event, reason=why)
        if why not in self.problems:
            self.problems.append(why)
            logger.warning("run %s: not accepted (%s): %s", self.spool.key, batch[0].kind, why)
        return len(batch)


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Joins metrics that follow each other up to one call's worth; everything else is alone."""
    batch: list[Event] = []
    points = 0
    for event in events:
        if batch and (event.kind != "metrics" or points >= _METRICS_PER_CALL):
            yield batch
            batch, points = [], 0
        if event.kind == "metrics":
            batch.append(event)
            points += len(event.data["values"])
        else:
            yield [event]
    if batch:
        yield batch


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@dataclass(frozen=True)
class SpoolReport:
    """What became of one spool.

    Attributes:
        outcome: sent (the store has all of it), incomplete (all but the problems, for good), skipped (still
            alive, or without a word) or failed (try again later).
        note: Why, in one line.
        problems: Events that the store refused for good, or files that are gone.
    """

    key: str
    name: str
    outcome: Literal["sent", "incomplete", "skipped", "failed"]
    note: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class SyncReport:
    """What became of all spools of a home."""

    spools: tuple[SpoolReport, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to send but what living runs send themselves."""
        return all(spool.outcome != "failed" for spool in self.spools)


def sync() -> SyncReport:
    """Sends all unsent results of the home to the stores they were meant for, oldest run first.

    Runs whose process ended without a word are marked KILLED; a restart brings them back to RUNNING.
    """
    prepare_environment()
    root = spool_dir()
    histories: dict[str, History] = {}
    damaged: list[SpoolReport] = []
    for path in root.glob("*/events.jsonl"):
        key = path.parent.name
        try:
            histories[key] = peek(path)
        except FileNotFoundError:  # its own process has just sent it whole
            continue
        except (OSError, InputError) as error:
            damaged.append(SpoolReport(key, "?", "failed", f"cannot be read ({reason(error)})"))
    failures: Counter[str] = Counter()
    oldest_first = sorted(histories, key=lambda key: histories[key].created_ms)
    sent = [_sync_one(Spool(root, key), histories[key], failures) for key in oldest_first]
    return SyncReport((*sent, *damaged))


def _sync_one(spool: Spool, history: History, failures: Counter[str]) -> SpoolReport:
    name = str(history.created.get("name", "?"))
    if next(spool.read(), None) is None:
        return SpoolReport(
            spool.key, name, "skipped", "its process has said nothing, or ended before it could"
        )
    if not history.created:
        note = f"its first line is damaged, so that the run is unknown; remove {spool.folder}"
        return SpoolReport(spool.key, name, "failed", note)
    if note := _may_live_elsewhere(history):
        return SpoolReport(spool.key, name, "skipped", note)
    if not spool.acquire():
        process = f"process {history.opened['pid']} on {history.opened['host']}"
        return SpoolReport(spool.key, name, "skipped", f"{process} sends it")
    history = spool.history()
    note = "" if history.status else "its process ended without a word: marked KILLED"
    shipper = Shipper(spool, uri=history.opened["uri"] or embedded_uri())
    store = redact_password(shipper.uri)
    try:
        if history.status is None:
            spool.append("status", {"status": "KILLED"}, time_ms=history.last_ms)
        if failures[store] >= _PATIENCE:
            raise ConnectionError("given up after the runs before this one")
        shipper.ship()
    except Exception as error:
        # Whatever it is, the other runs must get their turn.
        logger.debug("sync of %s failed", spool.key, exc_info=error)
        failures[store] += 1
        spool.release()
        note = f"{store} does not take it ({reason(error)})"
        return SpoolReport(spool.key, name, "failed", note, tuple(shipper.problems))
    failures[store] = 0
    refused, lost = shipper.sent.rejected, spool.lost()
    spool.archive()
    if not refused and not lost:
        return SpoolReport(spool.key, name, "sent", note)
    told = f"{refused} of what it said could not be sent, for good"
    if lost:
        told = f"{lost} of what it said were lost, as its disk was full" + (f"; {told}" if refused else "")
    note = f"{note}; {told}" if note else told
    return SpoolReport(spool.key, name, "incomplete", note, tuple(shipper.problems))


def _may_live_elsewhere(history: History) -> str:
    host = history.opened["host"]
    silent_s = time.time() - history.last_ms / 1000
    if history.status is not None or host == socket.gethostname() or silent_s >= _SILENCE_S:
        return ""
    return f"its process on {host} wrote {silent_s:.0f} s ago and may be alive"
