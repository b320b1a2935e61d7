"""Homes, names and surroundings as people have them: a command works there or says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snpdeconv.errors import ConfigError
from snpdeconv.tracking.home import cache_dir, tracking_uri
from snpdeconv.tracking.registry import download, get_run_info, resolve
from snpdeconv.tracking.run import TrackedRun
from snpdeconv.tracking.ship import sync

COMMAND = [sys.executable, "-c", "from snpdeconv.cli import main; main()"]


def finished(name: str, folder: Path) -> TrackedRun:
    """A run with a file and a model."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    run = TrackedRun.open(experiment="e", name=name, system_every_s=None)
    run.log_artifact(folder / "config.json")
    run.register(name, folder)
    run.finish()
    assert run.close(timeout_s=60)
    return run


@pytest.mark.parametrize("name", ["a%b#c d", "größe;&@:'e%s"])
def test_a_home_of_any_name_keeps_runs_and_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = tmp_path / name / "home"
    monkeypatch.setenv("SNPDECONV_HOME", str(home))
    run = finished("m", tmp_path / "bundle")
    assert (download(resolve("m"), cache_dir=cache_dir()) / "config.json").read_text() == "{}"
    info = get_run_info(str(run.run_id))
    assert info.download("config.json", into=tmp_path / "got").read_text() == "{}"
    assert (home / "artifacts" / str(run.run_id) / "artifacts" / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "bundle", "got"])


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a%2Fb"])
def test_a_home_that_is_another_ones_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"mlflow.db: MLflow reads .*; set SNPDECONV_HOME to"):
        tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert tracking_uri() == "http://127.0.0.1:9"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_moved_home_has_its_models_and_keeps_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used_home: Callable[[Path], Path]
) -> None:
    monkeypatch.setenv("SNPDECONV_HOME", str(used_home(tmp_path / "old")))
    first = finished("m", tmp_path / "bundle")
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "new"))
    assert (download(resolve("m"), cache_dir=tmp_path / "cache") / "config.json").read_text() == "{}"
    info = get_run_info(str(first.run_id))
    assert info.download("config.json", into=tmp_path / "got").read_text() == "{}"
    (tmp_path / "bundle" / "more").write_text("x")
    second = finished("m", tmp_path / "bundle")
    assert (download(resolve("m/2"), cache_dir=tmp_path / "cache") / "more").read_text() == "x"
    assert (tmp_path / "new" / "artifacts" / str(second.run_id)).is_dir()
    assert not (tmp_path / "old").exists()


def test_a_copied_home_leaves_the_other_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, used_home: Callable[[Path], Path]
) -> None:
    monkeypatch.setenv("SNPDECONV_HOME", str(used_home(tmp_path / "old")))
    finished("m", tmp_path / "bundle")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    before = sorted((tmp_path / "old").rglob("*"))
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "new"))
    finished("n", tmp_path / "bundle")
    assert sorted((tmp_path / "old").rglob("*")) == before


def test_what_a_container_has_not_sent_is_sent_from_outside_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "inside" / "home"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    bundle = tmp_path / "inside" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "config.json").write_text("{}")
    run = TrackedRun.open(experiment="e", name="m", system_every_s=None)
    run._sender.stop(timeout_s=60)  # as if the container had been killed before anything was sent
    run.log_artifact(bundle / "config.json")
    run.register("m", bundle)
    run.finish()
    run._spool.release()
    (tmp_path / "inside" / "home" / "spool" / run.key / "sent.json").unlink(missing_ok=True)
    (tmp_path / "inside").rename(tmp_path / "outside")
    monkeypatch.setenv("SNPDECONV_HOME", str(tmp_path / "outside" / "home"))
    (report,) = sync().spools
    assert (report.outcome, report.problems) == ("sent", ())
    assert (download(resolve("m"), cache_dir=tmp_path / "cache") / "config.json").read_text() == "{}"


def ran(*words: str, shell: str = "exec", **environment: str | None) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own; `shell` is what comes before it."""
    known = {**os.environ, **environment}
    line = [*COMMAND, *words]
    return subprocess.run(
        ["bash", "-c", f'{shell} "$@"', "bash", *line],
        env={name: value for name, value in known.items() if value is not None},
        capture_output=True, text=True, errors="replace", timeout=120, check=False,
    )  # fmt: skip


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may write; pytest's own are their owner's alone."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_a_user_whom_nobody_knows(request: pytest.FixtureRequest) -> None:
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv, to be another user")
    caps = "+dac_override,+dac_read_search"  # the interpreter may lie in root's home
    nobody = f"exec setpriv --reuid=54321 --clear-groups --inh-caps={caps} --ambient-caps={caps}"
    bare = {"HOME": None, "USER": None, "LOGNAME": None}
    told = ran("sync", shell=nobody, **bare, SNPDECONV_HOME=None)
    assert (told.returncode, told.stderr) == (
        2, "error: this user: has no home folder; set SNPDECONV_HOME to a folder that you may write\n",
    )  # fmt: skip
    folder = request.getfixturevalue("open_folder")
    code = (
        "from snpdeconv.tracking.run import TrackedRun; import getpass\n"
        "run = TrackedRun.open(experiment='e', name='n', system_every_s=None)\n"
        "run.finish(); assert run.close(timeout_s=60); assert getpass.getuser() == 'uid54321'"
    )
    done = subprocess.run(
        [*nobody.split()[1:], sys.executable, "-c", code],
        env={n: v for n, v in os.environ.items() if n not in bare} | {"SNPDECONV_HOME": f"{folder}/home"},
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_working_folder_that_is_gone(tmp_path: Path) -> None:
    told = ran("sync", shell=f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; exec")
    line = "error: the working folder: is gone; change into one that is there\n"
    assert (told.returncode, told.stderr[-len(line) :]) == (2, line)
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    "streams", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/null 2>/dev/full"]
)
def test_closed_and_full_streams_change_no_exit_code(streams: str) -> None:
    assert ran("presets", shell=f"exec {streams}; exec").returncode == 0
    assert ran("sync", "--nonsense", shell=f"exec {streams}; exec").returncode == 2
    assert ran("presets", "nonsense", shell=f"exec {streams}; exec").returncode == 2


def test_names_are_read_in_utf8_whatever_the_locale(tmp_path: Path, cohort: Path) -> None:
    table = tmp_path / "größe.tsv"
    table.write_text((cohort / "phenotypes.tsv").read_text().replace("trait", "größe"), encoding="utf-8")
    old = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = ran(
        "rank", "--genotypes", str(cohort / "cohort.bed"), "--phenotypes", str(table), "--trait", "größe",
        "--method", "marginal", "--out", str(tmp_path / "straße"), **old,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "straße" / "ranking.tsv").exists()


def test_bytes_that_are_no_utf8_are_told() -> None:
    done = subprocess.run([*COMMAND, "presets", b"gr\xf6\xdfe"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        b"error: 'gr\\udcf6\\udcdfe': is not in UTF-8; rename it in UTF-8\n",
    )


def test_no_temporary_folder_to_write_in(tmp_path: Path) -> None:
    code = (
        "import os, tempfile\n"
        "tempfile._candidate_tempdir_list = lambda: ['/proc/none']\n"
        "from snpdeconv.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "sync"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode in (0, 2)
    assert "Traceback" not in done.stderr


def test_a_python_that_does_not_listen_is_not_started_again_for_ever() -> None:
    words = [sys.executable, "-X", "utf8=0", *COMMAND[1:], "--version"]
    old = {"PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    ran = subprocess.run(words, env=os.environ | old, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.startswith("snpdeconv ")
