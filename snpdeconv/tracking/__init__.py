"""Floor 4: the only place that knows MLflow. Training never waits for it.

MLflow is imported inside functions: importing this package stays quick.
"""

from snpdeconv.tracking.artifacts import verify, write_checksums
from snpdeconv.tracking.home import cache_dir, home, tracking_uri
from snpdeconv.tracking.registry import (
    ModelRef,
    RegisteredModel,
    RunInfo,
    check_model_name,
    download,
    get_run_info,
    list_models,
    resolve,
    resolve_run,
)
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.tracking.server import MlflowUi, serve_ui
from snpdeconv.tracking.ship import SpoolReport, SyncReport, sync

__all__ = [
    "MlflowUi",
    "ModelRef",
    "RegisteredModel",
    "RunInfo",
    "SpoolReport",
    "SyncReport",
    "TrackedRun",
    "cache_dir",
    "check_model_name",
    "download",
    "get_run_info",
    "home",
    "list_models",
    "resolve",
    "resolve_run",
    "serve_ui",
    "sync",
    "tracking_uri",
    "verify",
    "write_checksums",
]
