"""Ranks simulated studies with our methods and with those that people use today, on the same people.

usage: python benchmarks/ranking.py [--seeds 1000-1019] [--methods ours|peers|NAME ...] [--cells NAME ...]
What is already in the work folder is not run again, so that a run can be stopped, split and continued.
`--report` writes benchmarks/results/ranking.json from it; `--list` names the cells and methods.
"""

import argparse
import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import TUNING_SEEDS
from ranking_cells import GRID, Cell
from ranking_metrics import judge
from ranking_peers import PEERS, Method, association

from snpdeconv.version import code_version

WORK = Path("build/bench-ranking")
SEEDS = "1000-1019"


def ours() -> dict[str, Method]:
    """Imported late, so that the peers run whatever state our methods are in."""
    from ranking_methods import OURS

    return OURS


def method(name: str) -> Method:
    return PEERS[name] if name in PEERS else ours()[name]


@dataclass(frozen=True)
class Sizes:
    """What is the same for all studies of a run."""

    num_samples: int = 2_000
    num_variants: int = 2_000
    num_causal: int = 10

    def __str__(self) -> str:
        return f"{self.num_samples}x{self.num_variants}x{self.num_causal}"


@dataclass(frozen=True)
class Job:
    """The cells of one panel and seed, which share their genotypes, and what is missing in each."""

    seed: int
    missing: tuple[tuple[Cell, tuple[str, ...]], ...]
    sizes: Sizes
    cache: Path


def read_cache(cache: Path) -> dict[tuple[str, str, int, str], dict[str, Any]]:
    """The newest record of each (size, cell, seed, method)."""
    if not cache.exists():
        return {}
    records = [json.loads(line) for line in cache.read_text().splitlines() if line]
    return {(r["size"], r["cell"], r["seed"], r["method"]): r for r in records}


def append(cache: Path, record: dict[str, Any]) -> None:
    """One whole line, also with several processes at once."""
    with cache.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(record) + "\n")


def run_job(job: Job) -> list[str]:
    """Runs what is missing; a method that fails is told of and tried again by the next run."""
    failed = []
    for cell, names in job.missing:
        study = cell.study(seed=job.seed, **vars(job.sizes))
        marginal = association(study).score
        for name in names:
            where = {"size": str(job.sizes), "cell": cell.name, "seed": job.seed, "method": name}
            try:
                answer, cost = measured(method(name).run, study)
                record = where | judge(study, answer, marginal=marginal) | cost
            except Exception:
                failed.append(f"{cell.name}, seed {job.seed}, {name}:\n{traceback.format_exc()}")
                continue
            append(job.cache, record | {"code": code_version(), "at": time.strftime("%Y-%m-%d %H:%M:%S")})
            print(line(record), flush=True)
    return failed


def measured(run: Callable[[Any], Any], study: Any) -> tuple[Any, dict[str, float]]:
    """The answer, wall and CPU seconds, and the most memory that it took beyond what was there."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = _resident_gib("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    answer = run(study)
    cost = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return answer, cost | {"peak_gib": round(_resident_gib("VmHWM") - before, 3)}


def _resident_gib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 2**20


def line(record: dict[str, Any]) -> str:
    parts = [f"{record['at'] if 'at' in record else time.strftime('%H:%M:%S')} {record['cell']:34s}"]
    parts += [f"{record['seed']} {record['method']:16s}"]
    if "auprc" in record:
        parts.append(f"auprc {record['auprc']:.3f}")
    if "test" in record:
        parts.append(f"test {record['test']:.3f}")
    if "sets" in record:
        parts.append(f"sets {record['sets']['covering']}/{record['sets']['num']}")
    if "pairs" in record:
        parts.append(f"pairs {record['pairs']['true']}/{record['pairs']['num']}")
    return "  ".join([*parts, f"{record['seconds']:.1f} s"])


def plan(arguments: argparse.Namespace, sizes: Sizes, cache: Path) -> Iterator[Job]:
    """Jobs seed by seed, so that what is done at any time is a fair part of the whole."""
    known = {} if arguments.again else read_cache(cache)
    for seed in arguments.seeds:
        for panel in dict.fromkeys(cell.panel for cell in arguments.cells):
            missing = []
            for cell in arguments.cells:
                wanted = tuple(
                    name
                    for name in arguments.methods
                    if _applies(cell, name) and (str(sizes), cell.name, seed, name) not in known
                )
                if cell.panel == panel and wanted:
                    missing.append((cell, wanted))
            if missing:
                yield Job(seed=seed, missing=tuple(missing), sizes=sizes, cache=cache)


def _applies(cell: Cell, name: str) -> bool:
    asked = method(name)
    return cell.kind in asked.kinds and (asked.on_controls or not cell.is_null)


def run_all(jobs: list[Job], *, workers: int) -> list[str]:
    if workers == 1:
        return [message for job in jobs for message in run_job(job)]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        running = [pool.submit(run_job, job) for job in jobs]
        return [message for done in as_completed(running) for message in done.result()]


def seed_list(text: str) -> list[int]:
    """1000-1019 or 1,2,5."""
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]


def choose(names: list[str] | None, known: list[str], *, what: str) -> list[str]:
    unknown = [name for name in names or () if name not in known]
    if unknown:
        sys.exit(f"unknown {what} {', '.join(unknown)}; there are: {', '.join(known)}")
    return names or known


def method_names(asked: list[str]) -> list[str]:
    """Names; "peers" and "ours" stand for all of a kind but the slow ones."""
    names: list[str] = []
    for word in asked:
        if word == "peers":
            names += PEERS
        elif word == "ours":
            names += [name for name, one in ours().items() if not one.slow]
        else:
            names += choose([word], [word] if word in PEERS else [*PEERS, *ours()], what="method")
    return list(dict.fromkeys(names))


def use_one_thread() -> None:
    """Starts anew where the libraries could take more cores than their times are told for."""
    limits = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    if any(name not in os.environ for name in limits):
        os.execve(sys.executable, [sys.executable, *sys.argv], limits | os.environ)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["peers", "ours"], help="names, 'peers' or 'ours'")
    parser.add_argument("--cells", nargs="+", help="names; all by default")
    parser.add_argument("--seeds", type=seed_list, default=seed_list(SEEDS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the records")
    parser.add_argument(
        "--again", action="store_true", help="run also what is there; the newest record counts"
    )
    parser.add_argument("--samples", type=int, default=Sizes.num_samples)
    parser.add_argument("--variants", type=int, default=Sizes.num_variants)
    parser.add_argument("--causal", type=int, default=Sizes.num_causal)
    parser.add_argument(
        "--report", action="store_true", help="write benchmarks/results/ranking.json, run nothing"
    )
    parser.add_argument("--out", type=Path, help="where to write it instead")
    parser.add_argument("--seconds-cell", action="store_true", help="5,000 x 10,000: ours against pysusie")
    parser.add_argument("--scale", action="store_true", help="20,000 x 100,000 in a fresh process, alone")
    parser.add_argument("--list", action="store_true", help="name the cells and methods, run nothing")
    arguments = parser.parse_args()
    if arguments.scale:
        script = str(Path(__file__).with_name("ranking_scale.py"))
        sys.exit(subprocess.run([sys.executable, script], check=False).returncode)
    use_one_thread()
    by_name = {cell.name: cell for cell in GRID}
    if arguments.list:
        print("cells:", *by_name, "methods:", *PEERS, *ours(), sep="\n  ")
        return
    if arguments.seconds_cell:
        arguments.samples, arguments.variants, arguments.causal = 5_000, 10_000, 20
        arguments.cells, arguments.methods = (
            ["additive thinned"],
            ["susie", "single_effects", "deconvolution"],
        )
    arguments.cells = [by_name[name] for name in choose(arguments.cells, list(by_name), what="cell")]
    sizes = Sizes(arguments.samples, arguments.variants, arguments.causal)
    arguments.work.mkdir(parents=True, exist_ok=True)
    cache = arguments.work / "records.jsonl"
    if arguments.report:
        from ranking_report import write_report

        if strangers := set(arguments.seeds) & set(TUNING_SEEDS):
            sys.exit(f"seeds {min(strangers)} to {max(strangers)} are for choices, not for reports")
        write_report(read_cache(cache), size=str(sizes), seeds=arguments.seeds, path=arguments.out)
        return
    arguments.methods = method_names(arguments.methods)
    if "plink2" not in PEERS:
        print("plink2 is not on the PATH: its association is left out", file=sys.stderr)
    jobs = list(plan(arguments, sizes, cache))
    count = sum(len(names) for job in jobs for _, names in job.missing)
    print(f"{count} runs in {len(jobs)} panels, {sizes}", flush=True)
    failed = run_all(jobs, workers=arguments.workers)
    for message in failed:
        print(message, file=sys.stderr)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
