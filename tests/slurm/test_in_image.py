"""A training on a real cluster whose every process runs in the built image, interrupted once."""

import re
import subprocess
import uuid
from pathlib import Path

import pandas as pd
import pytest
from command_line import FAST
from conftest import await_state, await_true, only_run, points, words
from docker_engine import PROJECT, Engine
from required import missing

from snpdeconv.launch.records import find_record
from snpdeconv.launch.status import read_progress
from snpdeconv.version import __version__

pytestmark = [pytest.mark.slurm, pytest.mark.container, pytest.mark.timeout(1800)]

SETTINGS = (*FAST, "training.epochs=60", "training.patience=60", "training.checkpoint_every_steps=20",
            "tracking.log_every_steps=1")  # fmt: skip
# Written into the image's own environment, so that whoever knows it runs in there.
WORD = f"unpacked-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def unpacked(engine: Engine, image: str, request: pytest.FixtureRequest) -> Path:
    """The image as Charliecloud takes it; it stays, as pytest would keep several of its two GB."""
    if subprocess.run(["sh", "-c", "command -v ch-run"], capture_output=True).returncode != 0:
        missing("container", "ch-run is not installed (Debian: charliecloud-runtime)", config=request.config)
    folder = PROJECT / "build/charliecloud-test"
    engine.make("charliecloud", f"IMAGE={image}", f"UNPACKED={folder}")
    environment = (folder / "ch/environment").read_text()
    changed = re.sub("^SNPDECONV_REVISION=.*$", f"SNPDECONV_REVISION={WORD}", environment, flags=re.MULTILINE)
    assert changed != environment
    (folder / "ch/environment").write_text(changed)
    return folder


def roots_of_tasks(number: str) -> list[Path]:
    """The root folders that the processes of a job see."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        # Not srun, whose arguments these words are too.
        if words[4:5] == [b"snpdeconv.launch.entry"] and f"SLURM_JOB_ID={number}".encode() in variables:
            found.append(process / "root")
    return found


def test_a_training_runs_in_the_image_and_goes_on_there(cluster, unpacked, cohort, home, run, tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(f"scheduler: slurm\ncontainer: {{runtime: charliecloud, image: {unpacked}}}\n")
    out = tmp_path / "results" / "run"
    submitted = run("submit", "small_cpu", "--data", cohort, "--name", "boxed", "--cluster", site,
                    "--out", out, *words(*SETTINGS))  # fmt: skip
    assert submitted.code == 0, submitted.err
    record = find_record(None)
    await_true(lambda: read_progress(out).step >= 30, timeout_s=200)
    roots = roots_of_tasks(record.scheduler_id)
    assert roots
    for root in roots:
        assert WORD in (root / "ch/environment").read_text()
    subprocess.run(["scancel", "--signal=USR2", record.scheduler_id], check=True)
    done = await_state(record, "done", timeout_s=300)
    assert done.starts == 2
    assert "going on from" in record.log_path().read_text()
    steps = [step for step, _ in points(home, "train/loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert only_run(home).data.tags["snpdeconv.code"] == f"{__version__}+{WORD}"
    ranking = pd.read_csv(out / "ranking.tsv", sep="\t")
    causal = pd.read_csv(cohort / "causal.tsv", sep="\t")
    assert ranking["variant_id"].head(20).isin(causal["variant_id"]).any()
