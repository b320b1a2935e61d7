"""Submits a retraining, and with --every also the next call of itself: a schedule without cron.

    python jobs/retrain.py --cluster NAME --name MODEL --data FOLDER [--every 7days] [options of retrain]

The retraining ends at once when nothing has changed. scancel --name=snpdeconv-retrain-MODEL stops the chain.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from snpdeconv.cli import main as snpdeconv
from snpdeconv.errors import ResourceError, UserError
from snpdeconv.files import private_folder
from snpdeconv.launch.records import jobs_dir
from snpdeconv.launch.scheduler import run_slurm, what_slurm_says
from snpdeconv.launch.site import Site, load_site
from snpdeconv.tracking.registry import check_model_name


def main() -> None:
    """Queues the next link, then submits the retraining."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cluster", required=True, help="a jobs/clusters/NAME.yaml, its path, or local")
    parser.add_argument("--name", required=True, help="name of the model")
    parser.add_argument("--every", metavar="TIME", help="as sbatch counts it: 12hours, 7days")
    known, rest = parser.parse_known_args()
    try:
        check_model_name(known.name)  # it becomes part of a job's name and of a file's
        if known.every is not None:
            # First, so that a retraining that cannot be submitted today does not end the chain.
            name = f"snpdeconv-retrain-{known.name}"
            queue_next(load_site(known.cluster), name=name, every=known.every)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.argv = ["snpdeconv", "retrain", "--cluster", known.cluster, "--name", known.name, *rest]
    snpdeconv()


def queue_next(site: Site, *, name: str, every: str) -> None:
    """Queues this very command for later, unless another link waits already.

    Raises:
        ResourceError: There is no SLURM, or it does not take it.
    """
    words = ["squeue", "--noheader", "--me", "--states=PENDING", f"--name={name}", "--format=%i"]
    if waiting := _slurm(words).split():
        print(f"next      waits already (SLURM {waiting[0]})")
        return
    folder = private_folder(jobs_dir())
    facts = {"partition": site.partition, "account": site.account, "qos": site.qos}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), *sys.argv[1:]]
    queued = _slurm(
        [
            "sbatch", "--parsable", f"--begin=now+{every}", f"--job-name={name}", "--ntasks=1", "--mem=1G",
            "--time=30", f"--output={folder}/{name}-%j.log",
            *(f"--{option}={value}" for option, value in facts.items() if value is not None),
            f"--wrap={shlex.join(command)}",
        ]
    ).strip()  # fmt: skip
    print(f"next      in {every} (SLURM {queued})", flush=True)


def _slurm(words: list[str]) -> str:
    answer = run_slurm(words)
    if answer.returncode:
        raise ResourceError(
            f"SLURM does not queue the next retraining ({what_slurm_says(answer)})",
            where="--every",
            hint="leave it out, and call this from cron where there is no SLURM",
        )
    return answer.stdout


if __name__ == "__main__":
    main()
