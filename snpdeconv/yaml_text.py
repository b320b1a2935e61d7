"""YAML as this project reads it: numbers are numbers, and a key stands once."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.files import read_whole

_MOST_BYTES, _MOST_VALUES, _MOST_BRACKETS, _MOST_DIGITS = 2**20, 20_000, 1_000, 18


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


class _TextLoader(_Loader):
    """What is no mapping, list or null is text: an account 0123 or a time 12:30 is no number."""


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}

_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(text: str, *, where: str | Path, as_text: bool = False) -> Any:
    """Parses YAML as this project reads it: ``1e-4`` is a number, a key may stand once.

    Args:
        text: The text.
        where: The file that it is from.
        as_text: Whether to leave numbers, dates and truth values as they are written.

    Raises:
        ConfigError: The text is no YAML, a mapping holds a key twice, or it is larger or deeper than settings
            are, aliases counted as what they stand for.
    """
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError(f"longer than {_MOST_BYTES} characters")
        if text.count("[") + text.count("{") > _MOST_BRACKETS:
            raise ValueError(f"more than {_MOST_BRACKETS} brackets")  # PyYAML's time grows with their square
        _require_small(yaml.compose(text, Loader=_Loader))
        return yaml.load(text, Loader=_TextLoader if as_text else _Loader)
    except ConfigError:
        raise
    except RecursionError as error:
        raise ConfigError("is nested too deeply to be settings", where=where) from error
    # Besides YAMLError: what Python raises for a number of 5,000 digits, a 30th of February or `!!int x`.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"not readable as YAML ({' '.join(str(error).split())})", where=where) from error


def read_yaml_file(path: Path, *, as_text: bool = False) -> Any:
    """The content of a YAML file; `as_text` as `read_yaml` has it.

    Raises:
        ConfigError: It cannot be read, is no UTF-8 text or no YAML, or is too large.
    """
    mend = "give the path of a YAML file"
    try:
        text = read_whole(path, limit=_MOST_BYTES, mend=mend).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=path, mend="check the path") from error
    except InputError as error:
        raise ConfigError(error.problem, where=path, mend=mend) from error
    except UnicodeDecodeError as error:
        raise ConfigError("is not UTF-8 text", where=path, mend="save it as UTF-8") from error
    return read_yaml(text, where=path, as_text=as_text)


def _require_small(root: yaml.Node | None) -> None:
    """Counts values before any is made, aliases as what they stand for: a few lines can mean billions."""
    waiting, seen = [root] if root is not None else [], 0
    while waiting:
        seen += 1
        if seen > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES} values")
        node = waiting.pop()
        if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":int") and len(node.value) > _MOST_DIGITS:
            raise ValueError(f"a whole number of {len(node.value)} digits")
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
