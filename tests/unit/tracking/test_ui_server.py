from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from snpdeconv.errors import ResourceError
from snpdeconv.tracking import connection as server_module
from snpdeconv.tracking.connection import serve_ui, server_command


def test_with_a_server_the_ui_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@tracking:5000")
    ui = serve_ui(5000)
    assert (ui.url, ui.process) == ("http://tracking:5000", None)


STAND_IN = """
import http.server, os, sys
assert os.environ["MLFLOW_BACKEND_STORE_URI"].endswith("/home/mlflow.db")
assert os.environ["PYTHONSAFEPATH"] == "1" and os.getcwd() == "/"
assert not {"MLFLOW_STATIC_PREFIX", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE"} & os.environ.keys()
assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""


def test_the_server_is_waited_for_and_ends_with_the_command(
    tracking_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(*, port: int, artifacts: Path) -> list[str]:
        real = server_command(port=port, artifacts=artifacts)
        assert "mlflow.db" not in str(real)  # an address may hold a password, and all see a command line
        assert f"127.0.0.1,localhost,127.0.0.1:{port},localhost:{port}" in real
        return [sys.executable, "-c", STAND_IN, str(port)]

    monkeypatch.setattr(server_module, "server_command", stand_in)
    # For servers of the user's own; and the proxy of a cluster does not lead to this machine.
    monkeypatch.setenv("MLFLOW_STATIC_PREFIX", "/elsewhere")
    monkeypatch.setenv("MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "true")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ui = serve_ui(port)
    assert ui.url == f"http://127.0.0.1:{port}"
    assert ui.process is not None
    assert ui.process.poll() is None
    threading.Timer(0.2, ui.process.kill).start()
    ui.wait()
    assert ui.process.poll() is not None
    ui = serve_ui(port)
    ui.stop()
    assert ui.process is not None
    assert ui.process.poll() is not None


def test_a_port_in_use_is_told(tracking_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"port {port}: cannot be used .*--port"):
            serve_ui(port)


def test_a_server_that_dies_is_told_with_its_log(
    tracking_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    monkeypatch.setattr(server_module, "server_command", lambda *_, **__: command)
    with pytest.raises(ResourceError, match=r"home/ui.log: the MLflow server did not start"):
        serve_ui(0)
    assert "no such thing" in (tracking_home / "ui.log").read_text()
