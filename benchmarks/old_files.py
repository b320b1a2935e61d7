"""What another version wrote opens with this one and gives the same numbers: bundle, run, store, settings.

usage: python benchmarks/old_files.py --old CHECKOUT [--new CHECKOUT]
Each version does the same seeded work, and the files are compared byte by byte; then the new one goes on
where the old one left things. Ends with 1, and the differences, where one is found.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from checkout import HERE, Checkout

ARCHITECTURES = ("cnn", "cnn_transformer", "gnn")
SETTINGS = (
    "training.epochs=4", "training.batch_size=16", "training.checkpoint_every_steps=3", "model.width=16",
    "model.channels=6,6", "model.num_layers=1", "tracking.log_every_steps=1",
    "interpretation.gradient_steps=4", "interpretation.max_samples=60", "interpretation.decoys=1",
)  # fmt: skip
SET = [word for setting in SETTINGS for word in ("--set", setting)]
TABLES = ("ranking.tsv", "credible_sets.tsv", "pairs.tsv", "blocks.tsv")
TRAINED = (
    *TABLES, "metrics.json", "test_predictions.tsv", "settings.yaml", "model/model.safetensors",
    "model/config.json", "model/variants.tsv",
)  # fmt: skip
OF_ONE_TIME = ("log.txt", "provenance.json", "verified.json")
"""Files that hold times and paths."""


class Check:
    """The two versions at work in one folder, and what was found."""

    def __init__(self, old: Checkout, new: Checkout, folder: Path, architectures: Sequence[str]) -> None:
        self.old, self.new, self.folder, self.architectures = old, new, folder, architectures
        self.failures = 0

    def say(self, what: str, problems: list[str]) -> None:
        """A line for a finding, and its details."""
        print("same     " if not problems else "DIFFERENT", what, flush=True)
        for line in problems:
            print(f"    {line}")
        self.failures += bool(problems)

    def files(self, what: str, old: Path, new: Path, names: tuple[str, ...]) -> None:
        """Two folders' files, byte by byte."""
        self.say(what, [line for name in names for line in differences(old / name, new / name)])

    def attempt(self, what: str, work: Callable[[], None]) -> None:
        """A step whose failure is a finding and no end of the others."""
        try:
            work()
        except (RuntimeError, OSError, StopIteration) as error:
            self.say(what, str(error).splitlines())

    def inputs(self) -> list[str]:
        """The cohort, as options."""
        cohort = self.folder / "cohort"
        return [
            "--genotypes",
            f"{cohort}/cohort.bed",
            "--phenotypes",
            f"{cohort}/phenotypes.tsv",
            "--trait",
            "trait",
        ]

    def train_words(self, architecture: str, out: Path) -> list[str]:
        """A small seeded training."""
        words = ["train", *self.inputs(), "--name", architecture, "--out", str(out), *SET]
        return [*words, "--set", f"model.architecture={architecture}"]


def differences(old: Path, new: Path) -> list[str]:
    """Nothing for equal files (or where neither is there), else the first lines that differ."""
    if not old.exists() and not new.exists():
        return []
    if not old.exists() or not new.exists():
        return [f"{old.name}: written by the {'old' if old.exists() else 'new'} version alone"]
    before, after = old.read_bytes(), new.read_bytes()
    if before == after:
        return []
    digests = (hashlib.sha256(content).hexdigest()[:12] for content in (before, after))
    told = [f"{old.name}: sha256 {' -> '.join(digests)}"]
    if old.suffix != ".safetensors":
        texts = (content.decode(errors="replace").splitlines() for content in (before, after))
        changed = [
            line
            for line in difflib.unified_diff(*texts, lineterm="", n=0)
            if line[:2] not in ("--", "++", "@@")
        ]
        told.extend(f"  {line[:160]}" for line in changed[:6])
    return told


def losses(home: Path, architecture: str) -> list[tuple[int, float]]:
    """Step and loss of each training step of a run of a home, from what it said on disk."""
    points: list[tuple[int, float]] = []
    for path in sorted((home / "spool").rglob("events.jsonl")):
        events = [json.loads(line) for line in path.read_text().splitlines()]
        said = [event.get("data", event) for event in events]
        if not any(str(data.get("name", "")).startswith(f"{architecture} ") for data in said):
            continue
        values = [(data["step"], data["values"]) for data in said if "values" in data]
        points += [(step, value["train/loss"]) for step, value in values if "train/loss" in value]
    return sorted(points)


def same_work(check: Check) -> None:
    """The same commands with the same seeds: simulation, training of each architecture, ranking."""
    folder = check.folder
    sizes = [
        "--samples",
        "240",
        "--variants",
        "200",
        "--causal",
        "4",
        "--pve",
        "0.8",
        "--seed",
        "3",
        "--holdout",
        "60",
    ]
    for side, out in (("old", folder / "cohort"), ("new", folder / "cohort-new")):
        getattr(check, side).command("simulate", out, *sizes, home=folder / f"home-{side}")
    names = ("cohort.bed", "cohort.bim", "cohort.fam", "phenotypes.tsv", "causal.tsv", "holdout/cohort.bed")
    check.files("simulated cohort", folder / "cohort", folder / "cohort-new", names)
    for architecture in check.architectures:
        outs, told = {}, {}
        for side in ("old", "new"):
            home = folder / f"home-{side}"
            outs[side] = folder / f"run-{side}-{architecture}"
            getattr(check, side).command(*check.train_words(architecture, outs[side]), home=home)
            told[side] = losses(home, architecture)
        if not told["old"]:
            raise RuntimeError("the old version said no losses")
        unequal = [f"{a} -> {b}" for a, b in zip(told["old"], told["new"], strict=False) if a != b][:3]
        if len(told["old"]) != len(told["new"]):
            unequal.append(f"{len(told['old'])} steps -> {len(told['new'])}")
        check.say(f"losses of {len(told['old'])} steps, {architecture}", unequal)
        check.files(f"files of train, {architecture}", outs["old"], outs["new"], TRAINED)
    for side in ("old", "new"):
        words = [
            "rank",
            *check.inputs(),
            "--out",
            folder / f"ranking-{side}",
            "--set",
            "interpretation.decoys=1",
        ]
        getattr(check, side).command(*words, home=folder / f"home-{side}")
    check.files("files of rank", folder / "ranking-old", folder / "ranking-new", TABLES)


def bundle(check: Check) -> None:
    """The registered model of the old version, in its home: predictions, attributions, a ranking by run."""
    folder = check.folder
    for architecture in check.architectures:
        home, model = folder / "home-old", f"{architecture}@champion"
        predict = ["predict", "--model", model, "--genotypes", folder / "cohort" / "holdout" / "cohort.bed"]
        rank = ["rank", "--model", model, "--method", "integrated_gradients"]
        for side in ("old", "new"):
            out = folder / f"opened-{side}-{architecture}"
            out.mkdir()
            getattr(check, side).command(*predict, "--out", out / "predictions.tsv", home=home)
            getattr(check, side).command(*rank, "--out", out / "ranking", home=home)
        old, new = (folder / f"opened-{side}-{architecture}" for side in ("old", "new"))
        check.files(f"predictions of an old bundle, {architecture}", old, new, ("predictions.tsv",))
        check.files(f"attributions of an old run, {architecture}", old / "ranking", new / "ranking", TABLES)


def interrupted(check: Check, architecture: str) -> None:
    """A run of the old version, killed between two checkpoints, that the new one goes on with."""
    out, home = check.folder / f"killed-{architecture}", check.folder / "home-killed"
    home.mkdir(exist_ok=True)
    words = check.old.words(*check.train_words(architecture, out))
    process = subprocess.Popen(
        words, cwd=home, env=check.old.environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while (
        process.poll() is None and time.monotonic() < deadline and not list(out.glob("checkpoints/last-*.pt"))
    ):
        time.sleep(0.005)
    if process.poll() is not None:
        raise RuntimeError("the run ended before it could be killed")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = sorted(path.name for path in out.glob("checkpoints/last-*.pt"))
    if not kept or (out / "model").exists():
        raise RuntimeError(f"the run was not killed in its training: {kept}")
    check.new.command(*check.train_words(architecture, out), home=home)
    whole = check.folder / f"run-old-{architecture}"
    names = tuple(name for name in TRAINED if name != "settings.yaml")
    check.files(f"resumed from {kept[-1][:13]}, {architecture}", whole, out, names)
    expected = losses(check.folder / "home-old", architecture)
    found = dict(losses(home, architecture))
    wrong = [
        f"step {step}: {loss} -> {found.get(step)}" for step, loss in expected if found.get(step) != loss
    ]
    check.say(f"losses of the resumed run, {architecture}", wrong[:5])


def store(check: Check) -> None:
    """An imported cohort of the old version, and a finished run of it, asked again."""
    folder = check.folder
    home = folder / "home-new"
    check.old.command("import", folder / "cohort" / "cohort.bed", folder / "store", home=home)
    check.new.command("import", folder / "cohort" / "cohort.bed", folder / "store-new", home=home)
    names = tuple(path.name for path in sorted((folder / "store").iterdir()) if path.name not in OF_ONE_TIME)
    check.files(f"files of import: {', '.join(names)}", folder / "store", folder / "store-new", names)
    words = [
        "--phenotypes",
        folder / "cohort" / "phenotypes.tsv",
        "--trait",
        "trait",
        "--set",
        "interpretation.decoys=1",
    ]
    check.new.command(
        "rank", "--genotypes", folder / "store", *words, "--out", folder / "from-store", home=home
    )
    check.files("ranking of an old store", folder / "ranking-old", folder / "from-store", TABLES)
    architecture = check.architectures[0]
    out = folder / f"run-old-{architecture}"
    copy = folder / "run-again"
    shutil.copytree(out, copy)
    check.new.command(*check.train_words(architecture, out), home=folder / "home-old")
    check.files("a finished old run, started again", copy, out, TRAINED)


def settings(check: Check) -> None:
    """Settings that the old version wrote, and its presets, are taken."""
    folder = check.folder
    for side in ("old", "new"):
        words = [
            "rank",
            *check.inputs(),
            "--preset",
            folder / f"run-old-{check.architectures[0]}" / "settings.yaml",
        ]
        out = folder / f"by-settings-{side}"
        getattr(check, side).command(*words, "--out", out, home=folder / f"home-{side}")
    check.files(
        "ranking by an old settings.yaml", folder / "by-settings-old", folder / "by-settings-new", TABLES
    )
    refused = []
    presets = sorted((check.old.root / "snpdeconv" / "presets").glob("*.yaml"))
    for preset in presets:
        # Settings are read before the cohort: a cohort that is not there ends the command after them.
        absent = [
            "--genotypes",
            folder / "absent.bed",
            "--phenotypes",
            folder / "absent.tsv",
            "--trait",
            "trait",
        ]
        try:
            check.new.command(
                "rank", *absent, "--preset", preset, "--out", folder / "none", home=folder / "home-new"
            )
        except RuntimeError as error:
            if "absent" not in str(error).splitlines()[-1]:
                refused.append(f"{preset.name}: {str(error).splitlines()[-1]}")
    check.say(f"{len(presets)} presets of the old version are accepted", refused)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, default=HERE)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        old, new = Checkout(arguments.old.resolve()), Checkout(arguments.new.resolve())
        check = Check(old, new, Path(temporary), arguments.architectures)
        print(f"old {old.commit()}, new {new.commit()}", flush=True)
        check.attempt("the same work", lambda: same_work(check))
        check.attempt("old bundles", lambda: bundle(check))
        for architecture in check.architectures:
            check.attempt(
                f"interrupted run, {architecture}", lambda name=architecture: interrupted(check, name)
            )
        check.attempt("old store", lambda: store(check))
        check.attempt("old settings", lambda: settings(check))
    print(f"{check.failures} differences" if check.failures else "no difference")
    sys.exit(bool(check.failures))


if __name__ == "__main__":
    main()
