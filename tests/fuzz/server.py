"""Runs `snpdeconv` commands in forked children of one process that has imported everything already.

A line of JSON in (folder, words, env, seconds, gib), a line of JSON out (code, seconds, gib, out, err). So an
input costs a fork and its work, not seven seconds of imports, and no command sees what another one left.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

GIB = 2**30


def run(job: dict[str, object]) -> dict[str, object]:
    """One command in a child of its own, within limits of time and memory."""
    folder = Path(str(job["folder"]))
    paths = [folder.with_name(f"{folder.name}.{stream}") for stream in ("out", "err")]
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _command(job, paths)
    deadline = started + float(job["seconds"])  # type: ignore[arg-type]
    code: int | str = "hang"
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            code = (
                os.waitstatus_to_exitcode(status) if code != "hang" or time.monotonic() < deadline else code
            )
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            _, _, usage = os.wait4(child, 0)
            break
        time.sleep(0.003)
    out, err = (path.read_text(errors="replace") for path in paths)
    for path in paths:
        path.unlink()
    return {
        "code": code, "seconds": time.monotonic() - started, "gib": usage.ru_maxrss * 1024 / GIB, "out": out, "err": err,
    }  # fmt: skip


def _command(job: dict[str, object], paths: list[Path]) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(str(job["folder"]))
        os.environ.update(job["env"])  # type: ignore[arg-type]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for stream, path in enumerate(paths, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
        # What is private and can be written to, beyond what the libraries have already.
        held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        most = held + int(float(job["gib"]) * GIB)  # type: ignore[arg-type]
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.argv = ["snpdeconv", *job["words"]]  # type: ignore[misc]
        from snpdeconv.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What a library prints while it is imported is no answer.
    import optuna  # noqa: F401

    import snpdeconv.cli
    import snpdeconv.genetics.formats.plink
    import snpdeconv.genetics.formats.vcf
    import snpdeconv.pipelines.predict
    import snpdeconv.pipelines.rank
    import snpdeconv.pipelines.train  # noqa: F401

    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    serve()
