"""How far a run is, from what it has said: its folder and its spool. Asks no server."""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path

from snpdeconv.errors import InputError
from snpdeconv.files import T, read_record
from snpdeconv.tracking.home import shown, spool_dir
from snpdeconv.tracking.spool import read_events

logger = logging.getLogger(__name__)

_EPOCH = "train/epoch_lr"
_TOLD = ("val/loss", "val/auroc", "val/r2", "test/auroc", "test/r2")


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        key: The run's key in the spool; "" before it has begun.
        run_id: MLflow's name of it; None until the server gave one.
        url: The run's page, where runs are tracked by a server.
        status: FINISHED, FAILED or KILLED; None while it goes on, or after it died without a word.
        epochs: Epochs that are done.
        step: The last step that was told.
        metrics: The last values of the main metrics.
    """

    key: str = ""
    run_id: str | None = None
    url: str | None = None
    status: str | None = None
    epochs: int = 0
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    key: str = ""


@dataclass(frozen=True)
class _Sent:
    run_id: str | None = None
    uri: str = ""


def read_progress(out: Path) -> Progress:
    """How far the run in a folder is.

    Args:
        out: The run's folder; it need not be there yet.
    """
    key = _read(out / "run.json", _State(), mend=f"another --out than {out} begins anew").key
    if not re.fullmatch(r"[0-9a-f]{32}", key):
        return Progress()
    folder = spool_folder(key)
    if folder is None:
        return Progress(key=key)
    epoch_steps: set[int] = set()
    metrics: dict[str, float] = {}
    step, status = 0, None
    with contextlib.suppress(FileNotFoundError):  # it is being moved, sent whole
        for event in read_events(folder / "events.jsonl"):
            if event.kind == "metrics":
                values, now = event.data.get("values"), event.data.get("step")
                if not isinstance(values, dict) or not isinstance(now, int):
                    continue  # damaged
                metrics |= {k: v for k, v in values.items() if k in _TOLD and isinstance(v, float | int)}
                if _EPOCH in values:
                    epoch_steps.add(now)
                if any(name.startswith("train/") for name in values):
                    step = max(step, now)
            elif event.kind in ("create", "open"):
                status = None
            elif event.kind == "status":
                status = str(event.data.get("status"))
    sent = _read(folder / "sent.json", _Sent(), mend="`snpdeconv sync` sends the run again")
    return Progress(
        key=key,
        run_id=sent.run_id,
        url=None if sent.run_id is None else run_url(sent.uri, sent.run_id),
        status=status,
        epochs=len(epoch_steps),
        step=step,
        metrics=metrics,
    )


def run_url(uri: str, run_id: str) -> str | None:
    """The page of a run; None where no server shows it."""
    return f"{shown(uri).rstrip('/')}/#/runs/{run_id}" if uri.startswith("http") else None


def spool_folder(key: str) -> Path | None:
    """Where a run's spool is, sent or not."""
    places = (spool_dir() / key, spool_dir() / "done" / key)
    return next((place for place in places if (place / "events.jsonl").exists()), None)


def _read(path: Path, otherwise: T, *, mend: str) -> T:
    """What a file says; `otherwise` if it is not there, or is damaged, with a word."""
    with contextlib.suppress(FileNotFoundError):
        try:
            return read_record(path, type(otherwise), mend=mend)
        except InputError as error:
            logger.warning("%s", error)
    return otherwise
