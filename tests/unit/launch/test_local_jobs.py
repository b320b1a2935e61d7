"""Jobs of this machine, in real processes: the path that SLURM jobs take too."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from submitit import JobEnvironment
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission, cloudpickle_dump
from toy_jobs import Counting, Deaf, Failing, Summing

from snpdeconv.config import load_config
from snpdeconv.errors import ConfigError, DamagedFile, ResourceError
from snpdeconv.launch.control import cancel, log_file, read_log
from snpdeconv.launch.entry import load_job
from snpdeconv.launch.jobs import SequentialJobs, TimeLimitHandler
from snpdeconv.launch.records import Record, save
from snpdeconv.launch.scheduler import find_process
from snpdeconv.launch.site import Request, Site
from snpdeconv.launch.status import JobStatus, read_status, settle
from snpdeconv.launch.submit import Target, enqueue, make_record, still_to_wait_for

TESTS = Path(__file__).parents[2]
SITE = Site(name="local", scheduler="local", environment={"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"})


def request(**resources: int) -> Request:
    asked = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, "cpus_per_task": 1, "mem_gib": 1,
             "timeout_min": 60, "signal_delay_s": 5}  # fmt: skip
    return Request(**(asked | resources))


@pytest.fixture
def start(home):
    """Starts jobs of this machine; those that live on are ended."""
    started: list[Record] = []

    def start_jobs(kind, *facts: dict, asking: Request | None = None, to: Site = SITE, after=()) -> Record:
        config = load_config("small_cpu")
        target = Target(to, "local", asking or request())
        record = make_record("predict", config, target, model="toy", command="", after=after)
        if len(facts) > 1:
            record = Record(**{**vars(record), "elements": tuple(str(place) for place in range(len(facts)))})
        settings = record.folder / "settings.yaml"
        settings.write_text(config.to_yaml() + "preset: small_cpu\n")
        jobs = [
            kind(
                record=str(record.folder), settings=str(settings), notice_s=target.request.signal_delay_s,
                in_container=False, element=place if record.elements else None, **one,
            )
            for place, one in enumerate(facts)
        ]  # fmt: skip
        started.append(enqueue(jobs, record, target, needs=(), after=after))
        return started[-1]

    yield start_jobs
    for record in started:
        process = find_process(record)
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)


def ended(record: Record, timeout_s: float = 60) -> JobStatus:
    deadline = time.monotonic() + timeout_s
    while (now := read_status([record])[0]).is_live:
        assert time.monotonic() < deadline, record.log_path().read_text()
        time.sleep(0.1)
    return now


def await_lines(path: Path, count: int = 3) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() or len(path.read_text().split()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks(record: Record) -> list[psutil.Process]:
    return psutil.Process(int(record.scheduler_id)).children()


def test_a_job_runs_apart_and_says_how_it_ended(start, tmp_path):
    record = start(Counting, {"out": str(tmp_path / "n"), "steps": 3})
    assert os.getpgid(int(record.scheduler_id)) != os.getpgid(0)
    assert ended(record).state == "done"
    assert record.outcome().result == {"steps": 3}
    assert "completed successfully" in "".join(read_log(log_file(record), record=record, follow=True))


def test_notice_brings_it_back(start, tmp_path):
    record = start(Counting, {"out": str(tmp_path / "n"), "steps": 60})
    await_lines(tmp_path / "n")
    (rank,) = ranks(record)
    rank.send_signal(signal.SIGUSR2)
    done = ended(record)
    assert (done.state, done.starts) == ("done", 2)
    assert (tmp_path / "n").read_text().split() == [str(step) for step in range(1, 61)]


def test_a_container_without_slurm_asks_its_batch_script_to_queue_it_again(tmp_path, monkeypatch):
    """What is used of submitit's insides: its handler of the signal, and the hook of an environment."""
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SUBMITIT_FOLDER": str(tmp_path), "SLURM_JOB_ID": "12",
                        "SLURM_PROCID": "0", "PATH": str(tmp_path)}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    tmp_path.chmod(0o700)
    job = Counting(record="r", settings="s", notice_s=1, in_container=True, out="o")
    environment, payload = JobEnvironment(), DelayedSubmission(job)
    payload.set_timeout(60, 3)
    before = signal.signal(
        signal.SIGUSR2, SignalHandler(environment, environment.paths, payload).checkpoint_and_try_requeue
    )
    try:
        TimeLimitHandler(notice_s=1, in_container=True, gave_up=pytest.fail)
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (tmp_path / "12.requeue").exists()
    assert load_job(tmp_path / "12_submitted.pkl").function == job


def test_it_gives_up_after_so_many_limits(start, tmp_path):
    site = SITE.model_copy(update={"max_requeues": 0})
    asking = request(timeout_min=1)
    record = start(Counting, {"out": str(tmp_path / "n"), "steps": 999}, asking=asking, to=site)
    await_lines(tmp_path / "n")
    ranks(record)[0].send_signal(signal.SIGUSR2)
    failed = ended(record)
    assert (failed.state, failed.starts) == ("failed", 1)
    assert "time limit too often" in failed.reason


def test_work_that_never_asks_is_cut_off_and_done_again(start, tmp_path):
    record = start(Deaf, {"out": str(tmp_path / "began")}, asking=request(signal_delay_s=1))
    deadline = time.monotonic() + 30
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    ranks(record)[0].send_signal(signal.SIGUSR2)
    assert (ended(record).state, record.num_starts()) == ("done", 2)


def test_cancelled(start, tmp_path):
    record = start(Counting, {"out": str(tmp_path / "n"), "steps": 9999})
    await_lines(tmp_path / "n")
    assert cancel(record).state == "cancelled"
    assert find_process(record) is None
    assert read_status([record])[0].state == "cancelled"


def test_a_clock_that_was_set_ends_no_job(start, tmp_path):
    record = start(Counting, {"out": str(tmp_path / "n"), "steps": 9999})
    await_lines(tmp_path / "n")
    moved = replace(record, process_created=record.process_created - 3600)
    save(moved)
    settle([moved])
    assert moved.outcome() is None
    assert cancel(moved).state == "cancelled"


def test_failures_say_why(start):
    mistake, bug, killed = (start(Failing, {"how": how}) for how in ("mistake", "bug", "killed"))
    assert ended(mistake).reason == "phenotypes.tsv: no such column; see the header"
    assert ended(bug).reason == "ZeroDivisionError: division by zero (see the log)"
    assert ended(killed).reason.startswith("killed")  # for memory, if another process was meanwhile
    assert killed.outcome().end == "failed"  # it is the job itself that has written it
    assert "Traceback" not in mistake.log_path().read_text()
    assert "Traceback" in bug.log_path().read_text()


def test_a_single_rank_waits_for_none_that_the_shell_speaks_of(start, monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    record = start(Summing, {})
    assert ended(record).state == "done", record.log_path().read_text()
    assert record.outcome().result == {"total": 1, "world_size": 1}


def test_ranks_find_each_other(start):
    record = start(Summing, {}, asking=request(tasks_per_node=2))
    assert ended(record).state == "done", record.log_path().read_text()
    assert record.outcome().result == {"total": 3, "world_size": 2}


def test_an_array_goes_one_after_the_other_and_past_failures(start, tmp_path):
    record = start(Failing, {"how": "mistake"}, {"how": "none"}, {"how": "bug"})
    now = ended(record)
    assert [state for state, _ in now.elements] == ["failed", "done", "failed"]
    assert json.loads((record.folder / "outcome-2.json").read_text())["reason"].startswith(
        "ZeroDivisionError"
    )


def test_several_nodes_need_slurm(start):
    with pytest.raises(ConfigError, match="asks for 2 nodes, and there is no SLURM here"):
        start(Summing, {}, asking=request(nodes=2))


def test_a_job_imports_nothing_from_the_working_folder(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("submitit", "mlflow", "numpy", "snpdeconv"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'a').write(__name__)\nraise SystemExit(1)\n")
    assert ended(start(Counting, {"out": str(tmp_path / "out"), "steps": 1, "step_s": 0.0})).state == "done"
    assert not (tmp_path / "ran").exists()


class _Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_names_jobs_of_ours_and_nothing_else(tmp_path):
    job = Counting(record="r", settings="s", notice_s=1, in_container=False, out="o")
    good, bad, torn = (tmp_path / f"{name}.pkl" for name in ("good", "bad", "torn"))
    cloudpickle_dump(DelayedSubmission(SequentialJobs((job,))), good)
    cloudpickle_dump(DelayedSubmission(_Touch(tmp_path / "ran")), bad)
    torn.write_bytes(good.read_bytes()[:50])
    tmp_path.chmod(0o700)
    assert load_job(good).function.jobs == (job,)
    before = tmp_path / "before.pkl"  # as 0.1.0 named the jobs of an array in turn
    written = pickle.dumps(DelayedSubmission(SequentialJobs((job,))), protocol=2)
    before.write_bytes(written.replace(b"jobs\nSequentialJobs\n", b"jobs\nInTurn\n"))
    assert b"InTurn" in before.read_bytes()
    assert load_job(before).function.jobs == (job,)
    with pytest.raises(DamagedFile, match=r"bad.pkl: holds no job \(it names .*; submit it again"):
        load_job(bad)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(DamagedFile, match=r"torn.pkl: holds no job"):
        load_job(torn)


def test_a_job_that_others_could_have_written_is_not_loaded(tmp_path, monkeypatch):
    good = tmp_path / "good.pkl"
    cloudpickle_dump(DelayedSubmission(print), good)
    tmp_path.chmod(0o770)
    with pytest.raises(ResourceError, match=r"others may write it.*; chmod go-w /"):
        load_job(good)
    tmp_path.chmod(0o700)
    os.chown(good, 12345, -1)
    with pytest.raises(ResourceError, match=r"good.pkl: belongs to another user"):
        load_job(good)


def test_folders_of_jobs_are_their_owners_alone(start, home, tmp_path):
    record = start(Counting, {"out": str(tmp_path / "out"), "steps": 1, "step_s": 0.0})
    assert ended(record).state == "done"
    for folder in (home, home / "jobs", record.folder, record.log_folder):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_an_altered_job_says_so_and_ends(start, tmp_path):
    record = start(Counting, {"out": str(tmp_path / "out"), "steps": 1, "step_s": 0.0})
    assert ended(record).state == "done"
    pickle = next(record.log_folder.glob("*_submitted.pkl"))
    cloudpickle_dump(DelayedSubmission(_Touch(tmp_path / "ran")), pickle)
    process = subprocess.run(
        [sys.executable, "-P", "-m", "snpdeconv.launch.entry", str(record.log_folder)],
        env=os.environ | {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": record.scheduler_id,
                          "SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALID": "0"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 2
    assert "error: " in process.stderr
    assert "holds no job (it names pathlib" in process.stderr
    assert not (tmp_path / "ran").exists()


def test_a_job_waits_for_the_one_before_it(start, tmp_path):
    out = tmp_path / "n"
    first = start(Counting, {"out": str(out), "steps": 40})
    second = start(Counting, {"out": str(tmp_path / "second"), "steps": 1}, after=[first])
    now = read_status([second])[0]
    assert (now.state, now.reason) == ("waiting", f"after {first.id}")
    assert ended(second).state == "done"
    assert len(out.read_text().split()) == 40
    failing = start(Failing, {"how": "mistake"})
    ended(failing)
    with pytest.raises(ConfigError, match=rf"--after: {failing.id} failed \(phenotypes.tsv: no such column"):
        still_to_wait_for([failing], Target(SITE, "local", request()))
    assert still_to_wait_for([first], Target(SITE, "local", request())) == []
    slow = start(Counting, {"out": str(tmp_path / "slow"), "steps": 9999})
    with pytest.raises(ConfigError, match=r"is a process of this machine, and SLURM cannot wait for it"):
        still_to_wait_for([slow], Target(SITE, "slurm", request()))
    third = start(Counting, {"out": str(tmp_path / "never")}, after=[slow])
    await_lines(tmp_path / "slow")
    cancel(slow)
    now = ended(third)
    assert (now.state, now.reason) == ("cancelled", f"not begun: {slow.id} cancelled")
    assert not (tmp_path / "never").exists()


def test_sites_choose_where_ranks_meet(start):
    """A port that another program has, an address of the site, and an interface that is not there."""
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        theirs = SITE.model_copy(update={"environment": {**SITE.environment, **environment}})
        record = start(Summing, {}, asking=request(tasks_per_node=2), to=theirs)
        assert ended(record).reason.startswith(f"127.0.0.1:{port}: the ranks cannot meet there (")
    none = SITE.model_copy(update={"environment": {**SITE.environment, "GLOO_SOCKET_IFNAME": "ib7"}})
    record = start(Summing, {}, asking=request(tasks_per_node=2), to=none)
    assert ended(record).reason.startswith("GLOO_SOCKET_IFNAME: there is no network interface 'ib7' on ")


def test_a_taken_port_is_passed_over(monkeypatch):
    import socket

    from snpdeconv.launch import jobs as rendezvous

    first = rendezvous._free_port("17")
    second = rendezvous._free_port("17")  # another job of that number, of another cluster
    assert second == first + 1
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", first))  # as torch does
        listening.listen()
