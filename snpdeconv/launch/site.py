"""The facts of a site that no preset can know: partitions, account, containers, where results are tracked.

Read from a YAML file; knows nothing of jobs.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

import snpdeconv
from snpdeconv.errors import ConfigError, nearest
from snpdeconv.files import require_own
from snpdeconv.yaml_text import read_yaml_file

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
    """Reads a site.

    Args:
        name: ``local``, the NAME of a ``jobs/clusters/NAME.yaml`` in the project's folder, else in this one,
            the path of a YAML file, or None for whatever is here.

    Raises:
        ConfigError: There is no such file, or it does not hold together.
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
        raise ConfigError("holds no facts of a cluster", where=path, mend="see jobs/clusters for the form")
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
            mend=f"{nearest(name, [*known, 'local'])}, or give the path of a YAML file",
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
            f"'{value}' needs the variable {match[0]}, which is not set", where=where, mend="set it"
        )
    return expanded


def _first_problem(error: ValidationError, *, where: Path) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = Container.model_fields if key.startswith("container.") else Site.model_fields
        return ConfigError(
            "there is no such fact", where=f"{where}: {key}", mend=nearest(key.rpartition(".")[2], fields)
        )
    problem = first["msg"].removeprefix("Value error, ")
    given = "" if isinstance(first["input"], Mapping | BaseModel) else f" (given: {first['input']!r})"
    return ConfigError(f"{problem}{given}", where=f"{where}: {key}")
