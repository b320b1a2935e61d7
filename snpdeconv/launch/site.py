"""The facts of a site that no preset can know: partitions, account, containers, where results are tracked.

Read from a YAML file. With them goes what a preset asks of a site for one job (`Request`), and how the
container of a site is started.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import snpdeconv
from snpdeconv.config import Config, read_yaml_file
from snpdeconv.errors import ConfigError, nearest
from snpdeconv.files import require_own

logger = logging.getLogger(__name__)


Runtime = Literal["none", "apptainer", "pyxis", "charliecloud"]
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Container(_Facts):
    """What a job's processes run in.

    Attributes:
        runtime: none, apptainer, pyxis (srun's own option, from enroot) or charliecloud.
        image: File, folder or name of the image, as the runtime takes it.
        mounts: Folders that the job sees, ``PATH`` or ``OUTSIDE:INSIDE``.
        python: The interpreter in the image.
    """

    runtime: Runtime = "none"
    image: str = ""
    mounts: tuple[str, ...] = ()
    python: str = "python"

    @model_validator(mode="after")
    def _runtime_has_image(self) -> Container:
        if (self.runtime == "none") != (not self.image):
            raise ValueError("a runtime needs an image" if not self.image else "an image needs a runtime")
        return self


class Site(_Facts):
    """One cluster, or this machine.

    Attributes:
        name: What `--cluster` calls it.
        scheduler: slurm, local (a process of this machine), or auto: SLURM where it answers.
        partition: Of jobs without GPUs, and of all where `gpu_partition` is not given.
        gpu_partition: Of jobs with GPUs.
        account: To be charged.
        qos: Quality of service.
        constraint: Features that the nodes must have.
        gpu_request: How GPUs are asked for; none where the scheduler does not count them.
        gpu_type: Model of the GPUs, where the site tells them apart.
        device: auto, or the one that jobs compute on whatever the preset says.
        container: What the processes run in.
        environment: Variables of the jobs.
        setup: Shell lines before the job, such as ``module load``.
        tracking_uri: Address of the MLflow server that the compute nodes reach.
        max_requeues: How often a job that reached its time limit may go on.
        folder: Where results go when no `--out` is given, on a disk that all nodes see [the home].
        sbatch: Further options of sbatch, without the dashes.
    """

    name: str
    scheduler: Literal["slurm", "local", "auto"] = "auto"
    partition: str | None = None
    gpu_partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpu_request: Literal["gpus_per_node", "gpus_per_task", "gres", "none"] = "gpus_per_node"
    gpu_type: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    container: Container = Container()
    environment: Mapping[str, str] = {}
    setup: tuple[str, ...] = ()
    tracking_uri: str | None = None
    max_requeues: int = Field(default=20, ge=0)
    folder: str | None = None
    sbatch: Mapping[str, str | bool] = {}

    @field_validator("sbatch", mode="before")
    @classmethod
    def _switches(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        switch = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return {k: switch.get(v.lower(), v) if isinstance(v, str) else v for k, v in value.items()}

    @field_validator("environment")
    @classmethod
    def _names_are_words(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name in value:  # the script of a job takes them as they are
            if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                raise ValueError(f"{name!r} cannot name a variable")
        return value

    @property
    def overrides(self) -> list[str]:
        """Settings of a preset that the site changes."""
        return [] if self.device == "auto" else [f"resources.device={self.device}"]

    def partition_for(self, *, gpus_per_node: int) -> str | None:
        """The partition of a job with so many GPUs a node; None for the scheduler's default."""
        return self.gpu_partition if gpus_per_node and self.gpu_partition else self.partition


LOCAL = Site(name="local", scheduler="local")
"""This machine."""


def load_site(name: str | None) -> Site:
    """Reads a site: ``local``, the path of a YAML file, the NAME of a ``jobs/clusters/NAME.yaml`` in the
    project's folder, else in this one, or None for whatever is here.
    """
    if name is None:
        return _with_profile(Site(name="auto"))
    if name == "local":
        return LOCAL
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _find(name)
    facts = read_yaml_file(path, as_text=True)
    if not isinstance(facts, dict):
        raise ConfigError("holds no facts of a cluster", where=path, hint="see jobs/clusters for the form")
    try:
        return _with_profile(Site.model_validate({"name": path.stem, **_expanded(facts, where=path)}))
    except ValidationError as error:
        raise _first_problem(error, where=path) from error


def _with_profile(site: Site) -> Site:
    """The site with what the user's profile says to sbatch; what is not followed is said."""
    found = {name: value for name, value in os.environ.items() if name.startswith("SBATCH_") and value}
    taken = {}
    for fact in ("account", "qos", "partition"):
        value, own = found.pop(f"SBATCH_{fact.upper()}", None), getattr(site, fact)
        if value is not None and own is None and site.scheduler != "local":
            taken[fact] = value
            logger.info("%s %s, from SBATCH_%s", fact, value, fact.upper())
        elif value not in (None, own):
            logger.info("SBATCH_%s=%s is not followed: the cluster's file has %s", fact.upper(), value, own)
    if found:
        names = ", ".join(sorted(found))
        logger.info("not passed on to SLURM: %s (put them under sbatch in the cluster's file)", names)
    return site.model_copy(update=taken)


def known_sites() -> dict[str, Path]:
    """The cluster files in reach, by name; the project's come before those of this folder."""
    project = Path(snpdeconv.__file__).parent.parent
    places = [project / "jobs" / "clusters", Path.cwd() / "jobs" / "clusters"]
    return {path.stem: path for place in reversed(places) for path in sorted(place.glob("*.yaml"))}


def _find(name: str) -> Path:
    known = known_sites()
    if name not in known:
        raise ConfigError(
            f"there is no cluster '{name}'",
            where="--cluster",
            hint=f"{nearest(name, [*known, 'local'])}, or give the path of a YAML file",
        )
    # Its lines of `setup` will run, and a name does not say whose file it is.
    require_own(known[name])
    return known[name]


def _expanded(value: Any, *, where: Path) -> Any:
    """The facts with $VARIABLES of the environment in place; a variable that is not set is an error.

    The lines of `setup` are left to the shell of the job.
    """
    if isinstance(value, dict):
        return {k: v if k == "setup" else _expanded(v, where=where) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(item, where=where) for item in value]
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if match := _VARIABLE.search(expanded):
        raise ConfigError(
            f"'{value}' needs the variable {match[0]}, which is not set", where=where, hint="set it"
        )
    return expanded


def _first_problem(error: ValidationError, *, where: Path) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = Container.model_fields if key.startswith("container.") else Site.model_fields
        return ConfigError(
            "there is no such fact", where=f"{where}: {key}", hint=nearest(key.rpartition(".")[2], fields)
        )
    problem = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], Mapping | BaseModel) else f" (given: {first['input']!r})"
    return ConfigError(f"{problem}{given}", where=f"{where}: {key}")


_NOTICE_SHARE = 0.25


@dataclass(frozen=True)
class Request:
    """Resources of one job; of an array, those of each element."""

    nodes: int
    tasks_per_node: int  # one process for each GPU, or one
    gpus_per_node: int
    cpus_per_task: int
    mem_gib: int  # of each node
    timeout_min: int
    signal_delay_s: int  # before the limit the job is told, so that it saves and goes on later

    @property
    def num_tasks(self) -> int:
        """Processes in all."""
        return self.nodes * self.tasks_per_node


def make_request(config: Config, *, one_process: bool = False) -> Request:
    """The request of a preset; work of one process has one GPU where the preset has any."""
    asked = config.resources
    gpus = min(1, asked.gpus_per_node) if one_process else asked.gpus_per_node
    # A delay of most of the limit would end the job as soon as it began.
    delay = min(asked.signal_delay_s, int(asked.timeout_min * 60 * _NOTICE_SHARE))
    if delay < asked.signal_delay_s:
        logger.info("the job is told %d s before its limit of %d min", delay, asked.timeout_min)
    return Request(
        nodes=1 if one_process else asked.nodes,
        tasks_per_node=max(1, gpus),
        gpus_per_node=gpus,
        cpus_per_task=asked.cpus_per_task,
        mem_gib=asked.mem_gib,
        timeout_min=asked.timeout_min,
        signal_delay_s=delay,
    )


# Charliecloud shows the host's in every image.
_SHOWN_ALWAYS = Path("/tmp")


def variables_inside(home: Path) -> dict[str, str]:
    """What a job sets because the image has values of its own, for runs of `docker` with /data."""
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
    """The site's mounts, and what a job needs besides, where no mount shows it yet at its own path."""
    found = list(container.mounts)
    for path in sorted(set(needs)):
        shown = [Path(mount) for mount in found if ":" not in mount]
        if any(path.is_relative_to(place) for place in shown):
            continue
        if set(str(path)) & set(":,"):
            raise ConfigError(
                "holds a ':' or ',', at which runtimes of containers part their mounts",
                where=path,
                hint="rename it, or name a folder above it in container.mounts",
            )
        found.append(str(path))
    return found


def interpreter(
    container: Container, *, needs: Sequence[Path], variables: Mapping[str, str], with_gpus: bool
) -> str:
    """The words, quoted for a shell, that stand where `python` would without a container."""
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

    Without a word of the job's variables, the image's values would win over them.
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
    """Refuses an image that is a folder and lacks a place to mount something: Charliecloud makes none."""
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
            hint=f"mkdir -p {places}, or name a folder above it in container.mounts",
        )
