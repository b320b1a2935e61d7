"""How often retraining promotes what is no better, and finds what is.

`--part decisions` draws predictions of a champion and its challengers as ridge regressions with training
noise make them, and asks `judging.judge`; `null` and `better` train small networks and
judge them as `retrain` does.
Choices (the noise of `retrain`, the sizes below) were made on the seeds of `--tune`; the report has others.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from machine import REPORT_SEEDS, RESULTS, TUNING_SEEDS, write_results

from snpdeconv.config import load_config
from snpdeconv.files import write_json
from snpdeconv.genetics.cohort import Cohort
from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.genetics.phenotypes import Trait, load_trait
from snpdeconv.pipelines.bundle import Bundle
from snpdeconv.pipelines.retrain import judge, predictions_of, train_alone
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.simulation.simulate import simulate

LOOKS = 50
# Champion and challengers of the simulated decisions: heritability; what all fits of a recipe get wrong and
# what a seed adds, as variances; directions of the genotypes. In the first two trainings correlate by .95, as
# those of 600 people did, in the second by .98, as those of 2,000.
HERITABILITY, SHRINKAGE = 0.5, 0.85
WORLDS = {"600 people": (0.06, 0.017, 60), "2,000 people": (0.03, 0.008, 200)}
PEOPLE = (90, 300, 600, 1_000)


def r2_true(weights: np.ndarray, effects: np.ndarray) -> float:
    """Of a prediction in people without number: directions are independent and of variance 1."""
    return float(1 - np.sum((effects - weights) ** 2) - (1 - HERITABILITY))


def sequence(rng: np.random.Generator, *, world: str, num_people: int, kind: str) -> dict[str, Any]:
    """A champion and its looks: `null` of one recipe, `other` of others as good, or one `better` by .05.

    Other recipes are as good on average: of fifty some are truly better, so that promotions count as false by
    the true gain.
    """
    common, noise, directions = WORLDS[world]

    def draw(variance: float) -> np.ndarray:
        return rng.normal(size=directions) * np.sqrt(variance / directions)

    effects = draw(HERITABILITY)
    x = rng.normal(size=(num_people, directions))
    truth = x @ effects + rng.normal(size=num_people) * np.sqrt(1 - HERITABILITY)
    error = draw(common)

    def trained(wrong: np.ndarray) -> np.ndarray:
        return SHRINKAGE * effects + wrong + draw(noise)

    champion = trained(error)
    for look in range(1, LOOKS + 1 if kind != "better" else 2):
        wrong = error if kind == "null" else draw(common)
        challenger, twin = trained(wrong), trained(wrong)
        if kind == "better":
            # The recipe: towards the truth, or from it, until this challenger's true gain is .05.
            gap = effects - challenger
            lacking = 0.05 - (r2_true(challenger, effects) - r2_true(champion, effects))
            shift = gap * (1 - np.sqrt(max(1 - lacking / np.sum(gap**2), 0.0)))
            challenger, twin = challenger + shift, twin + shift
        verdict = judge(
            "quantitative",
            challenger=x @ challenger,
            champion=x @ champion,
            truth=truth,
            metric="r2",
            look=look,
            twin=lambda twin=twin: x @ twin,
            seed=look,
            num_resamples=100,
        )
        if verdict.is_better:
            gain = r2_true(challenger, effects) - r2_true(champion, effects)
            return {"promoted_at": look, "true_gain": gain}
    return {"promoted_at": None, "true_gain": None}


def decisions(seed: int, repeats: int) -> list[dict[str, Any]]:
    """Shares of sequences of looks in which anything was promoted."""
    rows = []
    for world in WORLDS:
        for num_people in PEOPLE:
            for kind in ("null", "other", "better"):
                found = [
                    sequence(np.random.default_rng([seed, i]), world=world, num_people=num_people, kind=kind)
                    for i in range(repeats)
                ]
                promoted = sum(one["promoted_at"] is not None for one in found)
                rows.append({"world": world, "people": num_people, "kind": kind, "sequences": repeats})
                rows[-1] |= {"looks": 1 if kind == "better" else LOOKS, "promoted": promoted}
                gains = [one["true_gain"] for one in found if one["true_gain"] is not None]
                rows[-1] |= {"promoted_no_better": sum(gain <= 0 for gain in gains), "true_gains": gains}
                print(rows[-1], flush=True)
    return rows


SETTINGS = (
    "training.batch_size=64", "model.linear=ridge", "model.channels=8,8", "model.width=16",
    "data.test_fraction=0.35", "training.patience=3",
)  # fmt: skip


class Study:
    """A simulated cohort, people beside it whom no training sees, and a champion trained on it.

    Models are trained and judged as `retrain` does, without ranking and registry.
    """

    def __init__(
        self, folder: Path, *, people: int, seed: int, noise: float = 0.0, unseen: int = 3_000
    ) -> None:
        os.environ["SNPDECONV_HOME"] = str(folder / "home")
        self.folder, self.seed = folder, seed
        simulate(
            folder / "c", num_samples=people, num_variants=200, num_causal=10, seed=seed, num_holdout=unseen
        )
        self.cohort, self.others = (
            load_cohort(str(folder / place / "cohort.bed"), cache_dir=folder / "cache")
            for place in ("c", "c/holdout")
        )
        self.inputs, self.unseen = self._inputs("c"), self._inputs("c/holdout")
        noisy = self._inputs("c", noise=noise) if noise else self.inputs
        self.champion = self.train(3, seed, inputs=noisy, name="champion")
        held_out: Any = self.champion.held_out
        write_json(folder / "held-out.json", asdict(held_out))
        self.inputs = replace(self.inputs, held_out=str(folder / "held-out.json"))
        self.people = self._people(self.cohort, self.inputs)
        chosen = self.champion.held_out.among(self.cohort.samples.take(self.people.rows))
        self.people = replace(self.people, rows=self.people.rows[chosen], values=self.people.values[chosen])

    def _inputs(self, place: str, noise: float = 0.0) -> Inputs:
        table = pd.read_csv(self.folder / place / "phenotypes.tsv", sep="\t", dtype={"IID": str})
        drawn = np.random.default_rng(self.seed).normal(size=len(table))
        table["trait"] += noise * table["trait"].std() * drawn
        path = self.folder / place / f"trait-{noise}.tsv"
        table.to_csv(path, sep="\t", index=False)
        return Inputs.from_paths(genotypes=self.folder / place / "cohort.bed", phenotypes=path, trait="trait")

    @staticmethod
    def _people(cohort: Cohort, inputs: Inputs) -> Trait:
        return load_trait(inputs.phenotypes, column="trait", samples=cohort.samples)

    def train(self, epochs: int, seed: int, *, name: str, inputs: Inputs | None = None) -> Bundle:
        """A model of the cohort."""
        changed = [*SETTINGS, f"training.epochs={epochs}", f"training.seed={seed}"]
        config = load_config("small_cpu", overrides=changed)
        return train_alone(config, inputs or self.inputs, self.cohort, folder=self.folder / name)

    def predicted(self, model: Bundle) -> np.ndarray:
        """Of the people who judge."""
        return predictions_of(model, self.cohort, self.people, self.inputs, model.config)

    def true_r2(self, model: Bundle) -> float:
        """On the people whom no training saw."""
        people = self._people(self.others, self.unseen)
        predicted = predictions_of(model, self.others, people, self.unseen, model.config)
        return float(1 - np.mean((people.values - predicted) ** 2) / people.values.var())

    def look(self, number: int, epochs: int) -> dict[str, Any]:
        """Trains a challenger with a seed of its own and judges it."""
        seed = self.seed + 2 * number
        challenger = self.train(epochs, seed, name=f"challenger-{number}")
        verdict = judge(
            "quantitative",
            challenger=self.predicted(challenger),
            champion=self.predicted(self.champion),
            truth=self.people.values,
            metric="r2",
            look=number,
            twin=lambda: self.predicted(self.train(epochs, seed + 1, name=f"twin-{number}")),
            seed=seed,
        )
        gain = self.true_r2(challenger) - self.true_r2(self.champion)
        row = {"true_gain": gain, **asdict(verdict), "people": len(self.people.rows)}
        row["promoted"] = verdict.is_better
        print(row, flush=True)
        return row


def null_models(seed: int, *, looks: int, people: int) -> dict[str, Any]:
    """One champion, and looks at it that change seed and epochs alone."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), people=people, seed=seed)
        rows = [study.look(number, (3, 2, 5)[number % 3]) for number in range(1, looks + 1)]
    return {"seed": seed, "people": people, "promoted": sum(row["promoted"] for row in rows), "looks": rows}


def better_models(seed: int, *, repeats: int, people: int, noise: float) -> list[dict[str, Any]]:
    """Champions of a trait that was measured worse, and a challenger each of the trait as it is."""
    rows = []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(Study(Path(folder), people=people, seed=seed + 10 * repeat, noise=noise).look(1, 3))
    return rows


def main() -> None:
    """Runs the parts asked for and keeps the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["decisions", "null", "better"], required=True)
    parser.add_argument("--tune", action="store_true", help="on the seeds for choices; nothing is kept")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--people", type=int, default=600)
    parser.add_argument("--noise", type=float, default=1.0)
    given = parser.parse_args()
    seed = (TUNING_SEEDS if given.tune else REPORT_SEEDS)[0]
    if given.part == "decisions":
        result: Any = decisions(seed, given.repeats)
    elif given.part == "null":
        result = null_models(seed, looks=given.repeats, people=given.people)
    else:
        result = better_models(seed, repeats=given.repeats, people=given.people, noise=given.noise)
    if not given.tune:
        path = RESULTS / "retraining.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        kept.pop("machine", None)
        write_results("retraining", {**kept, given.part: {"arguments": vars(given), "result": result}})


if __name__ == "__main__":
    main()
