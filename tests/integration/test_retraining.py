"""Retraining: when it trains, when the challenger wins, and what stays on record."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from command_line import FAST

from snpdeconv.config import load_config
from snpdeconv.errors import InputError
from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.pipelines.bundle import load_bundle
from snpdeconv.pipelines.retrain import retrain
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.tracking.registry import list_models, resolve, version_tags

CONFIG = load_config("small_cpu", overrides=[*FAST, "model.linear=ridge"])


def inputs_of(folder, phenotypes=None):
    return Inputs.from_paths(
        genotypes=folder / "cohort.bed", phenotypes=phenotypes or folder / "phenotypes.tsv", trait="trait"
    )


@pytest.fixture
def noisy(cohort, tmp_path):
    """The cohort as it was at first: the trait of nearly everyone measured badly."""
    table = pd.read_csv(cohort / "phenotypes.tsv", sep="\t")
    rng = np.random.default_rng(1)
    table["trait"] = 0.15 * table["trait"] + rng.normal(size=len(table))
    table.to_csv(tmp_path / "noisy.tsv", sep="\t", index=False)
    return inputs_of(cohort, tmp_path / "noisy.tsv")


def people_tested(run):
    """Individual IDs of the people that a run tested its model on."""
    return set(pd.read_csv(run / "test_predictions.tsv", sep="\t", dtype={"IID": str})["IID"])


def test_better_data_make_a_challenger_that_is_promoted_on_the_same_people(cohort, noisy, tmp_path, home):
    first = retrain(CONFIG, noisy, model_name="height", out=tmp_path / "first")
    assert (first.reason, first.champion, first.promoted) == ("there was no champion", 1, True)
    tested = people_tested(tmp_path / "first")

    again = retrain(CONFIG, noisy, model_name="height", out=tmp_path / "again")
    assert (again.retrained, again.reason) == (False, "nothing changed")
    assert not (tmp_path / "again").exists()

    second = retrain(CONFIG, inputs_of(cohort), model_name="height", out=tmp_path / "second")
    assert second.reason == "changed: data"
    assert second.promoted
    assert second.low > 0
    assert second.training_noise > 0  # a twin said what a seed can do
    assert not (tmp_path / "second" / "twin").exists()
    assert (second.champion, second.challenger) == (2, 2)
    assert resolve("height@champion").version == 2
    assert second.num_held_out == len(tested) == 36
    assert people_tested(tmp_path / "second") == tested
    everybody = load_cohort(cohort / "cohort.bed", cache_dir=tmp_path / "cache").samples
    hashed = load_bundle(tmp_path / "second" / "model").held_out
    assert set(everybody.iid[hashed.among(everybody)]) == tested
    assert not list(home.rglob("*held-out*"))
    tags = version_tags("height", 2)
    assert tags["snpdeconv.promotion"] == "promoted"
    assert tags["snpdeconv.compared_with"] == "1"
    assert json.loads((tmp_path / "second" / "decision.json").read_text())["low"] == second.low


def test_a_challenger_that_is_no_better_is_refused_and_not_trained_again(cohort, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    retrain(CONFIG, inputs_of(cohort), model_name="height", out=tmp_path / "first")
    other = load_config("small_cpu", overrides=[*FAST, "model.linear=ridge", "training.seed=2"])
    refused = retrain(other, inputs_of(cohort), model_name="height", out=tmp_path / "second")
    assert refused.reason == "changed: settings"
    assert not refused.promoted
    assert refused.low <= 0 <= refused.high
    assert refused.champion == 1
    assert resolve("height@champion").version == 1
    assert version_tags("height", 2)["snpdeconv.promotion"].startswith("refused")

    again = retrain(other, inputs_of(cohort), model_name="height", out=tmp_path / "third")
    assert not again.retrained
    forced = retrain(other, inputs_of(cohort), model_name="height", out=tmp_path / "fourth", force=True)
    assert (forced.reason, forced.challenger) == ("forced", 3)
    # Every look at the champion counts, forced ones too, and is harder to pass than the one before.
    assert (refused.look, forced.look) == (1, 2)
    assert forced.level < refused.level
    assert version_tags("height", 1)["snpdeconv.looks"] == "2"
    assert "look 2 at this champion" in caplog.text
    assert f"over version 1 on {forced.num_held_out} people" in caplog.text
    assert "36 test" in caplog.text
    assert forced.num_held_out == 36
    (model,) = list_models()
    assert model.aliases == {"champion": 1, "challenger": 3}


def test_a_cohort_without_the_people_that_the_champion_was_tested_on(cohort, noisy, tmp_path):
    retrain(CONFIG, noisy, model_name="height", out=tmp_path / "first")
    held_out = people_tested(tmp_path / "first")
    table = pd.read_csv(cohort / "phenotypes.tsv", sep="\t", dtype={"IID": str})
    table[~table["IID"].isin(held_out)].to_csv(tmp_path / "others.tsv", sep="\t", index=False)
    others = inputs_of(cohort, tmp_path / "others.tsv")
    with pytest.raises(InputError, match=r"names none of the .* people with a trait"):
        retrain(CONFIG, others, model_name="height", out=tmp_path / "second")
