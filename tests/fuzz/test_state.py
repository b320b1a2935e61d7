"""State of ours and a server's answers, damaged or altered: used as what they are, or told of in one line.

In this process, some milliseconds an input; `SNPDECONV_FUZZ_INPUTS` says how many of each. An input is told by
target, seed and number, as in `test_fuzz`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import resource
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from fuzz.mutate import NASTY, mutate
from hostile_server import RUN, hostile_server
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from snpdeconv import MultiGPUSNPTrainer
from snpdeconv.config import load_config
from snpdeconv.errors import UserError
from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.samples import HashedSamples, Samples
from snpdeconv.genetics.terms import Terms
from snpdeconv.genetics.variants import Variants
from snpdeconv.launch.study import Range, Study, read_trial, trial_path
from snpdeconv.models.layers import SparsePart
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines import linear_part
from snpdeconv.pipelines.bundle import Bundle, load_bundle, save_bundle
from snpdeconv.pipelines.dataset import Scale
from snpdeconv.pipelines.run_folder import Inputs, RunFolder
from snpdeconv.tracking import http_limits
from snpdeconv.tracking.registry import (
    download,
    get_run_info,
    list_models,
    resolve,
    resolve_run,
    rollback,
)
from snpdeconv.tracking.spool import Sent, Spool, peek
from snpdeconv.training.checkpoint import newest_checkpoint
from snpdeconv.training.metrics import Calibration

INPUTS = int(os.environ.get("SNPDECONV_FUZZ_INPUTS", "8"))
FRESH = secrets.randbelow(10**6) + 100
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e300, "", [], {}, [[]], {"a": {}}, "x" * 5000, 2**63, 0.5, ["a"], *NASTY[:20],
)  # fmt: skip


@dataclass(frozen=True)
class State:
    """Some state of ours.

    Attributes:
        make: Writes it, sound, into a folder.
        files: What may be damaged.
        use: What the program does with it.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    use: Callable[[Path], object]


def alter_json(content: bytes, rng: Random) -> bytes:
    """A record with another value somewhere, one missing or one too many: still JSON."""
    try:
        value = json.loads(content)
    except ValueError:
        return mutate(content, rng)
    at: Any = value
    while isinstance(at, dict | list) and at:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.3:
            match rng.randrange(4):
                case 0:
                    del at[key]
                case 1 if isinstance(at, dict):
                    at["unknown"] = rng.choice(VALUES)
                case _:
                    at[key] = rng.choice(VALUES)
            break
        at = at[key]
    return json.dumps(value).encode("utf-8", "replace")


def damage(path: Path, rng: Random) -> None:
    """Damages a file: its bytes, its values, or all of it."""
    content = path.read_bytes()
    kind = rng.random()
    if kind < 0.03:
        path.unlink()
        rng.choice((os.mkfifo, os.mkdir, lambda name: name.symlink_to("/dev/zero"), lambda name: None))(path)
    elif kind < 0.06:
        path.write_bytes(b"" if kind < 0.045 else b"\0" * len(content))
    elif path.suffix in (".json", ".jsonl") and kind < 0.7:
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        at = rng.randrange(len(lines))
        lines[at] = alter_json(lines[at], rng)
        path.write_bytes(b"\n".join(lines) + b"\n")
    else:
        path.write_bytes(mutate(content, rng))


def sound_bundle(folder: Path) -> None:
    """A graph network with a sparse part, components and held-out people: everything that a model may have."""
    model = InterpretableSNPModel(
        8, "gnn", encoding_dim=2, width=8, patch=4, num_neighbors=2, num_covariates=1
    )
    model.carry(
        SparsePart.of(
            Terms(
                first=np.array([0, 4]), second=np.array([-1, 1]),
                first_value=np.ones((2, 4)), second_value=np.ones((2, 4)), weight=np.array([[2.0, -1.0]]),
                intercept=np.zeros(1), covariate_weight=np.empty((1, 0)),
            )
        )
    )  # fmt: skip
    from snpdeconv.genetics.pca import Components

    components = Components(
        loadings=np.ones((3, 1), dtype=np.float32), columns=np.arange(3), frequency=np.full(3, 0.3),
        score_sd=np.ones(1), variance_share=np.ones(1),
    )  # fmt: skip
    bundle = Bundle(
        model=model.eval(),
        variants=Variants.build(
            variant_id=["a", "b", "c"], chrom=["1", "1", "X"], position_bp=[5, 10, 3],
            counted_allele=["A", "C", "G"], other_allele=["C", "A", "T"],
        ),
        frequency=np.array([0.1, 0.25, 0.5]), block=np.array(["x", "y", "z"], dtype=object),
        layout=Layout(columns=np.array([0, 1, -1, -1, 2, -1, -1, -1]), patch=4),
        trait="height", kind="quantitative", classes=(), scale=Scale(1.5, 2.0),
        calibration=Calibration(kind="quantitative", scale=1.0, bias=(0.0,)),
        covariate_encoder=None, components=components,
        held_out=HashedSamples.from_samples(Samples.build(["i", "j"], fid=["f", "g"])),
        inputs=Inputs(genotypes="/a.bed", phenotypes="/p.tsv", trait="height"), config=load_config("small_cpu"),
    )  # fmt: skip
    save_bundle(bundle, folder / "model")


def use_bundle(folder: Path) -> None:
    bundle = load_bundle(folder / "model")
    codes = torch.tensor([[0, 1, 3, 3, 2, 3, 3, 3]], dtype=torch.uint8)
    assert bool(torch.isfinite(bundle.model(codes.to(torch.int64), torch.zeros(1, 1))).all())
    bundle.held_out.among(Samples.build(["i"]))
    bundle.layout.slot_of_variant  # noqa: B018
    assert bool(np.isfinite(bundle.calibration.apply([1.0])).all())


def sound_run(folder: Path) -> None:
    with RunFolder(folder / "run", settings={"model": "m"}) as run:
        run.begin(inputs="x")
        interval = {"r2": {"value": 0.5, "low": None, "high": 0.7}}
        run.remember(batch_size=16, validated={"val_r2": 0.5}, tested=interval)
        run.remember(ranked={"tags": {"a": "b"}, "paths": {"model": "/m"}})
        run.remember(
            result={"run_id": None, "model": "m", "version": 1, "test": interval, "paths": {"model": "/m"}}
        )


def use_run(folder: Path) -> None:
    from snpdeconv.launch.status import read_progress
    from snpdeconv.pipelines.train import TrainResult

    read_progress(folder / "run")
    with RunFolder(folder / "run", settings={"model": "m"}) as run:
        run.begin(inputs="x")
        if "result" in run.state:
            TrainResult(**run.state["result"])
        if "ranked" in run.state:
            dict(run.state["ranked"]["tags"], **run.state["ranked"]["paths"])


def trainer() -> MultiGPUSNPTrainer:
    """A run of a moment, with all that a checkpoint may hold."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 4), torch.rand(40).round()
    train = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
    return MultiGPUSNPTrainer(
        model, train, DataLoader(TensorDataset(x, y), batch_size=16), use_amp=False, device="cpu", seed=1,
        checkpoint_every_steps=1, schedule="plateau", plateau_patience=0,
    )  # fmt: skip


def sound_checkpoints(folder: Path) -> None:
    trainer().train(2, checkpoint_dir=folder / "checkpoints")
    max((folder / "checkpoints").glob("last-*")).unlink()  # in the middle of an epoch


def use_checkpoints(folder: Path) -> None:
    trainer().train(2, checkpoint_dir=folder / "checkpoints")


def alter_checkpoint(folder: Path, rng: Random) -> None:
    """Another value in a checkpoint, under a name that fits it: not damaged, but none of ours."""
    path = newest_checkpoint(folder / "checkpoints")
    assert path is not None
    contents = torch.load(path, weights_only=True)
    at: Any = {name: contents[name] for name in ("progress", "settings", "model")}
    top = at
    while isinstance(at, dict | list) and at:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.3:
            old = at[key]
            at[key] = (
                rng.choice((old[:0], old.double() * torch.nan, old.reshape(-1)[:1], torch.zeros(3, 3, 3)))
                if isinstance(old, torch.Tensor) and rng.random() < 0.7
                else rng.choice(VALUES)
            )
            break
        at = at[key]
    buffer = io.BytesIO()
    torch.save({**contents, **top}, buffer)
    for old_path in (folder / "checkpoints").glob("last-*"):
        old_path.unlink()
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    (folder / "checkpoints" / f"last-00000009-{digest}.pt").write_bytes(buffer.getvalue())


def sound_linear(folder: Path) -> None:
    kept = {"offset": torch.zeros(5, 1), "wide.weight": torch.ones(1, 16)}
    facts = {"digest": "d", "sha256": linear_part._checksum(kept)}
    save_file(kept, folder / "linear.safetensors", metadata=facts)


def use_linear(folder: Path) -> None:
    kept = linear_part._read(folder / "linear.safetensors", digest="d")
    if kept is not None:  # then it is what was written, to the bit
        assert torch.equal(kept["wide.weight"], torch.ones(1, 16))
        assert torch.equal(kept["offset"], torch.zeros(5, 1))


def sound_spool(folder: Path) -> None:
    spool = Spool(folder, "a" * 32)
    assert spool.acquire()
    process = {"uri": "", "host": "h", "pid": 1}
    spool.append(
        "create", process | {"experiment": "e", "name": "n", "params": {"a": "1"}, "tags": {"b": "2"}}
    )
    spool.append("metrics", {"step": 0, "values": {"train/epoch_loss": 1.0, "val/loss": 2.0}})
    spool.append("artifact", {"path": "/x", "folder": "", "from_home": "../x"})
    place = {"path": "/x", "from_home": "../x"}
    spool.append("register", place | {"name": "m", "digest": "0" * 64, "tags": {}, "champion_if_none": True})
    spool.append("open", process)
    spool.append("status", {"status": "FINISHED"})
    spool.note_lost(0)
    spool.commit(Sent("sqlite:///x", run_id="r", offset=spool.size))
    spool.release()


def use_spool(folder: Path) -> None:
    from snpdeconv.tracking.ship import _batches

    spool = Spool(folder, "a" * 32)
    with contextlib.suppress(FileNotFoundError):
        peek(spool.events_path)
    if not spool.acquire():
        raise AssertionError
    try:
        spool.history()
        spool.lost()
        sent = spool.sent("sqlite:///x")
        for batch in _batches(spool.read(sent.offset)):
            for event in batch:
                if event.kind == "unreadable":
                    spool.reject(event, reason="damaged")
        spool.append("status", {"status": "KILLED"})
        spool.commit(sent)
    finally:
        spool.release()


SPACE = {"training.learning_rate": Range(low=1e-4, high=1e-2, log=True)}


def sound_study(folder: Path) -> None:
    study = Study(folder / "study.jsonl")
    for element in range(3):
        number, _ = study.ask(SPACE, element=element)
        study.tell(number, element / 4)
    trial_path(folder, 0).write_text(json.dumps({"number": 0, "values": {"training.learning_rate": 0.001}}))


def use_study(folder: Path) -> None:
    kept = read_trial(folder, 0)
    study = Study(folder / "study.jsonl")
    study.best()
    number, _ = study.ask(SPACE, element=4)
    study.tell(number, 0.5)
    if kept is not None:
        study.tell(kept[0], None)


STATES = {
    "bundle": State(
        sound_bundle,
        ("model/config.json", "model/model.safetensors", "model/variants.tsv", "model/held_out.json"),
        use_bundle,
    ),
    "run": State(sound_run, ("run/run.json",), use_run),
    "linear": State(sound_linear, ("linear.safetensors",), use_linear),
    "spool": State(
        sound_spool, (f"{'a' * 32}/events.jsonl", f"{'a' * 32}/sent.json", f"{'a' * 32}/lost"), use_spool
    ),
    "study": State(sound_study, ("study.jsonl", "trial-0.json"), use_study),
    "checkpoints": State(sound_checkpoints, ("*.pt",), use_checkpoints),
}


@contextlib.contextmanager
def one_line(told: str, faults: list[str]) -> Iterator[None]:
    """Whatever ends otherwise than well or in one line, takes long or much memory, is a fault."""
    started, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    except UserError as error:
        text = str(error)
        if "\n" in text or len(text) > 1500:
            faults.append(f"{told}: {len(text)} characters, {text[:200]!r}")
    except OSError as error:  # the command line tells these in one line too
        if error.filename is None:
            faults.append(f"{told}: {error!r}")
    except Exception as error:
        faults.append(f"{told}: {type(error).__name__}: {str(error)[:300]}")
    if time.monotonic() - started > 60:
        faults.append(f"{told}: ran over 60 s")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 2 * 2**20:
        faults.append(f"{told}: took over 2 GiB")


@pytest.mark.parametrize("seed", ["fixed", "fresh"])
@pytest.mark.parametrize("name", STATES)
@pytest.mark.timeout(3600)
def test_damaged_state(name: str, seed: str, tmp_path: Path) -> None:
    state, number = STATES[name], 1 if seed == "fixed" else FRESH
    logging.getLogger("snpdeconv").setLevel(logging.CRITICAL)
    (tmp_path / "sound").mkdir()
    state.make(tmp_path / "sound")
    faults: list[str] = []
    for one in range(-1, INPUTS if name != "checkpoints" else max(1, INPUTS // 2)):
        folder, rng = tmp_path / "damaged", Random(f"{name}:{number}:{one}")
        shutil.copytree(tmp_path / "sound", folder)
        if name == "checkpoints" and one >= 0 and rng.random() < 0.5:
            alter_checkpoint(folder, rng)
        elif one >= 0:
            damage(rng.choice([path for file in state.files for path in sorted(folder.rglob(file))]), rng)
        if one < 0:
            state.use(folder)  # what is sound is used
        else:
            with one_line(f"{name}:{number}:{one}", faults):
                state.use(folder)
            left = [path for path in folder.rglob("*") if path.name.startswith((".writing-", ".run-"))]
            faults += [f"{name}:{number}:{one}: left {left}"] * bool(left)
        shutil.rmtree(folder)
    logging.getLogger("snpdeconv").setLevel(logging.INFO)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("seed", ["fixed", "fresh"])
@pytest.mark.timeout(3600)
def test_altered_answers_of_a_server(seed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them to every call that a command makes, in JSON and in bytes."""
    monkeypatch.setattr(http_limits, "CALL_S", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    number = 1 if seed == "fixed" else FRESH
    faults: list[str] = []
    sound_bundle(tmp_path)
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    calls: tuple[Callable[[], object], ...] = (
        lambda: load_bundle(download(resolve("m"), cache_dir=tmp_path / "cache")),
        lambda: resolve_run(RUN),
        lambda: get_run_info(RUN),
        list_models,
        lambda: rollback("m"),
    )
    with hostile_server() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        for one in range(INPUTS):
            rng = Random(f"server:{number}:{one}")
            server.hold(files)
            server.answers = {}
            end = rng.choice(
                ("registered-models/get", "registered-models/search", "model-versions/get",
                 "model-versions/search", "runs/get", "file"),
            )  # fmt: skip
            if end == "file":
                name = rng.choice(sorted(server.files))
                changed = alter_json if name.endswith(".json") and rng.random() < 0.7 else mutate
                altered = {**files, name: changed(server.files[name], rng)}
                if name == "SHA256SUMS":
                    server.files["SHA256SUMS"] = altered[name]
                elif rng.random() < 0.8:
                    server.hold(altered)  # a server can seal what it likes
                else:
                    server.files[name] = altered[name]
            else:
                answer = json.dumps(server.answer(end)).encode()
                body = alter_json(answer, rng) if rng.random() < 0.7 else mutate(answer, rng)
                server.answers[end] = body
            for call in calls:
                with one_line(f"server:{number}:{one} ({end})", faults):
                    call()
            outside = [
                path.name for path in tmp_path.iterdir() if path.name not in ("home", "cache", "model")
            ]
            faults += [f"server:{number}:{one}: wrote {outside}"] * bool(outside)
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert not faults, "\n".join(faults)
