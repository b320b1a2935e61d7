"""Predictions of people whose trait is known are measured; people whom nobody asked for are left out."""

import json

import numpy as np
import pandas as pd
import pytest
from command_line import train_words
from mlflow import MlflowClient
from sklearn.metrics import r2_score, roc_auc_score

from snpdeconv.pipelines.bundle import load_bundle
from snpdeconv.pipelines.dataset import open_cohort
from snpdeconv.pipelines.retrain import jointly_held_out, predictions_of
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.tracking.home import embedded_uri


@pytest.fixture
def tables(cohort, tmp_path):
    """Of the training people and of others: traits, one of them in words, and covariates."""
    made = {}
    rng = np.random.default_rng(2)
    for name, folder in (("train", cohort), ("others", cohort / "holdout")):
        traits = pd.read_csv(folder / "phenotypes.tsv", sep="\t", dtype={"#FID": str, "IID": str})
        traits["ill"] = np.where(traits["trait"] > traits["trait"].median(), "yes", "no")
        traits.to_csv(tmp_path / f"{name}.tsv", sep="\t", index=False)
        ages = traits[["#FID", "IID"]].assign(age=rng.integers(20, 70, len(traits)).astype(str))
        ages.to_csv(tmp_path / f"{name}_age.tsv", sep="\t", index=False)
        made[name] = (traits, ages)
    return made


def predict_words(cohort, out, *more):
    return ["predict", "--model", "m", "--genotypes", cohort / "holdout" / "cohort.bed", "--out", out, *more]


def test_a_quantity_is_measured_and_people_left_out_are_counted(run, cohort, tables, tmp_path):
    traits, ages = tables["others"]
    covariates = ("--covariates", tmp_path / "train_age.tsv")
    trained = run(*train_words(cohort, tmp_path / "run", "--name", "m", *covariates))
    assert trained.code == 0, trained.err
    ages.loc[3, "age"] = "NA"
    ages.drop(index=7).to_csv(tmp_path / "others_age.tsv", sep="\t", index=False)
    traits.loc[5, "trait"] = None
    traits.drop(index=[8]).to_csv(tmp_path / "others.tsv", sep="\t", index=False, na_rep="NA")
    traits[["#FID", "IID"]].iloc[:4].to_csv(tmp_path / "few", sep="\t", index=False)
    words = predict_words(cohort, tmp_path / "p.tsv", "--covariates", tmp_path / "others_age.tsv")
    measured = run(*words, "--phenotypes", tmp_path / "others.tsv", "--json")
    assert measured.code == 0, measured.err
    assert "2 of 60 people lack a covariate and are left out" in measured.err
    assert "was trained on people of this cohort" not in measured.err
    told = json.loads(measured.out)
    counts = {key: told[key] for key in told if key.startswith("num_")}
    assert counts == {
        "num_samples": 58, "num_na": 0, "num_left_out": 2, "num_measured": 56, "num_without_trait": 2,
    }  # fmt: skip
    kept = json.loads((tmp_path / "p.metrics.json").read_text())
    assert kept["test"] == told["metrics"]
    assert kept["people"] == {"measured": 56, "without_trait": 2, "without_prediction": 0, "left_out": 2}
    table = pd.read_csv(tmp_path / "p.tsv", sep="\t", dtype={"IID": str})
    both = table.merge(traits.drop(index=8).dropna(), on="IID")
    assert len(table) == 58
    r2 = told["metrics"]["r2"]
    assert r2["value"] == pytest.approx(r2_score(both["trait"], both["prediction"]), abs=1e-4)
    assert r2["low"] < r2["value"] < r2["high"]
    provenance = json.loads((tmp_path / "p.provenance.json").read_text())
    assert {"covariates", "phenotypes"} <= set(provenance["inputs"])
    assert "metrics" in provenance["results"]
    run_id = provenance["mlflow_run"]
    assert MlflowClient(embedded_uri()).get_run(run_id).data.metrics["test/r2"] == r2["value"]

    fewer = run(*words, "--remove", tmp_path / "few", "--phenotypes", tmp_path / "others.tsv")
    assert fewer.code == 0, fewer.err
    assert "(55 people)\n  people left out: 5\n" in fewer.out  # of the four one lacks the covariate as well
    assert "metrics of 53 people (2 without the trait)\nr2  " in fewer.out
    before = table.set_index("IID").drop(index=traits["IID"].iloc[:4], errors="ignore")["prediction"]
    after = pd.read_csv(tmp_path / "p.tsv", sep="\t", dtype={"IID": str}).set_index("IID")["prediction"]
    assert np.allclose(before, after, atol=1e-4)
    assert list(before.index) == list(after.index)
    words[words.index("--genotypes") + 1] = cohort / "cohort.bed"
    words[words.index("--covariates") + 1] = tmp_path / "train_age.tsv"
    own = run(*words, "--phenotypes", tmp_path / "train.tsv")
    assert own.code == 0
    assert "was trained on people of this cohort; metrics of them say nothing of others" in own.err

    # Nor is a person without a covariate a judge of a retraining.
    bundle = load_bundle(tmp_path / "run" / "model")
    tested = pd.read_csv(tmp_path / "run" / "test_predictions.tsv", sep="\t", dtype=str)["IID"]
    own_ages = tables["train"][1]
    own_ages[own_ages["IID"] != tested[0]].to_csv(tmp_path / "train_age.tsv", sep="\t", index=False)
    files = {"genotypes": cohort / "cohort.bed", "phenotypes": tmp_path / "train.tsv"}
    inputs = Inputs.from_paths(**files, trait="trait", covariates=tmp_path / "train_age.tsv")
    store = open_cohort(inputs.genotypes, data=bundle.config.data)
    people = jointly_held_out(bundle, bundle, cohort=store, inputs=inputs)
    assert set(store.samples.iid[people.rows]) == set(tested[1:])
    assert np.isfinite(predictions_of(bundle, store, people, inputs, bundle.config)).all()

    refused = run(*words, "--trait", "trait")
    assert refused.err == "error: --trait: there is no table; give --phenotypes too\n"


def test_classes_are_those_of_the_model(run, cohort, tables, tmp_path):
    traits, _ = tables["others"]
    trained = run(
        *train_words(
            cohort, tmp_path / "run", "--name", "m", "--phenotypes", tmp_path / "train.tsv", "--trait", "ill"
        )
    )
    assert trained.code == 0, trained.err
    words = predict_words(cohort, tmp_path / "p.tsv", "--phenotypes", tmp_path / "others.tsv")
    traits.rename(columns={"ill": "sick"}).to_csv(tmp_path / "others.tsv", sep="\t", index=False)
    refused = run(*words)
    assert refused.code == 2
    assert "no column 'ill'" in refused.err.splitlines()[-1]
    measured = run(*words, "--trait", "sick", "--json")
    assert measured.code == 0, measured.err
    figures = json.loads(measured.out)["metrics"]
    table = pd.read_csv(tmp_path / "p.tsv", sep="\t", dtype={"IID": str}).merge(traits, on="IID")
    expected = roc_auc_score(table["ill"] == "yes", table["probability_yes"])
    assert figures["auroc"]["value"] == pytest.approx(expected, abs=1e-4)
    assert figures["accuracy"]["value"] == pytest.approx((table["ill"] == table["prediction"]).mean())
    (tmp_path / "p.tsv").unlink()
    traits.assign(sick=np.where(traits["ill"] == "no", "no", "maybe")).to_csv(
        tmp_path / "others.tsv", sep="\t", index=False
    )
    refused = run(*words, "--trait", "sick")
    assert refused.code == 2
    told = "others.tsv: class 'maybe' of trait 'sick' is unknown to the model; it knows no, yes"
    assert told in refused.err.splitlines()[-1]
    assert not (tmp_path / "p.tsv").exists()
