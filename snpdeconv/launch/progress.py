"""How far a run is, from what it has said: its folder and its spool. Asks no server."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snpdeconv.tracking.home import shown, spool_dir
from snpdeconv.tracking.spool import read_events

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


def read_progress(out: Path) -> Progress:
    """How far the run in a folder is.

    Args:
        out: The run's folder; it need not be there yet.
    """
    state = _json(out / "run.json")
    if not state:
        return Progress()
    folder = spool_folder(str(state["key"]))
    if folder is None:
        return Progress(key=str(state["key"]))
    epoch_steps: set[int] = set()
    metrics: dict[str, float] = {}
    step, status = 0, None
    with contextlib.suppress(FileNotFoundError):  # it is being moved, sent whole
        for event in read_events(folder / "events.jsonl"):
            if event.kind == "metrics":
                values = event.data["values"]
                metrics |= {name: values[name] for name in _TOLD if name in values}
                if _EPOCH in values:
                    epoch_steps.add(event.data["step"])
                if any(name.startswith("train/") for name in values):
                    step = max(step, event.data["step"])
            elif event.kind in ("create", "open"):
                status = None
            elif event.kind == "status":
                status = str(event.data["status"])
    sent = _json(folder / "sent.json")
    run_id = sent.get("run_id")
    return Progress(
        key=str(state["key"]),
        run_id=run_id,
        url=None if run_id is None else run_url(str(sent["uri"]), run_id),
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


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content
