"""Brings the events of a spool to the tracking store, in order, each as often as it takes.

Every step may be repeated without a trace: runs and versions are found by their tags, points keep their
times, files are written over. So a kill between sending and noting it down loses and doubles nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snpdeconv.errors import InputError
from snpdeconv.tracking import registry
from snpdeconv.tracking.connection import connect, experiment_id, is_refusal, reason, transfer
from snpdeconv.tracking.spool import Event, Spool

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# What MLflow takes in one call.
_METRICS_PER_CALL = 1000
_PARAMS_PER_CALL = 100


class _Rejected(Exception):
    """An event that no repetition will bring through."""


class Shipper:
    """Sends one spool to one store.

    Args:
        spool: Held by this process.
        uri: Address of the store.

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

        Raises:
            Exception: Whatever the store, the network or MLflow raised; what was sent before it is noted.
        """
        for batch in _batches(self.spool.read(self.sent.offset)):
            if stopped():
                return
            rejected = 0
            # Outside: what fails here is the way to the store, never its verdict on an event.
            client = self._connected()
            try:
                self._apply(client, batch)
            except _Rejected as error:
                rejected = self._reject(batch, str(error))
            except Exception as error:
                if not is_refusal(error):
                    raise
                rejected = self._reject(batch, reason(error))
            self.sent = replace(self.sent, offset=batch[-1].end, rejected=self.sent.rejected + rejected)
            self.spool.commit(self.sent)

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
                self._tags(client, _process_tags(event))
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
        from mlflow.entities import Param, RunTag

        data = event.data
        tags = {**data["tags"], **_process_tags(event), "snpdeconv.key": self.spool.key}
        experiment = experiment_id(client, uri=self.uri, name=data["experiment"])
        found = client.search_runs([experiment], f"tags.`snpdeconv.key` = '{self.spool.key}'", max_results=1)
        if found:
            run = found[0]
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
        path, folder = Path(event.data["path"]), event.data["folder"] or None
        if not path.exists():
            raise _Rejected(f"{path}: is gone and was not sent")
        with transfer():
            if path.is_dir():
                client.log_artifacts(self._run_id, str(path), folder)
            else:
                client.log_artifact(self._run_id, str(path), folder)

    def _register(self, client: MlflowClient, event: Event) -> None:
        data = event.data
        try:
            ref = registry.register_bundle(
                client,
                uri=self.uri,
                run_id=self._run_id,
                key=self.spool.key,
                name=data["name"],
                folder=Path(data["path"]),
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


def _process_tags(event: Event) -> dict[str, str]:
    return {"snpdeconv.host": event.data["host"], "snpdeconv.pid": str(event.data["pid"])}


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Joins metrics that follow each other up to one call's worth; everything else goes alone."""
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
