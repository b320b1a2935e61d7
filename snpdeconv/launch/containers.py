"""How each container runtime starts the interpreter of an image: words, mounts and variables.

Knows no scheduler and no job.
"""

from __future__ import annotations

import getpass
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from snpdeconv.errors import ConfigError
from snpdeconv.launch.site import Container

# Charliecloud shows the host's in every image.
_SHOWN_ALWAYS = Path("/tmp")


def variables_inside(home: Path) -> dict[str, str]:
    """What a job sets because the image has values of its own, for runs of `docker` with a volume at /data.

    Args:
        home: The folder of models, runs and caches.
    """
    cache = home / "cache"
    me = getpass.getuser()
    return {
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "LOGNAME": me,
        "USER": me,
    }


def mounts(container: Container, *, needs: Sequence[Path]) -> list[str]:
    """The site's mounts, and what a job needs besides, where no mount shows it yet at its own path.

    Args:
        container: The site's.
        needs: Folders and files that the job reads or writes.

    Raises:
        ConfigError: One has a name that cannot be mounted.
    """
    found = list(container.mounts)
    for path in sorted(set(needs)):
        shown = [Path(mount) for mount in found if ":" not in mount]
        if any(path.is_relative_to(place) for place in shown):
            continue
        if set(str(path)) & set(":,"):
            raise ConfigError(
                "holds a ':' or ',', at which runtimes of containers part their mounts",
                where=path,
                mend="rename it, or name a folder above it in container.mounts",
            )
        found.append(str(path))
    return found


def interpreter(
    container: Container, *, needs: Sequence[Path], variables: Mapping[str, str], with_gpus: bool
) -> str:
    """The words, quoted for a shell, that stand where `python` would without a container.

    Args:
        container: The site's, with a runtime.
        needs: Folders and files that the job reads or writes.
        variables: The job's environment.
        with_gpus: Whether the job uses any.
    """
    if container.runtime == "pyxis":
        return shlex.quote(container.python)
    binds = [word for mount in mounts(container, needs=needs) for word in ("--bind", mount)]
    if container.runtime == "apptainer":
        gpus = ["--nv"] if with_gpus else []
        return shlex.join(["apptainer", "exec", *gpus, *binds, container.image, container.python])
    # The image's environment (the path of its python), the job's own over it; apptainer does so by itself.
    words = ["ch-run", *binds, "--env-no-expand", "--set-env"]
    words += [f"--set-env={name}={value}" for name, value in variables.items()]
    return shlex.join([*words, container.image, "--", container.python])


def srun_options(container: Container, *, needs: Sequence[Path], variables: Mapping[str, str]) -> list[str]:
    """Options of srun that put its processes into a container: those of pyxis.

    Args:
        container: The site's.
        needs: Folders and files that the job reads or writes.
        variables: The job's environment; without a word, the image's values win over it.
    """
    if container.runtime != "pyxis":
        return []
    pairs = (m if ":" in m else f"{m}:{m}" for m in mounts(container, needs=needs))
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(pairs)}",
        f"--container-env={','.join(variables)}",
    ]


def check_mount_points(container: Container, *, needs: Sequence[Path]) -> None:
    """Looks whether an image that is a folder has the places where Charliecloud would mount something.

    Args:
        container: The site's.
        needs: Folders and files that the job reads or writes.

    Raises:
        ConfigError: It lacks one; Charliecloud makes none in an image that it may only read.
    """
    image = Path(container.image)
    if container.runtime != "charliecloud" or not image.is_dir():
        return
    inside = [Path(mount.rpartition(":")[2]) for mount in mounts(container, needs=needs)]
    lacking = [
        path
        for path in inside
        if not path.is_relative_to(_SHOWN_ALWAYS) and not Path(f"{image}/{path}").exists()
    ]
    if lacking:
        places = shlex.join(str(Path(f"{image}/{path}")) for path in lacking)
        raise ConfigError(
            f"the image has no place to mount {lacking[0]}",
            where=str(image),
            mend=f"mkdir -p {places}, or name a folder above it in container.mounts",
        )
