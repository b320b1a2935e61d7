"""A real SLURM cluster for the tests; loud where there is none."""

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from required import missing

from snpdeconv.config import load_config
from snpdeconv.launch.records import Record, all_records
from snpdeconv.launch.site import Request, Site
from snpdeconv.launch.status import JobStatus, read_status
from snpdeconv.launch.submit import Target, enqueue, make_record

HERE = Path(__file__).parent
CLUSTER = Path(os.environ.get("SNPDECONV_SLURM", "/tmp/snpdeconv-slurm"))
LIMIT_S = 300.0
"""How long a job may take from one event to the next; ten times what it takes where nothing else runs."""


def answers() -> bool:
    return subprocess.run(["scontrol", "ping"], capture_output=True, check=False).returncode == 0


def start_cluster(log: Path, layout: str = "usual") -> bool:
    """Starts what of the cluster does not run; whether all of it does now."""
    with log.open("w") as stream:  # not a pipe: the daemons would keep it open
        up = subprocess.run([HERE / "cluster-up.sh", layout], stdout=stream, stderr=stream, check=False)
    return up.returncode == 0


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The test cluster, started if it is not up and this is root; what was started here is stopped again."""
    yield from running_cluster(request, tmp_path_factory, "usual")


def running_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, layout: str
) -> Iterator[None]:
    """A layout of `cluster-up.sh`, as the one that this process talks to."""
    place = CLUSTER if layout == "usual" else CLUSTER.with_name(f"{CLUSTER.name}-{layout}")
    os.environ["SLURM_CONF"] = str(place / "etc" / "slurm.conf")
    if (place / "env.sh").exists() and answers():
        yield
        return
    if os.geteuid() != 0:
        missing("slurm", "the test cluster is not up, and only root can start it", config=request.config)
    log = tmp_path_factory.mktemp("cluster") / "log"
    if not start_cluster(log, layout):
        why = f"the test cluster does not start ({log.read_text().strip()[-300:]})"
        missing("slurm", why, config=request.config)
    yield
    if "PYTEST_XDIST_WORKER" not in os.environ:  # another worker may still need it
        subprocess.run([HERE / "cluster-down.sh", *([layout] if layout != "usual" else [])], check=True)


@pytest.fixture
def nodes_back(tmp_path) -> Iterator[None]:
    """Brings nodes back that a test took out of service, or whose daemons it ended.

    Not before the test's job is done: SLURM repeats what it told a dead node, and would end the job's second
    start there.
    """
    yield
    for node in ("gpu1", "gpu2", "cpu1"):
        subprocess.run(
            ["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True, check=False
        )
    assert start_cluster(tmp_path / "cluster.log"), (tmp_path / "cluster.log").read_text()


PATHS = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
SITE = Site(name="test", scheduler="slurm", environment={"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"})


def site(**facts: object) -> Site:
    return SITE.model_copy(update=facts)


def request(**resources: int) -> Request:
    asked = {
        "nodes": 1,
        "tasks_per_node": 1,
        "gpus_per_node": 0,
        "cpus_per_task": 1,
        "mem_gib": 1,
        "timeout_min": 60,
        "signal_delay_s": 5,
    }
    return Request(**(asked | resources))


@pytest.fixture
def submit(cluster, home, tmp_path) -> Iterator[Callable[..., Record]]:
    """Submits a job of a class that the tests made up; what is left of it is cancelled in the end."""
    submitted: list[Record] = []

    def submit_job(kind, *, to: Site = SITE, asking: Request | None = None, after=(), **facts) -> Record:
        config = load_config("small_cpu")
        target = Target(to, "slurm", asking or request())
        record = make_record("train", config, target, model="toy", command="", after=after)
        (record.folder / "settings.yaml").write_text(config.to_yaml() + "preset: small_cpu\n")
        job = kind(
            record=str(record.folder),
            settings=str(record.folder / "settings.yaml"),
            notice_s=target.request.signal_delay_s,
            in_container=to.container.runtime != "none",
            **facts,
        )
        record = enqueue([job], record, target, needs=(), after=after)
        submitted.append(record)
        return record

    yield submit_job
    for record in submitted:
        subprocess.run(["scancel", record.scheduler_id], check=False)


def await_state(record: Record, *states: str, timeout_s: float = LIMIT_S) -> JobStatus:
    """Waits until a job is in one of the states."""
    deadline = time.monotonic() + timeout_s
    while True:
        (now,) = read_status([record])
        if now.state in states:
            return now
        assert time.monotonic() < deadline, f"still {now.state}: {now.reason}\n{log_of(record)}"
        assert now.is_live, f"{now.state}: {now.reason}\n{log_of(record)}"
        time.sleep(0.5)


def await_true(condition: Callable[[], bool], *, timeout_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def told(*words: str) -> str:
    """What a command of SLURM prints."""
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def control(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True)


def signal_job(record: Record, name: str | None) -> None:
    """Sends all its processes a signal; None ends the job for good, with SIGTERM and then SIGKILL."""
    words = ["scancel", *([] if name is None else [f"--signal={name}"])]
    subprocess.run([*words, record.scheduler_id], check=True)


def nodes_of(record: Record) -> list[str]:
    """The nodes that it runs on."""
    names = told("squeue", "--noheader", "--format=%N", f"--jobs={record.scheduler_id}")
    return told("scontrol", "show", "hostnames", names).split()


def ranks_of(record: Record) -> list[psutil.Process]:
    """The job's own Python processes, which SLURM has started on this machine."""
    ranks = []
    for process in psutil.process_iter():
        try:
            # srun has the module in its words as well, behind its options.
            if process.cmdline()[1:5] == ["-P", "-u", "-m", "snpdeconv.launch.entry"]:
                ours = process.environ().get("SLURM_JOB_ID") == record.scheduler_id
                ranks += [process] if ours and process.status() != psutil.STATUS_ZOMBIE else []
        except psutil.Error:
            continue
    return ranks


def log_of(record: Record) -> str:
    path = record.log_path()
    return path.read_text()[-4000:] if path.exists() else "(no log)"


@pytest.fixture
def clusters(tmp_path, monkeypatch, cluster, home) -> Iterator[Path]:
    """The folder that the user stands in, with the facts of the test cluster; no job outlives the test."""
    folder = tmp_path / "work"
    (folder / "jobs" / "clusters").mkdir(parents=True)
    facts = (HERE.parent.parent / "jobs" / "clusters" / "test.yaml").read_text()
    (folder / "jobs" / "clusters" / "test.yaml").write_text(f"{facts}  PYTHONPATH: '{PATHS}'\n")
    monkeypatch.chdir(folder)
    yield folder
    for record in all_records():
        subprocess.run(["scancel", record.scheduler_id], check=False)


SMALL = ("resources.cpus_per_task=1", "resources.mem_gib=2")


def words(*settings: str) -> list[str]:
    return [word for setting in (*settings, *SMALL) for word in ("--set", setting)]


def only_run(home: Path, *, name: str | None = None) -> mlflow.entities.Run:
    """The home's only run, or only one of a name; it must have ended well."""
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "snpdeconv")
    (run,) = (
        r
        for r in client.search_runs([experiment.experiment_id])
        if name in (None, r.info.run_name.split()[0])
    )
    assert run.info.status == "FINISHED"
    return run


def points(home: Path, metric: str, *, name: str | None = None) -> list[tuple[int, float]]:
    """Step and value of all points of a metric of that run."""
    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    history = client.get_metric_history(only_run(home, name=name).info.run_id, metric)
    return sorted((point.step, point.value) for point in history)


def digest(out: Path) -> dict[str, str]:
    """What a run's results are, by file."""
    names = ("model/model.safetensors", "ranking.tsv", "test_predictions.tsv")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
