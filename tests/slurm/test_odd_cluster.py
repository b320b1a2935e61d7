"""A SLURM of another layout: typed GPUs, hidden partitions, no accounting, no requeue, odd names of nodes."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import (
    LIMIT_S,
    await_state,
    await_true,
    log_of,
    request,
    running_cluster,
    signal_job,
    site,
    told,
)
from toy_jobs import Counting, Failing, Greedy, Summing

from snpdeconv.config import load_config
from snpdeconv.errors import ConfigError
from snpdeconv.launch.control import cancel, log_file, read_log
from snpdeconv.launch.records import all_records
from snpdeconv.launch.slurm import Unanswered
from snpdeconv.launch.status import read_status, settle
from snpdeconv.launch.submit import choose_target

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3 * LIMIT_S)]


@pytest.fixture(scope="module")
def cluster(request, tmp_path_factory) -> Iterator[None]:
    """The odd layout in place of the usual one."""
    before = os.environ.get("SLURM_CONF")
    yield from running_cluster(request, tmp_path_factory, "odd")
    if before is not None:
        os.environ["SLURM_CONF"] = before


def target(*settings: str, num_elements: int = 1, **facts: object):
    asked = ("resources.mem_gib=1", "resources.cpus_per_task=1", "resources.timeout_min=60", *settings)
    config = load_config("small_cpu", overrides=list(asked))
    return choose_target(config, site=site(**facts), num_elements=num_elements)


def forgotten(record) -> None:
    """Waits until SLURM, which keeps no accounts here, does not know a job any longer."""
    words = ("squeue", "--noheader", "--states=all", "--format=%i")
    await_true(lambda: record.scheduler_id not in told(*words).split())


@pytest.mark.parametrize("kind, count, partition", [("3090", 4, "old"), ("1g.10gb", 7, "short,old")])
def test_gpus_whose_types_begin_with_a_digit(submit, kind, count, partition):
    gpus = f"resources.gpus_per_node={count}"
    chosen = target(gpus, partition=partition, gpu_request="gres", gpu_type=kind)
    assert (chosen.site.partition, chosen.request.gpus_per_node) == (partition, count)
    record = submit(Failing, to=chosen.site, asking=request(gpus_per_node=count), how="none")
    await_state(record, "done")
    with pytest.raises(
        ConfigError, match=rf"{count + 1} GPUs, 60 min; nodes there have .*gpu:{kind}:{count}"
    ):
        target(f"resources.gpus_per_node={count + 1}", partition=partition, gpu_request="gres", gpu_type=kind)


def test_partitions_as_sites_write_them(submit):
    assert target().site.partition == "short"
    assert target(partition="short,old").site.partition == "short,old"
    record = submit(Failing, to=target(partition="secret").site, how="none")
    await_state(record, "done")
    with pytest.raises(
        ConfigError,
        match=r"\(Invalid partition.*--partition: choose one of old, secret",
    ):
        target(partition="nowhere")
    with pytest.raises(ConfigError, match=r"150 min, and partition 'short' allows 120"):
        target("resources.timeout_min=150")
    assert target("resources.timeout_min=150", partition="short,old").site.partition == "short,old"


def test_what_a_profile_says_to_slurms_commands_changes_nothing(submit, monkeypatch, tmp_path):
    for name, value in {
        "SINFO_FORMAT": "%N", "SINFO_PARTITION": "old", "SQUEUE_FORMAT": "%u", "SQUEUE_STATES": "BOOT_FAIL",
        "SQUEUE_PARTITION": "secret", "SQUEUE_USERS": "nobody", "SACCT_FORMAT": "User", "SLURM_CLUSTERS": "x",
        "SBATCH_PARTITION": "secret", "SBATCH_ARRAY_INX": "1-3", "SBATCH_TIMELIMIT": "1", "USER": "nobody",
        "LOGNAME": "nobody", "SLURM_JOB_ID": "1", "SBATCH_CLUSTERS": "other", "SBATCH_TEST_ONLY": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert target().site.partition == "short"
    record = submit(Counting, out=str(tmp_path / "steps"), steps=9999)
    await_state(record, "running")
    assert cancel(record).state == "cancelled"


def test_what_slurm_would_refuse_is_refused_before_anything_is_queued(home):
    with pytest.raises(ConfigError, match=r"Invalid job array specification"):
        target(num_elements=22)
    assert target(num_elements=21)
    with pytest.raises(ConfigError, match=r"SLURM would not take the job .*account closed"):
        target(account="closed")
    assert not all_records()


def test_without_accounts_the_records_tell(submit, tmp_path, home):
    """Nobody looks while the jobs end; SLURM forgets them after two seconds."""
    out = tmp_path / "steps"
    cancelled = submit(Counting, out=str(out), steps=9999)
    never = submit(Counting, to=site(sbatch={"begin": "now+1hour"}), out=str(tmp_path / "never"))
    greedy = submit(Greedy)
    killed = submit(Failing, how="killed")
    await_true(lambda: out.exists() and len(out.read_text().split()) > 2)
    signal_job(cancelled, None)
    signal_job(never, None)
    for record in (cancelled, never, greedy, killed):
        forgotten(record)
    states = read_status([cancelled, never, greedy, killed])
    assert [one.state for one in states] == ["cancelled", "cancelled", "failed", "failed"], log_of(greedy)
    assert states[0].reason == "cancelled"
    assert states[1].reason == "it left SLURM's queue before it began"
    assert states[2].reason.startswith("killed for memory; raise resources.mem_gib"), states[2].reason
    assert states[3].reason.startswith("killed (exit code 137), as SLURM does for memory"), states[3].reason
    started = time.monotonic()
    assert "".join(read_log(log_file(cancelled), record=cancelled, follow=True))
    assert time.monotonic() - started < 20
    assert greedy.outcome() is None  # nothing was written by looking
    settle(states and [one.record for one in states])
    assert greedy.outcome().end == "failed"


def test_a_site_that_forbids_requeue(submit, tmp_path):
    out = tmp_path / "steps"
    record = submit(Counting, out=str(out), steps=9999)
    await_true(lambda: out.exists() and len(out.read_text().split()) > 2)
    signal_job(record, "USR2")
    failed = await_state(record, "failed")
    assert failed.reason.startswith("saved; its time was up, and SLURM does not queue it again"), (
        failed.reason
    )
    assert failed.reason.endswith("; submit it again")  # a training: the command that goes on
    assert failed.starts == 1


@pytest.fixture
def sbatch(tmp_path, monkeypatch, cluster):
    """Puts lines of a shell script around the real sbatch, which they call by $REAL."""
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()

    def wrap(lines: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "sbatch").write_text(f"#!/bin/bash\nREAL={real}\n{lines}\n")
        (folder / "sbatch").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return wrap


def test_a_submission_that_times_out_is_found_in_the_queue(submit, sbatch, tmp_path):
    sbatch(
        '"$REAL" "$@" >/dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1'
    )
    record = submit(Counting, out=str(tmp_path / "steps"), steps=3)
    assert record.scheduler_id
    await_state(record, "done")


def test_a_submission_that_nobody_waits_for_is_found_later(submit, sbatch, tmp_path):
    """Two Ctrl-C: the job is queued all the same, runs, and can be looked at and cancelled."""
    sbatch(f'touch {tmp_path}/asked; sleep 3; exec "$REAL" "$@"')

    def interrupt() -> None:
        await_true((tmp_path / "asked").exists)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.3)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Unanswered):
        submit(Counting, out=str(tmp_path / "steps"), steps=9999)
    (record,) = all_records()
    assert record.scheduler_id == ""
    assert "has not answered its submission" in read_status([record])[0].reason
    await_true((tmp_path / "steps").exists)
    now = await_state(record, "running")
    assert now.record.scheduler_id
    settle([record])
    assert all_records()[0].scheduler_id == now.record.scheduler_id
    assert cancel(record).state == "cancelled"


def test_one_ctrl_c_withdraws_the_job(submit, sbatch, tmp_path):
    sbatch(f'touch {tmp_path}/asked; sleep 1; exec "$REAL" "$@"')

    def interrupt() -> None:
        await_true((tmp_path / "asked").exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        submit(Counting, out=str(tmp_path / "steps"), steps=9999)
    assert told("squeue", "--noheader", "--states=PENDING,RUNNING") == ""


def test_ranks_of_nodes_that_dns_does_not_know(submit):
    one = submit(Summing, to=site(partition="old"), asking=request(tasks_per_node=2))
    two = submit(Summing, to=site(partition="old"), asking=request(nodes=2))
    for record in (one, two):
        await_state(record, "done")
        assert record.outcome().result == {"total": 3, "world_size": 2}


def test_the_home_of_another_cluster(submit, tmp_path, monkeypatch):
    record = submit(Counting, out=str(tmp_path / "steps"), steps=1)
    forgotten(record)
    from dataclasses import replace

    (record.folder / "outcome.json").unlink()
    (now,) = read_status([replace(record, cluster="far-away")])
    assert (now.state, now.reason) == ("unknown", "a job of SLURM's cluster far-away; here is odd")
