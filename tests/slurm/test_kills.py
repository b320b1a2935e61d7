"""Trainings of two ranks that are killed at random moments end like the one that nobody disturbed.

SNPDECONV_KILLS says how often (20), SNPDECONV_KILLS_SEED where the moments come from.
"""

import hashlib
import json
import os
import random
import subprocess
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from command_line import FAST
from conftest import await_state, log_of, only_run, points, words
from required import tell

from snpdeconv.launch.records import Record, find_record
from snpdeconv.launch.status import read_status

NUM_KILLS = int(os.environ.get("SNPDECONV_KILLS", "20"))
KILLS_A_RUN = 4
SETTINGS = (
    *FAST, "training.epochs=60", "training.patience=60", "training.checkpoint_every_steps=20",
    "tracking.log_every_steps=1", "resources.nodes=1", "resources.gpus_per_node=2",
    "resources.timeout_min=60",
)  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(120 + 120 * NUM_KILLS)]


def kill_rank(record: Record, rng: random.Random) -> None:
    """SIGKILL to one of the job's Python processes."""
    ranks = []
    for process in psutil.process_iter():
        try:
            words, environment = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        if "submitit.core._submit" in words and environment.get("SLURM_JOB_ID") == record.scheduler_id:
            ranks.append(process)
    # srun has the module in its words as well.
    ranks = [process for process in ranks if "SLURM_PROCID" in process.environ()]
    if ranks:
        rng.choice(ranks).kill()


def requeue(record: Record, rng: random.Random) -> None:
    """SIGTERM, SIGKILL some seconds later, and the job is queued again."""
    subprocess.run(["scontrol", "requeue", record.scheduler_id], check=False)


def cancel(record: Record, rng: random.Random) -> None:
    """SIGTERM, SIGKILL some seconds later, and the job is over."""
    subprocess.run(["scancel", record.scheduler_id], check=False)


def notice(record: Record, rng: random.Random) -> None:
    """What comes before the time limit, and before a preemption."""
    subprocess.run(["scancel", "--signal=USR2", record.scheduler_id], check=False)


def node_down(record: Record, rng: random.Random) -> None:
    words = ["squeue", "--noheader", "--format=%N", f"--jobs={record.scheduler_id}"]
    node = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    if node:
        update = ["scontrol", "update", f"nodename={node}"]
        subprocess.run([*update, "state=down", "reason=test"], check=True)
        subprocess.run([*update, "state=resume"], check=True)


WAYS = (kill_rank, requeue, cancel, notice, node_down)


def curves(home: Path, name: str) -> dict[str, list[tuple[int, float]]]:
    """All metrics of a run but those of the machine."""
    names = only_run(home, name=name).data.metrics
    return {metric: points(home, metric, name=name) for metric in names if not metric.startswith("system/")}


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()


def wait_running(record: Record) -> bool:
    """Whether it came to run."""
    deadline = time.monotonic() + 120
    while True:
        (now,) = read_status([record])
        if now.state == "running" or not now.is_live:
            return now.state == "running"
        assert time.monotonic() < deadline, f"{now.state}: {now.reason}\n{log_of(record)}"
        time.sleep(0.3)


def test_killed_at_random_moments(clusters, cohort, home, run, nodes_back, request):
    seed = int(os.environ.get("SNPDECONV_KILLS_SEED", str(time.time_ns() % 100_000)))
    rng = random.Random(seed)
    ways = [WAYS[place % len(WAYS)] for place in range(NUM_KILLS)]
    rng.shuffle(ways)

    def submit(name: str) -> Record:
        ran = run("submit", "large_multi_gpu", "--data", cohort, "--name", name, "--cluster", "test",
                  "--out", name, *words(*SETTINGS))  # fmt: skip
        assert ran.code == 0, ran.err
        return find_record(None)

    whole = submit("whole")
    await_state(whole, "done", timeout_s=200)
    began = json.loads((whole.folder / "starts.jsonl").read_text())["time"]
    takes_s = whole.outcome().time - began
    expected, weights = curves(home, "whole"), digest(clusters / "whole")
    assert [step for step, _ in expected["train/loss"]] == list(range(1, len(expected["train/loss"]) + 1))

    landed: Counter[str] = Counter()
    by_hand, runs = 0, 0
    while ways:
        runs += 1
        name = f"killed-{runs}"
        record, of_this_run = submit(name), 0
        deadline = time.monotonic() + 600
        while read_status([record])[0].state != "done":
            assert time.monotonic() < deadline, log_of(record)
            if ways and of_this_run < KILLS_A_RUN and wait_running(record):
                time.sleep(rng.uniform(0, takes_s))
                if read_status([record])[0].state == "running":
                    ways[-1](record, rng)
                    landed[ways.pop().__name__] += 1
                    of_this_run += 1
                    time.sleep(2)
            elif not read_status([record])[0].is_live and read_status([record])[0].state != "done":
                record = submit(name)  # the same command goes on
                by_hand += 1
            else:
                time.sleep(0.5)
        assert digest(clusters / name) == weights, f"seed {seed}: {name} has other weights"
        now = curves(home, name)
        assert now.keys() == expected.keys()
        for metric, curve in expected.items():
            assert now[metric] == curve, f"seed {seed}: {name} has another {metric}"
    told = ", ".join(f"{count} {how}" for how, count in landed.items())
    tell(f"{landed.total()} kills ({told}; seed {seed}) in {runs} runs, {by_hand} submitted again: all equal",
         config=request.config)  # fmt: skip
