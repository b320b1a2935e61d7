from __future__ import annotations

import hashlib
import subprocess
import time
from pathlib import Path

import pytest

from snpdeconv.errors import InputError, ResourceError
from snpdeconv.tracking.artifacts import verify, write_checksums
from snpdeconv.tracking.connection import connect, experiment_id
from snpdeconv.tracking.home import tracking_uri
from snpdeconv.tracking.registry import (
    ModelRef,
    download,
    get_run_info,
    list_models,
    register_bundle,
    resolve,
    resolve_run,
)


def new_run() -> str:
    """A run whose artifacts go to the home: those of MLflow's own experiment go to the current folder."""
    client = connect(tracking_uri())
    run = client.create_run(experiment_id(client, uri=tracking_uri(), name="models"))
    return str(run.info.run_id)


def register(
    folder: Path, *, name: str = "height", run_id: str | None = None, champion: bool = True
) -> ModelRef:
    client = connect(tracking_uri())
    return register_bundle(
        client,
        uri=tracking_uri(),
        run_id=run_id or new_run(),
        key="k",
        name=name,
        folder=folder,
        digest=write_checksums(folder),
        tags={},
        champion_if_none=champion,
    )


def change(folder: Path) -> Path:
    (folder / "weights.safetensors").write_bytes(b"other")
    return folder


@pytest.fixture(autouse=True)
def _store(tracking_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tracking_home)  # the default experiment keeps its artifacts below the working folder


def test_seal_is_what_sha256sum_reads(model_folder: Path) -> None:
    (model_folder / "sub").mkdir()
    (model_folder / "sub" / "x").write_text("x")
    digest = write_checksums(model_folder)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=model_folder, check=True)
    assert digest == hashlib.sha256((model_folder / "SHA256SUMS").read_bytes()).hexdigest()
    verify(model_folder, digest=digest)
    assert write_checksums(model_folder) == digest
    (model_folder / "SHA256SUMS").write_bytes(b"\xff\xfe damaged")
    assert write_checksums(model_folder) == digest


def test_verify_names_the_file_and_what_is_wrong(model_folder: Path) -> None:
    digest = write_checksums(model_folder)
    (model_folder / "new").write_text("")
    with pytest.raises(InputError, match=r"/new: is not listed"):
        verify(model_folder, digest=digest)
    (model_folder / "new").unlink()
    (model_folder / "config.json").rename(model_folder.parent / "config.json")
    with pytest.raises(InputError, match=r"config.json: is missing"):
        verify(model_folder, digest=digest)
    write_checksums(model_folder)
    with pytest.raises(InputError, match=r"SHA256SUMS: is not the one that was registered"):
        verify(model_folder, digest=digest)
    (model_folder / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match=r"weights.safetensors: is not listed"):
        verify(model_folder, digest=digest)


def test_the_newest_is_the_challenger_and_the_first_stays_champion(model_folder: Path) -> None:
    assert list_models() == []
    first = register(model_folder, champion=False)
    (model,) = list_models()
    assert (model.name, model.versions, model.aliases) == ("height", (1,), {"challenger": 1})
    assert register(model_folder, run_id=first.run_id) == first  # a replay, which now may be champion
    register(change(model_folder))
    (model,) = list_models()
    assert (model.versions, model.aliases) == ((1, 2), {"challenger": 2, "champion": 1})


def test_a_late_replay_does_not_take_the_alias_back(model_folder: Path) -> None:
    first = register(model_folder)
    register(model_folder)
    register(model_folder, run_id=first.run_id)
    assert resolve("height@challenger").version == 2


def test_two_models_of_one_run_keep_their_own_files(model_folder: Path, tmp_path: Path) -> None:
    first = register(model_folder)
    second = register(change(model_folder), run_id=first.run_id)
    assert (first.version, second.version) == (1, 2)
    assert first.source.endswith("/model")
    old = download(first, cache_dir=tmp_path / "cache")
    new = download(second, cache_dir=tmp_path / "cache")
    assert (old / "weights.safetensors").read_bytes() == bytes(range(256))
    assert (new / "weights.safetensors").read_bytes() == b"other"


def test_every_way_to_name_a_version(model_folder: Path) -> None:
    first = register(model_folder)
    second = register(change(model_folder))
    assert resolve("height") == resolve("height@champion") == resolve("height/1") == first
    assert resolve("height@challenger") == resolve("height:2") == second


def test_wrong_names_are_told_with_the_nearest_right_one(model_folder: Path) -> None:
    with pytest.raises(InputError, match=r"no model is registered in sqlite:///.*mlflow.db; register one"):
        resolve("height")
    register(model_folder, champion=False)
    with pytest.raises(InputError, match=r"there is no model 'heigth'; did you mean 'height'\?"):
        resolve("heigth/1")
    with pytest.raises(InputError, match=r"has no version 4; choose one of 1"):
        resolve("height/4")
    with pytest.raises(
        InputError,
        match=r"has no champion \(its versions: height/1\); name one, such as height/1, or .*--to 1",
    ):
        resolve("height")
    connect(tracking_uri()).delete_registered_model_alias("height", "challenger")
    with pytest.raises(InputError, match=r"it has no alias"):
        resolve("height@challenger")
    for spec in ("", "@champion", "height@", "height/x", "a/b/c", "height@a@b"):
        with pytest.raises(InputError, match="names no model"):
            resolve(spec)


def test_a_store_that_does_not_answer_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(
        ResourceError, match=r"^http://127.0.0.1:9: the tracking store does not answer"
    ) as caught:
        resolve("height")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_database_is_one_clear_line(tracking_home: Path) -> None:
    (tracking_home / "mlflow.db").write_bytes(b"no database " * 100)
    with pytest.raises(ResourceError, match=r"mlflow.db: the tracking store does not answer"):
        list_models()


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql+nodriver://db/x", r"the tracking store \S+ .*nodriver"),
        (
            "postgresql+psycopg2cffi://u:secret@db/x",
            r"^postgresql\+psycopg2cffi://db/x: the tracking store needs",
        ),
        ("sqlite:///{tmp}", "the tracking store does not answer .*unable to open"),
        ("sqlite:///{tmp}/file/mlflow.db", "the tracking store does not answer .*File exists"),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_clear_line_at_once(
    uri: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp=tmp_path))
    started = time.monotonic()
    for ask in (lambda: resolve("height"), lambda: get_run_info("abc")):
        with pytest.raises(ResourceError, match=told) as caught:
            ask()
        assert "secret" not in str(caught.value)
    assert time.monotonic() - started < 20


def test_resolving_does_not_look_at_the_other_models_and_listing_asks_once(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    first = register(model_folder)
    register(model_folder, name="weight")

    def too_much(*_: object, **__: object) -> None:
        raise AssertionError("asked for more than was needed")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_registered_model", too_much)
        assert [model.aliases for model in list_models()] == [{"challenger": 1, "champion": 1}] * 2
    monkeypatch.setattr(MlflowClient, "search_model_versions", too_much)
    monkeypatch.setattr(MlflowClient, "search_registered_models", too_much)
    assert resolve("height") == resolve("height/1") == first


def test_the_version_of_a_run(model_folder: Path, tmp_path: Path) -> None:
    first = register(model_folder)
    other = register(change(model_folder))
    assert resolve_run(str(first.run_id)) == first
    assert resolve_run(str(other.run_id)) == other
    (model_folder / "weights.safetensors").write_bytes(b"third")
    assert resolve_run(str(register(model_folder, run_id=first.run_id).run_id)).version == 3
    empty = new_run()
    with pytest.raises(InputError, match=f"run {empty} .RUNNING. has registered no model"):
        resolve_run(empty)
    with pytest.raises(InputError, match="there is no run 'abc'"):
        resolve_run("abc")


def test_sealing_again_does_not_touch_the_list(model_folder: Path) -> None:
    write_checksums(model_folder)
    before = (model_folder / "SHA256SUMS").stat().st_mtime_ns
    (model_folder / "SHA256SUMS").chmod(0o400)
    write_checksums(model_folder)
    assert (model_folder / "SHA256SUMS").stat().st_mtime_ns == before


def test_a_model_is_downloaded_once_and_checked_each_time(model_folder: Path, tmp_path: Path) -> None:
    ref = register(model_folder)
    folder = download(ref, cache_dir=tmp_path / "cache")
    assert (folder / "config.json").read_bytes() == (model_folder / "config.json").read_bytes()
    (folder.parent / "mark").write_text("")
    stamp = folder.stat().st_mtime_ns
    assert download(ref, cache_dir=tmp_path / "cache") == folder
    assert folder.stat().st_mtime_ns == stamp
    (folder / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"weights.safetensors: has changed"):
        download(ref, cache_dir=tmp_path / "cache")


def test_changed_files_in_the_store_never_reach_the_cache(model_folder: Path, tmp_path: Path) -> None:
    ref = register(model_folder)
    (Path(ref.source) / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"weights.safetensors: has changed"):
        download(ref, cache_dir=tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_files_gone_from_the_store_are_named(model_folder: Path, tmp_path: Path) -> None:
    ref = register(model_folder)
    Path(ref.source).rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"height/1: its files are not in the store"):
        download(ref, cache_dir=tmp_path / "cache")


def test_a_version_of_another_program_is_not_loaded(tmp_path: Path) -> None:
    client = connect(tracking_uri())
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(tmp_path))
    with pytest.raises(InputError, match=r"foreign/1: was not registered by snpdeconv"):
        download(resolve("foreign/1"), cache_dir=tmp_path / "cache")
