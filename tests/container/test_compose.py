"""The stack of compose.yaml: MLflow with logins on PostgreSQL, and a trainer that works against it."""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from docker_engine import PROJECT, Engine
from required import tell
from writers import assert_nothing_lost, log_at_once

pytestmark = [pytest.mark.container, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Stack:
    """The running services, as `make mlflow-up` started them."""

    engine: Engine
    settings: dict[str, str]
    environment: dict[str, str]
    image: str
    env_file: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['MLFLOW_PORT']}"

    @property
    def login(self) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.settings["MLFLOW_ADMIN_PASSWORD"],
        }

    def make(self, target: str) -> str:
        return self.engine.make(
            target, f"IMAGE={self.image}", f"ENV_FILE={self.env_file}", **self.environment
        )

    def compose(self, *words: object, check: bool = True) -> str:
        words = ("compose", "--project-directory", PROJECT, "--env-file", self.env_file, *words)
        environment = self.environment | {"SNPDECONV_IMAGE": self.image}
        return self.engine.run(*words, check=check, **environment).stdout

    def get(
        self, path: str, *, login: bool = True, host: str = "", body: dict[str, Any] | None = None
    ) -> Any:
        """Asks the server's API."""
        headers = {"Host": host} if host else {}
        if login:
            words = ":".join(self.login.values())
            headers["Authorization"] = f"Basic {b64encode(words.encode()).decode()}"
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self.url}/api/2.0/{path}", headers=headers, data=data)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def stack(
    engine: Engine,
    image: str,
    postgres_image: str,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Stack]:
    env_file = tmp_path_factory.mktemp("compose") / "passwords"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        "COMPOSE_PROJECT_NAME": "snpdeconv-test",
        "POSTGRES_IMAGE": postgres_image,
        "MLFLOW_PORT": port,
        "POSTGRES_PASSWORD_FILE": f"{env_file}.secrets/postgres_password",
    }
    engine.make("--", env_file, f"ENV_FILE={env_file}")
    lines = (line.split("=", 1) for line in env_file.read_text().splitlines() if not line.startswith("#"))
    stack = Stack(
        engine, {line[0]: line[1] for line in lines if len(line) == 2}, environment, image, env_file
    )
    started = time.monotonic()
    try:
        stack.make("mlflow-up")
        tell(f"container: make mlflow-up in {time.monotonic() - started:.0f} s", config=request.config)
        yield stack
    except BaseException:
        tell(stack.compose("logs", "--no-color", "--tail=40", check=False), config=request.config)
        raise
    finally:
        stack.compose("--profile=trainer", "down", "--volumes", "--timeout=5")


def test_the_passwords_were_drawn_and_are_nobody_elses(stack: Stack) -> None:
    assert stack.env_file.stat().st_mode & 0o077 == 0
    names = {"POSTGRES_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY"}
    assert set(stack.settings) == names
    assert len(set(stack.settings.values())) == len(names)
    assert min(map(len, stack.settings.values())) >= 32
    # They are read from the environment: no list of processes shows them.
    processes = stack.compose("top")
    assert "uvicorn" in processes
    assert not [value for value in stack.settings.values() if value in processes]
    # That of the database comes by a file that others on this machine cannot reach.
    secret = Path(stack.environment["POSTGRES_PASSWORD_FILE"])
    assert secret.read_text() == stack.settings["POSTGRES_PASSWORD"]
    assert secret.parent.stat().st_mode & 0o777 == 0o700
    containers = stack.compose("ps", "--quiet").split()
    assert len(containers) == 2
    assert stack.settings["POSTGRES_PASSWORD"] not in stack.engine.docker("inspect", *containers)


def test_a_stack_without_passwords_does_not_start(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    words = ("compose", "--project-directory", PROJECT, "--env-file", tmp_path / "empty", "config")
    done = stack.engine.run(*words, check=False)
    assert done.returncode != 0
    assert "make mlflow-up writes it to .env" in done.stderr


def test_strangers_and_strange_names_are_turned_away(stack: Stack) -> None:
    assert stack.get("mlflow/experiments/get?experiment_id=0")["experiment"]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        stack.get("mlflow/experiments/get?experiment_id=0", login=False)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        stack.get("mlflow/experiments/get?experiment_id=0", host="evil.example")
    # The database is for the server alone.
    assert stack.compose("port", "postgres", "5432", check=False).strip() in ("", ":0", "invalid IP:0")


TRAIN = """
snpdeconv simulate cohort --samples 240 --variants 200 --causal 4 --pve 0.8
snpdeconv train --genotypes cohort/cohort.bed --phenotypes cohort/phenotypes.tsv --trait trait \
    --name composed --out run --set training.epochs=3 --set training.batch_size=32 --set model.channels=6,6 \
    --set interpretation.gradient_steps=4 --set tracking.log_every_steps=1 --json
"""


def test_the_trainers_metrics_are_found_through_the_servers_api(
    stack: Stack, request: pytest.FixtureRequest
) -> None:
    started = time.monotonic()
    said = stack.compose("run", "--rm", "--no-TTY", "--entrypoint=sh", "trainer", "-ec", TRAIN)
    tell(f"container: trainer in {time.monotonic() - started:.0f} s", config=request.config)
    result = json.loads(said.splitlines()[-1])
    run = stack.get(f"mlflow/runs/get?run_id={result['run_id']}")["run"]
    assert run["info"]["status"] == "FINISHED"
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    assert metrics["test/r2"] == pytest.approx(result["test"]["r2"]["value"])
    history = stack.get(
        f"mlflow/metrics/get-history?run_id={result['run_id']}&metric_key=train%2Floss&max_results=1000"
    )["metrics"]
    steps = [point["step"] for point in history]
    assert steps == sorted(set(steps))
    assert len(steps) >= 9
    # Artifacts went through the server, which keeps them in a volume of its own.
    assert run["info"]["artifact_uri"].startswith("mlflow-artifacts:/")
    files = stack.get(f"mlflow/artifacts/list?run_id={result['run_id']}")["files"]
    assert "ranking.tsv" in {file["path"] for file in files}
    model = stack.get("mlflow/registered-models/get?name=composed")["registered_model"]
    assert {alias["alias"]: alias["version"] for alias in model["aliases"]} == {
        "champion": "1",
        "challenger": "1",
    }


def test_eight_jobs_at_once_lose_nothing(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    environment = {"MLFLOW_TRACKING_URI": stack.url, **stack.login}
    took_s = log_at_once(tmp_path, os.environ | environment, one_home=True)
    tell(f"container: eight writers in {took_s:.0f} s", config=request.config)
    for name, value in stack.login.items():
        monkeypatch.setenv(name, value)
    assert_nothing_lost(stack.url)


def test_runs_outlive_the_stack(stack: Stack) -> None:
    name = f"kept-{time.time_ns()}"
    made = stack.get("mlflow/experiments/create", body={"name": name})["experiment_id"]
    stack.make("mlflow-down")
    with pytest.raises(OSError):
        stack.get(f"mlflow/experiments/get?experiment_id={made}")
    stack.make("mlflow-up")
    assert stack.get(f"mlflow/experiments/get?experiment_id={made}")["experiment"]["name"] == name
