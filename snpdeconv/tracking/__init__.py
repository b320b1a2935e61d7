"""Floor 4: the only place that knows MLflow. Training never waits for it.

MLflow is imported inside functions: importing this package stays quick.
"""

from snpdeconv.tracking.bundle import seal, verify
from snpdeconv.tracking.home import cache_dir, home, tracking_uri
from snpdeconv.tracking.lookup import RunInfo, get_run_info
from snpdeconv.tracking.registry import (
    ModelRef,
    RegisteredModel,
    check_model_name,
    download,
    list_models,
    resolve,
    resolve_run,
)
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.tracking.server import Ui, serve_ui
from snpdeconv.tracking.sync import SpoolReport, SyncReport, sync

__all__ = [
    "ModelRef",
    "RegisteredModel",
    "RunInfo",
    "SpoolReport",
    "SyncReport",
    "TrackedRun",
    "Ui",
    "cache_dir",
    "check_model_name",
    "download",
    "get_run_info",
    "home",
    "list_models",
    "resolve",
    "resolve_run",
    "seal",
    "serve_ui",
    "sync",
    "tracking_uri",
    "verify",
]
