"""The process that a job starts: ``python -P -m snpdeconv.launch.entry FOLDER``, in place of submitit's own.

submitit carries a job as a pickle. Here a pickle may name nothing but jobs of ours, whose fields are numbers
and the paths of their settings and inputs: an altered one is refused and runs nothing.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any, NoReturn

from submitit.core import submission, utils

from snpdeconv.console import end_process_after
from snpdeconv.errors import DamagedFile, UserError
from snpdeconv.files import require_own
from snpdeconv.launch.jobs import Job, SequentialJobs

_JOBS = (Job, SequentialJobs, utils.DelayedSubmission)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if isinstance(found, type) and issubclass(found, _JOBS):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def load_job(filename: str | Path) -> Any:
    """What submitit wrote of a job; refuses what others could have written, or what names no job of ours."""
    path = Path(filename)
    require_own(path.parent)
    require_own(path)
    try:
        with path.open("rb") as stream:
            return _Unpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, ImportError, AttributeError, ValueError, TypeError) as error:
        raise DamagedFile(f"holds no job ({error})", where=path, hint="submit it again") from error


def main() -> NoReturn:
    """Runs the job of this process's folder and place among the ranks, and ends the process with its code."""
    utils.pickle_load = load_job
    end_process_after(_run)


def _run() -> int:
    try:
        submission.process_job(sys.argv[1])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    main()
