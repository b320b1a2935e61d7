"""What SLURM does to jobs, with real jobs on a real cluster: no step is lost or done twice."""

from pathlib import Path

import pytest
from conftest import LIMIT_S, await_state, await_true, control, log_of, nodes_of, request, signal_job, site
from toy_jobs import Counting, Deaf, Failing, Summing

from snpdeconv.errors import ResourceError
from snpdeconv.launch.control import cancel

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3 * LIMIT_S)]


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def running(path: Path) -> None:
    await_true(lambda: len(lines(path)) >= 3)


def assert_counted(path: Path, steps: int) -> None:
    assert lines(path) == [str(step) for step in range(1, steps + 1)]


def test_the_time_limit_is_the_end_after_so_many_requeues(submit, tmp_path):
    record = submit(
        Counting, to=site(max_requeues=0), asking=request(timeout_min=1), out=str(tmp_path / "s"), steps=9999
    )
    running(tmp_path / "s")
    signal_job(record, "USR2")
    failed = await_state(record, "failed")
    assert "reached its time limit too often" in failed.reason
    assert "resources.timeout_min" in failed.reason
    assert failed.starts == 1


def test_a_job_of_higher_priority_takes_the_node_for_a_while(submit, tmp_path):
    out = tmp_path / "steps"
    all_of_gpu1 = {"gpu_request": "gres", "sbatch": {"nodelist": "gpu1"}}
    asking = request(gpus_per_node=4)
    low = submit(
        Counting, to=site(partition="scavenge", **all_of_gpu1), asking=asking, out=str(out), steps=150
    )
    running(out)
    to = site(partition="gpu", **all_of_gpu1)
    high = submit(Counting, to=to, asking=asking, out=str(tmp_path / "high"), steps=20)
    await_state(high, "done")
    assert await_state(low, "done").starts == 2
    assert_counted(out, 150)


def test_an_administrator_requeues(submit, tmp_path):
    out = tmp_path / "steps"
    record = submit(Counting, out=str(out), steps=80)
    running(out)
    control("requeue", record.scheduler_id)
    assert await_state(record, "done").starts == 2
    assert_counted(out, 80)


def test_a_node_goes_down(submit, tmp_path, nodes_back):
    out = tmp_path / "steps"
    to = site(partition="gpu")
    record = submit(Counting, to=to, out=str(out), steps=80)
    running(out)
    (node,) = nodes_of(record)
    control("update", f"nodename={node}", "state=down", "reason=test")
    assert await_state(record, "done").starts == 2
    assert_counted(out, 80)


def test_cancelled_is_cancelled(submit, tmp_path):
    record = submit(Counting, out=str(tmp_path / "steps"), steps=9999)
    running(tmp_path / "steps")
    assert cancel(record).state == "cancelled"
    assert cancel(record).state == "cancelled"  # and stays so
    assert record.num_starts() == 1


def test_cancelled_by_hand_is_seen(submit, tmp_path):
    record = submit(Counting, out=str(tmp_path / "steps"), steps=9999)
    running(tmp_path / "steps")
    signal_job(record, None)
    assert await_state(record, "cancelled").reason.startswith("cancelled")


@pytest.mark.parametrize(
    "how, reason",
    [
        ("mistake", "phenotypes.tsv: no such column; see the header"),
        ("bug", "ZeroDivisionError: division by zero (see the log)"),
        ("killed", "failed; the log ends: srun: error: cpu1: task 0: Killed"),
    ],
)
def test_a_failure_says_why_and_is_not_tried_again(submit, how, reason):
    record = submit(Failing, how=how)
    failed = await_state(record, "failed")
    assert failed.reason.startswith(reason)
    assert failed.starts == 1
    assert ("Traceback" in log_of(record)) == (how == "bug")


def test_ranks_of_two_nodes_meet(submit):
    to = site(partition="gpu", gpu_request="gres")
    record = submit(Summing, to=to, asking=request(nodes=2, tasks_per_node=2, gpus_per_node=2))
    await_state(record, "done")
    assert record.outcome().result == {"total": 10, "world_size": 4}


def test_one_rank_that_fails_ends_all(submit):
    to = site(partition="gpu")
    record = submit(Failing, to=to, asking=request(nodes=2, tasks_per_node=2), how="mistake", on_rank=3)
    assert await_state(record, "failed").reason.startswith("phenotypes.tsv: no such column")


def test_work_that_never_asks_is_done_again(submit, tmp_path):
    record = submit(Deaf, asking=request(signal_delay_s=10), out=str(tmp_path / "began"))
    await_true((tmp_path / "began").exists)
    signal_job(record, "USR2")
    assert await_state(record, "done").starts == 2


def test_all_ranks_leave_together_and_come_back(submit, tmp_path):
    out = tmp_path / "steps"
    record = submit(Counting, asking=request(tasks_per_node=2), out=str(out), steps=80)
    running(out)
    signal_job(record, "USR2")
    assert await_state(record, "done").starts == 2


def test_a_dependent_job_waits_and_falls_with_the_first(submit, tmp_path):
    first = submit(Counting, out=str(tmp_path / "first"), steps=30)
    second = submit(Counting, out=str(tmp_path / "second"), steps=1, after=[first])
    assert await_state(second, "done").starts == 1
    assert len(lines(tmp_path / "first")) == 30
    failing = submit(Failing, how="mistake")
    never = submit(Counting, out=str(tmp_path / "never"), steps=1, after=[failing])
    assert await_state(never, "cancelled", "failed").starts == 0


def test_what_slurm_refuses_is_told_in_one_line(submit, home):
    with pytest.raises(ResourceError, match=r"SLURM does not take the job \(.*partition.*\)"):
        submit(Counting, to=site(partition="nowhere"), out="")


def test_a_container_without_slurm_in_it_is_requeued_too(submit, tmp_path, monkeypatch):
    """The stand-in for a runtime hides SLURM's commands from the job, as an image does."""
    import sys

    from snpdeconv.launch.site import Container

    binaries = tmp_path / "bin"
    binaries.mkdir()
    runtime = binaries / "ch-run"
    runtime.write_text(
        '#!/bin/bash\nwhile [ "$1" != -- ]; do shift; done\nshift\nexport PATH=/nonexistent\nexec "$@"\n'
    )
    runtime.chmod(0o755)
    to = site(
        container=Container(runtime="charliecloud", image="/image", python=sys.executable),
        setup=(f"export PATH={binaries}:$PATH",),
    )
    out = tmp_path / "steps"
    record = submit(Counting, to=to, out=str(out), steps=80)
    running(out)
    signal_job(record, "USR2")
    assert await_state(record, "done").starts == 2
    assert_counted(out, 80)
