"""YAML as this project reads it: numbers are numbers, and a key stands once."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from snpdeconv.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-4 as a number and refuses a key that stands twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\.\d+([eE][-+]?\d+)?|\d[\d_]*\.[\d_]*|\.inf|\.nan)$"),
    list("-+.0123456789"),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    repeated = [key for key in keys if keys.count(key) > 1]
    if repeated:
        raise ConfigError(
            f"key '{repeated[0]}' stands twice",
            where=f"line {node.start_mark.line + 1}",
            mend="keep one of them",
        )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(text: str, *, where: str | Path) -> Any:
    """Parses YAML as this project reads it: ``1e-4`` is a number, a key may stand once.

    Raises:
        ConfigError: The text is no YAML, or a mapping holds a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"not readable as YAML ({' '.join(str(error).split())})", where=where) from error
