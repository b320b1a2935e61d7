"""Trainings on two nodes that are killed at random moments end like the one that nobody disturbed.

SNPDECONV_KILLS says how often (4, one of each kind), SNPDECONV_KILLS_SEED where the moments come from.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from command_line import FAST
from conftest import (
    LIMIT_S,
    await_state,
    control,
    digest,
    log_of,
    nodes_of,
    only_run,
    points,
    ranks_of,
    signal_job,
    words,
)
from required import tell

from snpdeconv.launch.records import Record, find_record
from snpdeconv.launch.status import read_progress, read_status

NUM_KILLS = int(os.environ.get("SNPDECONV_KILLS", "4"))
KILLS_A_RUN = 5
NUM_RANKS = 2
SETTINGS = (
    *FAST, "training.epochs=60", "training.patience=60", "training.checkpoint_every_steps=20",
    "tracking.log_every_steps=1", f"resources.nodes={NUM_RANKS}", "resources.gpus_per_node=1",
    "resources.timeout_min=60", "precision.amp=bf16",
)  # fmt: skip
OF_THE_MACHINE = ("throughput/", "memory/")
"""Metrics of which no two runs have the same values, though the same steps."""

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(LIMIT_S * (2 + NUM_KILLS))]


def kill_rank(record: Record, rng: random.Random) -> None:
    """Nobody is told, nothing is saved, and SLURM does not queue the job again."""
    rng.choice(ranks_of(record)).kill()


def terminate(record: Record, rng: random.Random) -> None:
    """SIGTERM, SIGKILL some seconds later; then the job is queued again, or over."""
    rng.choice([lambda: control("requeue", record.scheduler_id), lambda: signal_job(record, None)])()


def notice(record: Record, rng: random.Random) -> None:
    """What comes before the time limit, and before a preemption."""
    signal_job(record, "USR2")


def node_down(record: Record, rng: random.Random) -> None:
    """SLURM gives the node up with all that runs there, and queues the job again."""
    node = rng.choice(nodes_of(record))
    control("update", f"nodename={node}", "state=down", "reason=test")
    control("update", f"nodename={node}", "state=resume")


WAYS: dict[str, Callable[[Record, random.Random], None]] = {
    "SIGKILL of a rank": kill_rank,
    "SIGTERM": terminate,
    "USR2": notice,
    "node down": node_down,
}


@dataclass
class Killer:
    """Kills one run of training at drawn steps, in the given ways; keeps how, and after which step."""

    out: Path
    num_steps: int
    targets: list[int]
    ways: list[str]
    rng: random.Random
    landed: list[tuple[str, int]] = field(default_factory=list)
    _last: int = 0

    def visit(self, record: Record) -> None:
        """Kills if the moment has come: all ranks run, and training is past the next step that was drawn."""
        if not self.ways:
            return
        ranks = ranks_of(record)
        # More than at the last kill: the training has gone on, and beyond what is done again.
        if len(ranks) < NUM_RANKS or read_progress(self.out).step < max(self.targets[0], self._last + 1):
            return
        time.sleep(self.rng.uniform(0, 0.1))
        if not self._is_in_training(record) or ranks_of(record) != ranks:
            return
        way = self.ways[0]
        WAYS[way](record, self.rng)
        _, alive = psutil.wait_procs(ranks, timeout=LIMIT_S)
        assert not alive, f"{way} leaves ranks alive\n{log_of(record)}"
        self._last = read_progress(self.out).step
        outcome = record.outcome()
        if self._last < self.num_steps and (outcome is None or outcome.end != "done"):
            self.landed.append((self.ways.pop(0), self._last))
            del self.targets[0]

    def _is_in_training(self, record: Record) -> bool:
        (now,) = read_status([record])
        return now.state == "running" and now.progress.step < self.num_steps


def curves(home: Path, name: str) -> dict[str, list[tuple[int, float]]]:
    """All metrics of a run but those sampled by the clock; of those of the machine the steps only."""
    names = only_run(home, name=name).data.metrics
    told = {metric: points(home, metric, name=name) for metric in names if not metric.startswith("system/")}
    return {
        metric: [(step, 0.0 if metric.startswith(OF_THE_MACHINE) else value) for step, value in curve]
        for metric, curve in told.items()
    }


def num_resumed(records: list[Record]) -> int:
    """How often a training went on from a checkpoint."""
    return sum(record.log_path().read_text().count("going on from") for record in records)


def test_killed_at_random_moments(clusters, cohort, home, run, nodes_back, request):
    seed = int(os.environ.get("SNPDECONV_KILLS_SEED", str(time.time_ns() % 100_000)))
    rng = random.Random(seed)
    tell(f"{NUM_KILLS} kills of real trainings; SNPDECONV_KILLS_SEED={seed}", config=request.config)
    to_do = [way for _ in range(-(-NUM_KILLS // len(WAYS))) for way in rng.sample(list(WAYS), len(WAYS))]
    del to_do[NUM_KILLS:]

    def submit(name: str) -> Record:
        ran = run("submit", "large_multi_gpu", "--data", cohort, "--name", name, "--cluster", "test",
                  "--out", name, *words(*SETTINGS))  # fmt: skip
        assert ran.code == 0, ran.err
        return find_record(None)

    await_state(submit("whole"), "done")
    expected, weights = curves(home, "whole"), digest(clusters / "whole")
    num_steps = len(expected["train/loss"])
    assert [step for step, _ in expected["train/loss"]] == list(range(1, num_steps + 1))

    landed: Counter[str] = Counter()
    num_runs = num_submitted = 0
    while to_do:
        num_runs += 1
        name = f"killed-{num_runs}"
        ways = to_do[:KILLS_A_RUN]
        targets = sorted(rng.randint(5, int(0.85 * num_steps)) for _ in ways)
        killer = Killer(clusters / name, num_steps, targets, ways, rng)
        records = [submit(name)]
        deadline = time.monotonic() + LIMIT_S * (1 + len(ways))
        while (now := read_status(records[-1:])[0]).state != "done":
            assert time.monotonic() < deadline, log_of(records[-1])
            if not now.is_live:
                records.append(submit(name))  # the same command goes on
            elif now.state == "running":
                killer.visit(records[-1])
            time.sleep(0.05)
        # Each kill ended a start of the job in the middle of its training: the next one went on with it.
        assert num_resumed(records) >= len(killer.landed)
        assert digest(clusters / name) == weights, f"seed {seed}: {name} has other weights"
        now_curves = curves(home, name)
        assert now_curves.keys() == expected.keys()
        for metric, curve in expected.items():
            assert now_curves[metric] == curve, f"seed {seed}: {name} has another {metric}"
        to_do = [*killer.ways, *to_do[KILLS_A_RUN:]]
        landed.update(way for way, _ in killer.landed)
        num_submitted += len(records)
        told = ", ".join(f"{way} after step {step}" for way, step in killer.landed)
        tell(f"{name}, {num_steps} steps: {told}: equal", config=request.config)
    assert landed.total() == NUM_KILLS
    told = ", ".join(f"{count} {how}" for how, count in landed.items())
    tell(f"{landed.total()} of {NUM_KILLS} kills landed in training ({told}; seed {seed}); {num_runs} runs "
         f"in {num_submitted} submissions: weights and metrics all equal", config=request.config)  # fmt: skip
