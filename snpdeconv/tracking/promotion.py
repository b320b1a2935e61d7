"""Who is champion: a challenger takes the alias only from the champion that it was compared with.

Aliases in MLflow have no compare-and-set: promotions take turns by a lock in the home, so all that promote
one model (a scheduled job, a person) must share a home.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from snpdeconv.errors import InputError, nearest
from snpdeconv.tracking.connection import answering
from snpdeconv.tracking.home import home, tracking_uri
from snpdeconv.tracking.registry import find_model, no_champion
from snpdeconv.tracking.spool import locked

logger = logging.getLogger(__name__)

PREVIOUS = "snpdeconv.previous_champion"
"""Tag of a version that was promoted: the version that was champion before it."""
LOOKS, LOOK = "snpdeconv.looks", "snpdeconv.look"
"""Tags: of a champion, how many challengers were compared with it; of a challenger, which of them it was."""


@dataclass(frozen=True)
class Promotion:
    """What became of a promotion.

    Attributes:
        champion: The version that has the alias now; None if none has.
        done: Whether the wanted version took it.
    """

    champion: int | None
    done: bool


def champion_of(name: str) -> int | None:
    """The version that has the alias; None where the model or the alias is not there yet.

    Raises:
        ResourceError: The store does not answer.
    """
    model = find_model(name)
    return None if model is None else model.aliases.get("champion")


def promote(
    name: str, *, version: int, instead_of: int | None, tags: Mapping[str, str] | None = None
) -> Promotion:
    """Makes a version the champion, if the champion is still the one that it was compared with.

    Args:
        name: The model's name.
        version: The challenger.
        instead_of: The champion it was compared with; None where there was none.
        tags: The decision and its figures, kept with the version.

    Raises:
        ResourceError: The store does not answer, or another promotion hangs.
    """
    with locked(home() / "registry.lock"), answering(tracking_uri()) as client:
        now = client.get_registered_model(name).aliases.get("champion")
        stands = None if now is None else int(now)
        done = stands == instead_of
        facts = {"snpdeconv.promotion": "promoted" if done else f"refused: version {stands} came first"}
        if done:
            client.set_registered_model_alias(name, "champion", str(version))
            facts |= {PREVIOUS: "" if stands is None else str(stands), "snpdeconv.promoted_at": _now()}
        for key, value in {**(tags or {}), **facts}.items():
            client.set_model_version_tag(name, str(version), key, value)
    logger.info("%s: champion is version %s", name, version if done else stands)
    return Promotion(champion=version if done else stands, done=done)


def count_look(name: str, *, champion: int, challenger: int) -> int:
    """Counts one more comparison of a champion on its held-out people, before anybody sees what comes of it.

    Returns:
        Which comparison of this champion it is, from 1; that of a challenger stays the same when asked again.

    Raises:
        ResourceError: The store does not answer, or another promotion hangs.
    """
    with locked(home() / "registry.lock"), answering(tracking_uri()) as client:
        of_champion, _, number = (
            client.get_model_version(name, str(challenger)).tags.get(LOOK, "").partition(":")
        )
        if of_champion == str(champion):
            return int(number)
        looks = int(client.get_model_version(name, str(champion)).tags.get(LOOKS, "0")) + 1
        client.set_model_version_tag(name, str(champion), LOOKS, str(looks))
        client.set_model_version_tag(name, str(challenger), LOOK, f"{champion}:{looks}")
    return looks


def note(name: str, *, version: int, tags: Mapping[str, str]) -> None:
    """Keeps facts with a version that is not promoted.

    Raises:
        ResourceError: The store does not answer.
    """
    with answering(tracking_uri()) as client:
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)


def rollback(name: str, *, to: int | None = None) -> Promotion:
    """Gives the alias back to the champion before this one.

    Args:
        name: The model's name.
        to: A version to take in its place.

    Raises:
        InputError: There is no such model, no champion, none before it, or no such version.
        ResourceError: The store does not answer.
    """
    model = find_model(name)
    if model is None:
        raise InputError("has no champion", where=name, hint="train and register it first")
    stands = model.aliases.get("champion")
    if stands is None and to is None:
        raise no_champion(model, where=name)
    if to is not None and to not in model.versions:
        raise InputError(f"has no version {to}", where=name, hint=nearest(str(to), map(str, model.versions)))
    with locked(home() / "registry.lock"), answering(tracking_uri()) as client:
        before = to or int(client.get_model_version(name, str(stands)).tags.get(PREVIOUS) or 0)
        if before not in model.versions:
            raise InputError(
                f"the champion before version {stands}, version {before}, was deleted"
                if before
                else f"no champion is on record before version {stands}",
                where=name,
                hint=f"choose one of {', '.join(map(str, model.versions))} with --to",
            )
        if stands is not None and to is not None and to != stands:
            # So that a rollback without `to` undoes this one.
            client.set_model_version_tag(name, str(to), PREVIOUS, str(stands))
        client.set_registered_model_alias(name, "champion", str(before))
        if stands is not None:
            told = f"rolled back at {_now()}"
            client.set_model_version_tag(name, str(stands), "snpdeconv.promotion", told)
    logger.info("%s: champion is version %s, before it was %s", name, before, stands)
    return Promotion(champion=int(before), done=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
