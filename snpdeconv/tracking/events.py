"""The form of each kind of event in a spool: what a damaged or altered line cannot pass for."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

_Count = Annotated[int, Field(ge=0, lt=2**63)]  # what a database holds
_Texts = dict[str, str]


class _Opened(TypedDict):
    uri: str
    host: str
    pid: _Count


class _Created(_Opened):
    experiment: str
    name: str
    params: _Texts
    tags: _Texts


class _Metrics(TypedDict):
    step: _Count
    values: dict[str, FiniteFloat]


class _Tags(TypedDict):
    tags: _Texts


class _Place(TypedDict):
    path: str
    from_home: NotRequired[str]


class _Artifact(_Place):
    folder: str


class _Register(_Place):
    name: str
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    tags: _Texts
    champion_if_none: bool


class _Status(TypedDict):
    status: Literal["FINISHED", "FAILED", "KILLED"]


_TIME = TypeAdapter[int](_Count)
_FORMS: dict[str, TypeAdapter[Any]] = {
    "create": TypeAdapter(_Created),
    "open": TypeAdapter(_Opened),
    "metrics": TypeAdapter(_Metrics),
    "tags": TypeAdapter(_Tags),
    "artifact": TypeAdapter(_Artifact),
    "register": TypeAdapter(_Register),
    "status": TypeAdapter(_Status),
}


def checked(kind: str, time_ms: int, data: dict[str, Any]) -> dict[str, Any]:
    """An event's data as they came, if they have the form of its kind.

    Raises:
        KeyError: There is no such kind.
        ValueError: They have another form.
    """
    _TIME.validate_python(time_ms, strict=True)
    _FORMS[kind].validate_python(data, strict=True)
    return data
