"""A tracking server that misbehaves: right answers by default, and any of them may be replaced."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUN = "0123456789abcdef0123456789abcdef"
API = "/api/2.0/mlflow/"
FILES = "/api/2.0/mlflow-artifacts/artifacts"
Answer = Callable[["Handler"], None]


@dataclass
class Hostile:
    """What it answers, by the end of the path; what it was asked and with which login."""

    url: str = ""
    answers: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    logins: list[str | None] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of the sealed model that it holds."""
        return hashlib.sha256(self.files["SHA256SUMS"]).hexdigest()

    def hold(self, files: dict[str, bytes]) -> None:
        """Holds a sealed model."""
        lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items())]
        self.files = {**files, "SHA256SUMS": "".join(lines).encode()}

    def version(self, **changes: Any) -> dict[str, Any]:
        """Version 1 of the model m."""
        tags = [{"key": "snpdeconv.sha256", "value": self.digest}]
        whole = {
            "name": "m", "version": "1", "run_id": RUN,
            "source": f"mlflow-artifacts:/1/{RUN}/artifacts/model",
            "creation_timestamp": 1, "status": "READY", "tags": tags,
        }  # fmt: skip
        return whole | changes

    def answer(self, path: str) -> Any:
        """What a right server says."""
        model = {"name": "m", "aliases": [{"alias": "champion", "version": "1"}]}
        info = {
            "run_id": RUN, "run_uuid": RUN, "experiment_id": "1", "status": "FINISHED", "run_name": "r",
            "artifact_uri": f"mlflow-artifacts:/1/{RUN}/artifacts", "lifecycle_stage": "active",
            "start_time": 1,
        }  # fmt: skip
        experiment = {"experiment_id": "1", "name": "e", "lifecycle_stage": "active", "artifact_location": ""}
        return {
            "registered-models/get": {"registered_model": model},
            "registered-models/search": {"registered_models": [model]},
            "registered-models/create": {"registered_model": model},
            "model-versions/get": {"model_version": self.version()},
            "model-versions/create": {"model_version": self.version()},
            "model-versions/search": {"model_versions": [self.version()]},
            "runs/get": {"run": {"info": info, "data": {}}},
            "runs/create": {"run": {"info": info, "data": {}}},
            "runs/update": {"run_info": info},
            "experiments/get-by-name": {"experiment": experiment},
            "experiments/get": {"experiment": experiment},
        }.get(path, {})


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    hostile: Hostile

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, body: bytes, *, status: int = 200, **headers: str) -> None:
        """An answer as it should be."""
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_any(self) -> None:
        hostile = self.hostile
        path = self.path.partition("?")[0]
        hostile.asked.append(self.path)
        hostile.logins.append(self.headers.get("Authorization"))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_file = path.startswith(FILES)
        end = path.removeprefix(FILES).rpartition("/")[2] if is_file else path.removeprefix(API)
        answer = hostile.answers.get(end, hostile.answers.get("*"))
        with contextlib.suppress(OSError):  # whoever asked has hung up
            if callable(answer):
                answer(self)
            elif is_file and answer is None:
                known = hostile.files.get(end)
                self.send(known or b"{}", status=404 if known is None else 200)
            else:
                value = hostile.answer(end) if answer is None else answer
                self.send(value if isinstance(value, bytes) else json.dumps(value).encode())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any


def drip(body: bytes, *, every_s: float, head: bool) -> Answer:
    """An answer that comes byte by byte, its headers already or its body alone."""

    def answer(handler: Handler) -> None:
        text = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        if not head:
            handler.wfile.write(text)
            handler.wfile.flush()
        for byte in (text if head else b"") + body:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(every_s)

    return answer


def endless(chunk: bytes) -> Answer:
    """An answer that never ends."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while True:
            handler.wfile.write(chunk)

    return answer


def status(code: int, **headers: str) -> Answer:
    """A refusal."""
    return lambda handler: handler.send(b"{}", status=code, **headers)


@contextlib.contextmanager
def hostile_server() -> Iterator[Hostile]:
    """One on a free port of the loopback address."""
    hostile = Hostile()
    handler = type("Bound", (Handler,), {"hostile": hostile})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hostile.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hostile
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
