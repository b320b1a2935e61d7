"""The image as it is used: by a user without a name, read-only, with no network and no rights."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from docker_engine import LOCKED_DOWN, Engine
from required import tell

from snpdeconv.version import __version__

pytestmark = [pytest.mark.container, pytest.mark.timeout(2400)]

# No such user is known in the image.
STRANGER = 23456


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder that the stranger may write."""
    folder = tmp_path / "data"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, STRANGER, STRANGER)
    else:
        folder.chmod(0o777)
    return folder


def inspected(engine: Engine, image: str) -> dict[str, Any]:
    return dict(json.loads(engine.docker("image", "inspect", image))[0]["Config"])


def test_the_image_says_what_it_is_and_does_not_run_as_root(engine: Engine, image: str) -> None:
    config = inspected(engine, image)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["snpdeconv"]
    labels = {
        name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()
    }
    assert {"title": "snpdeconv", "licenses": "MIT", "version": __version__}.items() <= labels.items()
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", labels["created"])
    assert labels["revision"]
    assert engine.docker("run", "--rm", *LOCKED_DOWN, image, "--version") == f"snpdeconv {__version__}"


def test_a_change_of_the_source_changes_a_small_last_layer_only(engine: Engine, image: str) -> None:
    lines = engine.docker(
        "history", "--human=false", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}", image
    )
    layers = [line.partition(" ") for line in lines.splitlines()]
    filled = [(int(size) / 1e6, command) for size, _, command in layers if int(size) > 0]
    (package_mb, package), (examples_mb, examples) = filled[:2]
    assert "pip install" in package
    assert "examples" in examples
    assert package_mb + examples_mb < 10


def test_what_the_build_was_lent_does_not_stay(engine: Engine, image: str, tmp_path: Path) -> None:
    found = engine.docker(
        "run", "--rm", "--user=0", "--entrypoint=find", image,
        "/", "-xdev", "(", "-name", "pip.conf", "-o", "-name", ".env", "-o", "-path", "/wheels/*", ")",
    )  # fmt: skip
    assert found == ""


def test_the_lock_holds(engine: Engine, image: str, data: Path) -> None:
    """Guards the tests below: they say nothing if the container could do more than they think."""
    probe = (
        "id -u; for f in /opt/venv/x /etc/x /x; do if touch $f 2>/dev/null; then echo wrote $f; fi; done; "
        "ls /sys/class/net; grep CapEff /proc/self/status; touch /data/x /tmp/x && echo both"
    )
    said = engine.snpdeconv(image, data, "-c", probe, user=STRANGER, program="sh")
    assert said.split() == [str(STRANGER), "lo", "CapEff:", "0000000000000000", "both"]


def test_a_cohort_is_simulated_trained_ranked_and_predicted(
    engine: Engine, image: str, data: Path, request: pytest.FixtureRequest
) -> None:
    def run(*words: object) -> str:
        return engine.snpdeconv(image, data, *words, user=STRANGER)

    started = time.monotonic()
    run(
        "simulate",
        "cohort",
        "--samples",
        240,
        "--variants",
        200,
        "--causal",
        4,
        "--pve",
        0.8,
        "--holdout",
        60,
    )
    inputs = ("--genotypes", "cohort/cohort.bed", "--phenotypes", "cohort/phenotypes.tsv", "--trait", "trait")
    settings = (
        "training.epochs=3",
        "training.batch_size=32",
        "model.channels=6,6",
        "interpretation.gradient_steps=4",
    )
    sets = [word for setting in settings for word in ("--set", setting)]
    trained = run("train", *inputs, "--name", "boxed", "--out", "run", *sets, "--json")
    result = json.loads(trained.splitlines()[-1])
    assert (result["model"], result["version"]) == ("boxed", 1)
    run("rank", "--model", "boxed@champion", "--method", "marginal", "--out", "ranking")
    run(
        "predict",
        "--model",
        "boxed@champion",
        "--genotypes",
        "cohort/holdout/cohort.bed",
        "--out",
        "predicted.tsv",
    )
    tell(f"container: locked-down run in {time.monotonic() - started:.0f} s", config=request.config)

    predicted = pd.read_csv(data / "predicted.tsv", sep="\t", dtype={"IID": str})
    truth = pd.read_csv(data / "cohort/holdout/phenotypes.tsv", sep="\t", dtype={"IID": str})
    both = predicted.merge(truth, on="IID")
    assert len(both) == 60
    assert both["prediction"].corr(both["trait"]) > 0.4
    ranking = pd.read_csv(data / "ranking/ranking.tsv", sep="\t")
    causal = pd.read_csv(data / "cohort/causal.tsv", sep="\t")
    assert len(ranking) > 150
    assert ranking["variant_id"].head(20).isin(causal["variant_id"]).any()
    assert (data / "run/plots/association.png").stat().st_size > 10_000
    if os.geteuid() == 0:
        assert {path.stat().st_uid for path in data.rglob("*")} == {STRANGER}


COMPILE = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 1))
x = torch.randn(8, 16)
torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))
print("compiled")
"""


def test_torch_compile_finds_its_compiler(engine: Engine, image: str, data: Path) -> None:
    said = engine.snpdeconv(image, data, "-c", COMPILE, user=STRANGER, program="python")
    assert said == "compiled"
    assert list((data / "home/cache/torchinductor").rglob("*.so"))


def test_the_health_check_notices_a_folder_that_cannot_be_written(
    engine: Engine, image: str, data: Path, tmp_path: Path
) -> None:
    health = {}
    for folder, options in ((data, ""), (tmp_path, ":ro")):
        name = engine.docker(
            "run", "--detach", "--init", *LOCKED_DOWN, f"--user={STRANGER}",
            f"--volume={folder}:/data{options}", "--health-interval=1s",
            "--health-retries=1", "--entrypoint=sleep", image, 120,
        )  # fmt: skip
        try:
            state = "starting"
            deadline = time.monotonic() + 60
            while state == "starting" and time.monotonic() < deadline:
                time.sleep(0.5)
                state = engine.docker("inspect", "--format", "{{.State.Health.Status}}", name)
            health[folder] = state
        finally:
            engine.docker("rm", "--force", name)
    assert health == {data: "healthy", tmp_path: "unhealthy"}


def test_make_run_container_gives_the_demo(
    engine: Engine, image: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    started = time.monotonic()
    shorter = (
        "--set training.epochs=4 --set interpretation.gradient_steps=4 "
        "--set interpretation.num_permutations=1"
    )
    said = engine.make("run-container", f"IMAGE={image}", f"DEMO={tmp_path}", f"ARGS={shorter}")
    tell(f"container: make run-container in {time.monotonic() - started:.0f} s", config=request.config)
    match = re.search(r"(\d+) of 10 causal SNPs stand among the first 20", said)
    assert match is not None, said
    assert int(match[1]) >= 4
    results = tmp_path / "container/demo"
    assert (results / "run/ranking.tsv").is_file()
    assert (results / "predictions.tsv").is_file()
    owners = {path.stat().st_uid for path in results.rglob("*")}
    assert owners == {os.geteuid() or 10001}
