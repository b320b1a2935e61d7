"""Registered models: folders with checksums, in versions with the aliases champion and challenger; and runs.

Aliases in MLflow have no compare-and-set. Registrations and promotions of one home take turns by a lock, and
a challenger takes the alias only from the champion that it was compared with; with two homes at once the last
writer stands for both, so all that promote one model (a scheduled job, a person) must share a home.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from snpdeconv.errors import InputError, UserError, nearest
from snpdeconv.tracking import artifacts
from snpdeconv.tracking.artifacts import MOST_BYTES, of_run
from snpdeconv.tracking.connection import answering, error_code, is_refusal, transfer
from snpdeconv.tracking.home import home, redact_password, tracking_uri
from snpdeconv.tracking.spool import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

_SPEC = re.compile(r"(?P<name>[^@:/]+)(@(?P<alias>[\w-]+)|[:/](?P<version>\d{1,9}))?")
_NAME = re.compile(r"\w[\w .+-]{0,199}")
_MOST_ENTRIES = 200_000
PREVIOUS = "snpdeconv.previous_champion"
"""Tag of a version that was promoted: the version that was champion before it."""
LOOKS, LOOK = "snpdeconv.looks", "snpdeconv.look"
"""Tags: of a champion, how many challengers were compared with it; of a challenger, which of them it was."""


@dataclass(frozen=True)
class RunInfo:
    """What the store knows of a run; `status` is RUNNING, FINISHED, FAILED or KILLED."""

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    uri: str

    def download(self, path: str, *, into: Path) -> Path:
        """Brings an artifact of the run, a file or a folder, into a local folder."""
        into.mkdir(parents=True, exist_ok=True)
        with answering(self.uri) as client:
            _, repository = of_run(client, uri=self.uri, run_id=self.run_id)
            folder, _, _ = path.rpartition("/")
            there = [entry.path for entry in repository.list_artifacts(folder or None)]
            if path not in there:
                hint = nearest(path, there) if there else "it has none there"
                raise InputError(f"run {self.run_id} has no such artifact", where=path, hint=hint)
            with transfer(most=MOST_BYTES):
                return Path(repository.download_artifacts(path, str(into)))


def get_run_info(run_id: str) -> RunInfo:
    """Finds a run by MLflow's name of it."""
    uri = tracking_uri()
    with answering(uri) as client:
        try:
            run = client.get_run(run_id)
            return _info(run, run_id=run_id, uri=uri)
        except Exception as error:
            if not is_refusal(error):
                raise
            raise InputError(
                f"there is no run '{run_id}' in {redact_password(uri)}",
                where="run",
                hint="copy the run ID from `snpdeconv train --json` or from `snpdeconv ui`",
            ) from error


def _info(run: Run, *, run_id: str, uri: str) -> RunInfo:
    if run.info.run_id != run_id:
        raise ValueError(f"tells of run {run.info.run_id[:100]!r}")
    return RunInfo(
        run_id=run.info.run_id,
        name=run.info.run_name,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        uri=uri,
    )


@dataclass(frozen=True)
class ModelRef:
    """One version of a registered model.

    Attributes:
        version: Its number, from 1.
        run_id: MLflow's name of the run that trained it.
        source: Address of its folder.
        sha256: Digest of its SHA256SUMS; None if another program registered it.
        uri: Address of the store.
    """

    name: str
    version: int
    run_id: str | None
    source: str
    sha256: str | None
    uri: str


@dataclass(frozen=True)
class RegisteredModel:
    """A model's name with its versions, oldest first, and the version of each alias."""

    name: str
    versions: tuple[int, ...]
    aliases: Mapping[str, int]


def check_model_name(name: str) -> None:
    """Refuses a name that could not be registered or asked for later."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"'{name}' cannot name a model",
            where="model name",
            hint="use letters, digits, spaces and _ . + - only, a letter or digit first",
        )


def register_bundle(
    client: MlflowClient,
    *,
    uri: str,
    run_id: str,
    key: str,
    name: str,
    folder: Path,
    digest: str,
    tags: Mapping[str, str],
    champion_if_none: bool,
) -> ModelRef:
    """Uploads a checksummed folder to its run and makes it the newest version and the challenger.

    Doing so again with the same folder changes nothing: the version is found by run and digest. With
    `champion_if_none` it becomes the champion of a model that has none.
    """
    artifacts.verify(folder, digest=digest)
    known = [mv for mv in client.search_model_versions(f"run_id = '{run_id}'") if mv.name == name]
    version = next((mv for mv in known if mv.tags.get("snpdeconv.sha256") == digest), None)
    if version is None:
        # A second model of the run must not change the files of the first.
        place = "model" if not known else f"model-{digest[:12]}"
        root = artifacts.upload(client, folder, uri=uri, run_id=run_id, folder=place)
        version = _create_version(
            client,
            name=name,
            source=f"{root}/{place}",
            run_id=run_id,
            tags={**tags, "snpdeconv.key": key, "snpdeconv.sha256": digest},
        )
    ref = _ref(version, name=name, uri=uri)
    _set_aliases(client, name=name, version=ref.version, champion_if_none=champion_if_none)
    return ref


def _create_version(
    client: MlflowClient, *, name: str, source: str, run_id: str, tags: dict[str, str]
) -> ModelVersion:
    try:
        client.create_registered_model(name)
    except Exception as error:
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0)


def _set_aliases(client: MlflowClient, *, name: str, version: int, champion_if_none: bool) -> None:
    with locked(home() / "registry.lock"):
        aliases = _aliases(client.get_registered_model(name))
        # A replay comes late: it must not take the alias from a newer version.
        if aliases.get("challenger", 0) < version:
            client.set_registered_model_alias(name, "challenger", str(version))
        if champion_if_none and "champion" not in aliases:
            client.set_registered_model_alias(name, "champion", str(version))
            stands = client.get_registered_model(name).aliases["champion"]
            logger.info("%s: version %s is the champion, the first there is", name, stands)


def resolve(spec: str) -> ModelRef:
    """Finds the version that a user means: NAME@alias, NAME/3 or NAME:3; NAME alone means its champion."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise InputError("names no model", where=spec, hint="write NAME, NAME@champion or NAME/3")
    name, alias, number = match["name"], match["alias"], match["version"]
    uri = tracking_uri()
    with answering(uri) as client:
        try:
            version = number or _aliases(client.get_registered_model(name)).get(alias or "champion")
            if version is not None:
                found = client.get_model_version(name, str(int(version)))
                return _ref(found, name=name, number=int(version), uri=uri)
        except Exception as error:
            if not is_refusal(error):
                raise
    raise _unknown(spec, name=name, alias=alias or "champion", number=number)


def _unknown(spec: str, *, name: str, alias: str, number: str | None) -> InputError:
    """Says what there is in place of what was asked for."""
    models = {model.name: model for model in list_models()}
    if not models:
        return InputError(
            f"no model is registered in {redact_password(tracking_uri())}",
            where=spec,
            hint="register one with `snpdeconv train --name`",
        )
    if name not in models:
        return InputError(f"there is no model '{name}'", where=spec, hint=nearest(name, models))
    model = models[name]
    if number is not None:
        hint = f"choose one of {', '.join(map(str, model.versions))}"
        return InputError(f"'{name}' has no version {int(number)}", where=spec, hint=hint)
    if alias == "champion":
        return no_champion(model, where=spec)
    known = nearest(alias, model.aliases) if model.aliases else "it has no alias"
    return InputError(
        f"'{name}' has no alias '{alias}'", where=spec, hint=f"{known} (its versions: {_versions(model)})"
    )


def no_champion(model: RegisteredModel, *, where: str) -> InputError:
    """What to tell where nobody is champion, such as after that version was deleted in the page."""
    newest = f"{model.name}/{model.versions[-1]}" if model.versions else None
    return InputError(
        f"'{model.name}' has no champion" + (f" (its versions: {_versions(model)})" if newest else ""),
        where=where,
        hint=f"name one, such as {newest}, or `snpdeconv rollback {model.name} --to {model.versions[-1]}`"
        if newest
        else "train and register it first",
    )


def _versions(model: RegisteredModel) -> str:
    named = [f"{model.name}/{version}" for version in model.versions]
    return ", ".join(named if len(named) <= 12 else [*named[:2], "…", *named[-9:]])


def resolve_run(run_id: str) -> ModelRef:
    """Finds the version that a run registered; the newest if there are several."""
    run = get_run_info(run_id)
    with answering(run.uri) as client:
        versions = [
            (entry.creation_timestamp or 0, _ref(entry, uri=run.uri))
            for entry in client.search_model_versions(f"run_id = '{run.run_id}'")
        ]
        if versions:
            return max(versions, key=lambda version: (version[0], version[1].version))[1]
    raise InputError(
        f"run {run.run_id} ({run.status}) has registered no model",
        where="run",
        hint="choose another run, or `snpdeconv sync` if its results are unsent",
    )


def version_tags(name: str, version: int) -> Mapping[str, str]:
    """The facts kept with a version."""
    with answering(tracking_uri()) as client:
        return dict(client.get_model_version(name, str(version)).tags)


def list_models() -> list[RegisteredModel]:
    """All registered models, by name."""
    uri = tracking_uri()
    with answering(uri) as client:
        versions: dict[str, list[int]] = {}
        for entry in _pages(client.search_model_versions, size=500):
            versions.setdefault(entry.name, []).append(_number(entry.version))
        aliases = {entry.name: _aliases(entry) for entry in _pages(client.search_registered_models, size=100)}
    return [
        RegisteredModel(name, tuple(sorted(set(versions[name]))), aliases[name])
        for name in sorted(versions.keys() & aliases.keys())
        if name.isprintable()
    ]


def find_model(name: str) -> RegisteredModel | None:
    """One model by its name; None where there is none."""
    return next((model for model in list_models() if model.name == name), None)


def _pages(search: Callable[..., Any], *, size: int) -> Iterator[Any]:
    token: str | None = None
    seen: set[str | None] = set()
    number = 0
    while token not in seen and number <= _MOST_ENTRIES:
        seen.add(token)
        page = search(max_results=size, page_token=token)
        number += len(page)
        yield from page
        if not (token := page.token):
            return
    raise ValueError(f"a list without an end, {number} entries long")


def download(ref: ModelRef, *, cache_dir: Path) -> Path:
    """Brings a version's files here once, and checks them each time; gives the local folder.

    Copies are kept by name, version and digest.
    """
    spec = f"{ref.name}/{ref.version}"
    if ref.sha256 is None:
        raise InputError("was not registered by snpdeconv", where=spec, hint="choose a version that was")
    place = cache_dir / "models" / quote(ref.name, safe="") / f"{ref.version}-{ref.sha256[:16]}"
    if place.is_dir():
        artifacts.verify(place, digest=ref.sha256)
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=place.parent) as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        with answering(ref.uri):
            try:
                artifacts.fetch_checked(
                    ref.source, uri=ref.uri, run_id=ref.run_id, digest=ref.sha256, into=folder
                )
            except Exception as error:
                if isinstance(error, UserError) or not artifacts.is_missing(error):
                    raise
                raise InputError(
                    f"its files are not in the store ({ref.source[:200]})", where=spec, hint="train it again"
                ) from error
        artifacts.verify(folder, digest=ref.sha256)
        try:
            folder.rename(place)
        except OSError:
            artifacts.verify(place, digest=ref.sha256)  # another process was quicker
    return place


@dataclass(frozen=True)
class Promotion:
    """What became of a promotion: the version that is champion now, and whether it is the one wanted."""

    champion: int | None
    done: bool


def champion_of(name: str) -> int | None:
    """The version that has the alias; None where the model or the alias is not there yet."""
    model = find_model(name)
    return None if model is None else model.aliases.get("champion")


def promote(
    name: str, *, version: int, instead_of: int | None, tags: Mapping[str, str] | None = None
) -> Promotion:
    """Makes a version the champion, if the champion is still the one that it was compared with.

    `tags` are the decision and its figures, kept with the version.
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
    """Counts one more comparison of a champion on its held-out samples, before anybody sees what comes of it.

    Gives which comparison of this champion it is, from 1; that of a challenger stays when asked again.
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
    """Keeps facts with a version that is not promoted."""
    with answering(tracking_uri()) as client:
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)


def rollback(name: str, *, to: int | None = None) -> Promotion:
    """Gives the alias back to the champion before this one, or to the version `to`."""
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


def _ref(version: ModelVersion, *, uri: str, name: str | None = None, number: int | None = None) -> ModelRef:
    """What a store says of a version; a ValueError if that cannot be, or is of another than asked for."""
    found, digest, run_id = _number(version.version), version.tags.get("snpdeconv.sha256"), version.run_id
    if name not in (None, version.name) or number not in (None, found) or not _NAME.fullmatch(version.name):
        raise ValueError(f"tells of {version.name[:100]!r}/{found}")
    if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError(f"a digest {digest[:100]!r}")
    if run_id and not re.fullmatch(r"[\w-]{1,64}", run_id):
        raise ValueError(f"a run {run_id[:100]!r}")
    return ModelRef(
        name=version.name,
        version=found,
        run_id=run_id,
        source=str(version.source),
        sha256=digest,
        uri=uri,
    )


def _number(version: object) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", str(version)):
        raise ValueError(f"a version {str(version)[:100]!r}")
    return int(str(version))


def _aliases(model: Any) -> dict[str, int]:
    return {str(alias): _number(version) for alias, version in model.aliases.items()}
