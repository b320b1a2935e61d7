"""Finds a run in the tracking store: its facts and its files. Changes nothing there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snpdeconv.errors import InputError, nearest
from snpdeconv.tracking.artifacts import of_run
from snpdeconv.tracking.bundle import MOST_BYTES
from snpdeconv.tracking.connection import answering, is_refusal, transfer
from snpdeconv.tracking.home import shown, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class RunInfo:
    """What the store knows of a run.

    Attributes:
        run_id: MLflow's name of the run.
        name: The run's name for people.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: Facts.
        params: What the run was asked to do.
        metrics: The last value of each metric.
        uri: Address of the store.
    """

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    uri: str

    def download(self, path: str, *, into: Path) -> Path:
        """Brings an artifact of the run here.

        Args:
            path: File or folder among the run's artifacts.
            into: Local folder, made if need be.

        Returns:
            The local file or folder.

        Raises:
            InputError: The run has no such artifact; names the nearest.
            ResourceError: The store does not answer.
        """
        into.mkdir(parents=True, exist_ok=True)
        with answering(self.uri) as client:
            _, repository = of_run(client, uri=self.uri, run_id=self.run_id)
            folder, _, _ = path.rpartition("/")
            there = [entry.path for entry in repository.list_artifacts(folder or None)]
            if path not in there:
                mend = nearest(path, there) if there else "it has none there"
                raise InputError(f"run {self.run_id} has no such artifact", where=path, mend=mend)
            with transfer(most=MOST_BYTES):
                return Path(repository.download_artifacts(path, str(into)))


def get_run_info(run_id: str) -> RunInfo:
    """Finds a run by MLflow's name of it.

    Raises:
        InputError: There is no such run in the store.
        ResourceError: The store does not answer.
    """
    uri = tracking_uri()
    with answering(uri) as client:
        try:
            run = client.get_run(run_id)
            return _info(run, run_id=run_id, uri=uri)
        except Exception as error:
            if not is_refusal(error):
                raise
            raise InputError(
                f"there is no run '{run_id}' in {shown(uri)}",
                where="run",
                mend="copy the run ID from `snpdeconv train --json` or from `snpdeconv ui`",
            ) from error


def _info(run: Run, *, run_id: str, uri: str) -> RunInfo:
    if run.info.run_id != run_id:
        raise ValueError(f"tells of run {run.info.run_id[:100]!r}")
    return RunInfo(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        uri=uri,
    )
