"""Jobs of a few seconds that behave as training does, for what SLURM does to jobs."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from snpdeconv.errors import InputError
from snpdeconv.launch.jobs import Job
from snpdeconv.training.preemption import Preempted, PreemptionSignal


@dataclass(frozen=True, kw_only=True)
class Counting(Job):
    """Counts to `steps`, a line of the file a step; saves and stops when told, and goes on from there."""

    out: str
    steps: int = 100
    step_s: float = 0.1

    def work(self, config):
        path = Path(self.out)
        with PreemptionSignal() as stop:
            step = len(path.read_text().split()) if path.exists() else 0
            while step < self.steps:
                time.sleep(self.step_s)
                step += 1
                with path.open("a") as stream:
                    stream.write(f"{step}\n")
                if stop():
                    raise Preempted(step=step, checkpoint=path)
        return {"steps": step}


@dataclass(frozen=True, kw_only=True)
class Deaf(Job):
    """Never asks whether to stop; the second start ends at once."""

    out: str

    def work(self, config):
        with PreemptionSignal():
            if Path(self.out).exists():
                return {}
            Path(self.out).touch()
            time.sleep(300)
        return {}


@dataclass(frozen=True, kw_only=True)
class Failing(Job):
    """Fails on one rank, while the others wait for it."""

    how: str
    on_rank: int = 0

    def work(self, config):
        if int(os.environ.get("RANK", "0")) != self.on_rank:
            time.sleep(300)
        match self.how:
            case "mistake":
                raise InputError("no such column", where="phenotypes.tsv", hint="see the header")
            case "bug":
                raise ZeroDivisionError("division by zero")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
        return {}


@dataclass(frozen=True, kw_only=True)
class Summing(Job):
    """Adds up the ranks over the group that training would join."""

    def work(self, config):
        import torch

        from snpdeconv.training import distributed

        place = distributed.init_from_environment(timeout_min=1)
        total = distributed.sum_over_ranks(torch.tensor(place.rank + 1))
        distributed.shut_down()
        return {"total": int(total), "world_size": place.world_size}


@dataclass(frozen=True, kw_only=True)
class Greedy(Job):
    """Takes memory until somebody stops it."""

    def work(self, config):
        taken = []
        for _ in range(24):
            taken.append(bytearray(os.urandom(1) * 100 * 2**20))
            time.sleep(0.3)
        time.sleep(60)
        return {"taken": len(taken)}
