"""Which settings a search may change, and between what: from a file, or fitting the architecture.

Knows the form and the limits of settings; nothing of how values are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from snpdeconv.config import Architecture, Config, validate
from snpdeconv.errors import ConfigError
from snpdeconv.yaml_text import read_yaml, read_yaml_file

SECTIONS = ("model", "training")
"""A search must not change what people are compared on, nor what the job asks for."""


class Range(BaseModel):
    """Numbers from `low` to `high`, whole ones where both are.

    Attributes:
        log: Whether as many are drawn between 1 and 10 as between 10 and 100.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low {self.low} has no logarithm")
        return self

    def ends(self) -> tuple[Any, ...]:
        """The values that must be valid for all to be."""
        return (self.low, self.high)


class Choice(BaseModel):
    """One of some values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    values: tuple[bool | int | float | str, ...] = Field(min_length=2)

    def ends(self) -> tuple[Any, ...]:
        """The values that must be valid for all to be."""
        return self.values


Space = dict[str, Range | Choice]

_OPTIMISER: Space = {
    "training.learning_rate": Range(low=1e-5, high=3e-3, log=True),
    "training.weight_decay": Range(low=1e-6, high=1e-1, log=True),
    "model.dropout": Range(low=0.0, high=0.5),
}
_TOKENS: Space = {
    "model.width": Choice(values=(64, 128, 256)),
    "model.num_layers": Range(low=1, high=6),
}
_DEFAULTS: dict[Architecture, Space] = {
    "cnn": _OPTIMISER | {"model.channels": Choice(values=("16,32", "32,64", "64,128"))},
    "cnn_transformer": _OPTIMISER | _TOKENS,
    "gnn": _OPTIMISER | _TOKENS,
}


def read_space(path: Path | None, config: Config) -> Space:
    """The search space of a file, or the one for the settings' architecture.

    Args:
        path: A mapping in YAML from ``section.key`` to a list of values, or to ``{low, high, log}``.
        config: What else is set: each value must be valid beside it.

    Raises:
        ConfigError: No such file, or something in it that is no setting or not valid.
    """
    space = _DEFAULTS[config.model.architecture] if path is None else _parse(path)
    where = f"the search space of {config.model.architecture}" if path is None else str(path)
    for key, values in space.items():
        section, _, _ = key.partition(".")
        if section not in SECTIONS or key == "training.seed":  # the seed draws the people
            mend = f"search in {' and '.join(SECTIONS)}, the seed left out"
            raise ConfigError("a search cannot change this", where=f"{where}: {key}", mend=mend)
        for value in values.ends():
            apply(config, {key: value}, where=where)
    return space


def apply(config: Config, values: Mapping[str, Any], *, where: str) -> Config:
    """Settings with some of them changed.

    Args:
        config: The settings.
        values: By ``section.key``; a text with a comma is a list.
        where: What to name in a message.

    Raises:
        ConfigError: An unknown key, or a value out of range.
    """
    settings = config.model_dump(mode="json")
    for key, value in values.items():
        section, _, name = key.partition(".")
        several = isinstance(value, str) and "," in value
        settings[section][name] = read_yaml(f"[{value}]", where=where) if several else value
    return validate(settings, where=where)


def _parse(path: Path) -> Space:
    content = read_yaml_file(path)
    if not isinstance(content, dict) or not content:
        mend = "lines such as `training.learning_rate: {low: 1e-5, high: 1e-2, log: true}`"
        raise ConfigError("holds no settings to search", where=path, mend=mend)
    space: Space = {}
    for key, given in content.items():
        form = {"values": given} if isinstance(given, list) else given
        kind: type[Range | Choice] = Choice if isinstance(given, list) else Range
        try:
            space[str(key)] = TypeAdapter(kind).validate_python(form)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            raise ConfigError(
                f"{problem['msg'].removeprefix('Value error, ')} (given: {given!r})",
                where=f"{path}: {key}",
                mend="a list of values, or {low: 0.1, high: 0.5, log: false}",
            ) from error
    return space
