"""The scripts that sbatch gets, compared with files: one for each preset and container runtime.

SNPDECONV_UPDATE_GOLDEN=1 writes the files anew.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from snpdeconv.config import preset_names
from snpdeconv.launch.records import Record, all_records

HERE = Path(__file__).parent
RUNTIMES = ("none", "apptainer", "pyxis", "charliecloud")


@pytest.fixture(autouse=True)
def me(monkeypatch):
    monkeypatch.setenv("LOGNAME", "me")


def dry_run(run, cohort, home, preset: str, *more: object) -> str:
    what: list[object] = ["--data", cohort, *(() if "--name" in more else ("--name", "height"))]
    if preset == "production":
        cohorts = (cohort / "cohort.bed", cohort / "holdout" / "cohort.bed")
        what = ["--model", "height@champion", "--genotypes", *cohorts]
    ran = run("submit", preset, *what, "--out", cohort / "results", "--dry-run", *more)
    assert ran.code == 0, ran.err
    script = ran.out
    for path, name in ((cohort, "/data/cohort"), (home, "/home/me"), (sys.executable, "/venv/python")):
        script = script.replace(str(path), name)
    return script


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("preset", preset_names())
def test_script_is_as_it_was(run, cohort, home, preset, runtime):
    script = dry_run(run, cohort, home, preset, "--cluster", HERE / "clusters" / f"{runtime}.yaml")
    golden = HERE / "golden" / f"{preset}-{runtime}.sh"
    if os.environ.get("SNPDECONV_UPDATE_GOLDEN"):
        golden.write_text(script)
    assert script == golden.read_text()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.fixture
def queued(tmp_path, monkeypatch):
    """Stand-ins for SLURM's commands; gives the file in which sbatch keeps the script that it is handed."""
    binaries, kept = tmp_path / "bin", tmp_path / "kept"
    binaries.mkdir()
    for name, text in {
        "squeue": "echo '7|PENDING|Resources|x'",
        "scontrol": "echo 'ClusterName = here'",
        "sinfo": "echo 'cpu*|infinite|idle|64 CPUs, 64000 MB, (null)'",
        "sbatch": f'[ "$1" = --test-only ] && exit; cat "${{@: -1}}" >{kept}; echo 7',
    }.items():
        (binaries / name).write_text(f"#!/bin/bash\n{text}\n")
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    return kept


def submitted(run, queued: Path, *words: object) -> Record:
    """Submits what a dry run has shown, and compares the script with the one that was handed over."""
    shown = run("submit", *words, "--dry-run")
    assert shown.code == 0, shown.err
    known = all_records()
    ran = run("submit", *words)
    assert ran.code == 0, ran.err
    (record,) = (one for one in all_records() if one not in known)
    date = re.search(r"\d{8}-\d{6}(-\d+)?$", record.id)[0]
    assert shown.out == queued.read_text().replace(date, "DATE-TIME")
    return record


@pytest.mark.parametrize("more", [(), ("--out", "own"), ("--search", "3")], ids=["home", "out", "search"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_printed_is_what_is_queued(run, cohort, tmp_path, monkeypatch, queued, runtime, more):
    monkeypatch.chdir(tmp_path)
    site = ("--cluster", HERE / "clusters" / f"{runtime}.yaml", "--partition", "cpu")
    submitted(run, queued, "small_cpu", "--data", cohort, "--name", "height", *site, *more)


@pytest.mark.parametrize("more", [(), ("--out", "own")], ids=["home", "out"])
def test_predictions_after_a_job_are_printed_as_queued(run, cohort, tmp_path, monkeypatch, queued, more):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("snpdeconv.launch.submit.resolve", lambda model: SimpleNamespace(name="m", version=3))
    site = ("--cluster", HERE / "clusters" / "apptainer.yaml", "--partition", "cpu")
    first = submitted(run, queued, "small_cpu", "--data", cohort, "--name", "height", *site)
    cohorts = (cohort / "cohort.bed", cohort / "holdout" / "cohort.bed")
    words = ("production", "--model", "m@champion", *site, "--after", first.id, *more)
    submitted(run, queued, *words, "--genotypes", *cohorts)
    assert "#SBATCH --dependency=afterok:7\n" in queued.read_text()


def test_nothing_is_written_and_no_slurm_is_needed(run, cohort, home, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    dry_run(run, cohort, home, "small_cpu")
    assert not (home / "jobs").exists()


def test_options_reach_the_script(run, cohort, home):
    options = ["--partition", "big", "--set", "resources.nodes=2", "--set", "resources.timeout_min=90"]
    site = HERE / "clusters" / "none.yaml"
    script = dry_run(run, cohort, home, "large_multi_gpu", "--cluster", site, *options)
    for line in ("--partition=big", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=90",
                 "--signal=USR2@90", "--requeue", "--open-mode=append", "--mail-type=FAIL"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script
    assert "module load cuda\n" in script
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in script


def test_names_with_line_breaks_are_no_commands(run, cohort, home):
    site = HERE / "clusters" / "none.yaml"
    script = dry_run(run, cohort, home, "small_cpu", "--cluster", site, "--name", "a\ntouch ran #/../$(id)")
    assert "\n#SBATCH --job-name=snpdeconv-a-touch-ran---..---id--DATE-TIME\n" in script
    assert "touch ran" not in script
    ran = run("submit", "small_cpu", "--data", cohort, "--cluster", site, "--partition", "a\nid", "--dry-run")
    assert ran.code == 2
    assert "'a\\nid': holds a line break" in ran.err


def test_a_home_that_slurm_would_take_for_a_pattern_is_refused(run, cohort, home, monkeypatch, tmp_path):
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "at %j"))
    site = HERE / "clusters" / "none.yaml"
    ran = run("submit", "small_cpu", "--data", cohort, "--name", "height", "--cluster", site, "--dry-run")
    assert ran.code == 2
    assert "holds a % or a backslash" in ran.err


def test_a_password_stays_out_of_the_script(run, cohort, home, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@mlflow.example.org")
    assert "secret" not in dry_run(run, cohort, home, "small_cpu")


def test_a_site_that_says_no_to_an_option_leaves_ours(run, cohort, home, tmp_path):
    (tmp_path / "site.yaml").write_text("sbatch: {mem: false, signal: false}\n")
    script = dry_run(run, cohort, home, "small_cpu", "--cluster", tmp_path / "site.yaml")
    assert "#SBATCH --mem=" in script
    assert "#SBATCH --signal=" in script


@pytest.mark.parametrize("value", ["true", "yes", "1"])
def test_a_site_that_forbids_requeue(run, cohort, home, tmp_path, value):
    (tmp_path / "site.yaml").write_text(f"sbatch: {{no-requeue: {value}}}\n")
    script = dry_run(run, cohort, home, "small_cpu", "--cluster", tmp_path / "site.yaml")
    assert "#SBATCH --no-requeue\n" in script
    assert "--requeue" not in script
