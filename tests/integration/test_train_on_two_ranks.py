"""`snpdeconv train` under torchrun: two ranks come to what one does, and one of them alone writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from command_line import train_words

SETTINGS = (
    "--set",
    "model.architecture=cnn_transformer",
    "--set",
    "model.dropout=0",
    "--set",
    "interpretation.methods=single_effects,attention,integrated_gradients",
    "--set",
    "interpretation.num_permutations=3",
)


def torchrun(*words):
    folder = Path(sys.executable).parent
    return subprocess.run(
        [
            folder / "torchrun", "--standalone", "--nproc-per-node", "2",
            "--no-python", folder / "snpdeconv", *map(str, words),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )  # fmt: skip


def test_two_ranks_come_to_what_one_does(run, cohort, tmp_path):
    done = torchrun(*train_words(cohort, tmp_path / "two", *SETTINGS, "--name", "two", "--json"))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1  # one rank speaks for all
    alone = run(*train_words(cohort, tmp_path / "one", *SETTINGS, "--name", "one", "--json"))
    assert alone.code == 0, alone.err

    together, by_itself = (json.loads(text.splitlines()[-1]) for text in (done.stdout, alone.out))
    assert (together["version"], by_itself["version"]) == (1, 1)
    for metric, interval in by_itself["test"].items():
        np.testing.assert_allclose(together["test"][metric]["value"], interval["value"], rtol=1e-3)
    rankings = [pd.read_csv(tmp_path / name / "ranking.tsv", sep="\t") for name in ("one", "two")]
    assert list(rankings[0]["variant_id"]) == list(rankings[1]["variant_id"])
    # The ranks share decoys, folds and the people that attributions look at.
    for column in ("pip", "q_value"):
        pd.testing.assert_series_equal(rankings[0][column], rankings[1][column])
    for column in ("attention", "integrated_gradients"):
        np.testing.assert_allclose(rankings[0][column], rankings[1][column], rtol=0.02, atol=1e-6)
    predictions = [
        pd.read_csv(tmp_path / name / "test_predictions.tsv", sep="\t")["prediction"]
        for name in ("one", "two")
    ]
    np.testing.assert_allclose(*predictions, atol=2e-3)

    again = torchrun(*train_words(cohort, tmp_path / "two", *SETTINGS, "--name", "two", "--json"))
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout.splitlines()[-1])["run_id"] == together["run_id"]


def test_a_mistake_that_one_rank_finds_ends_all_of_them_at_once(cohort, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.doc").write_text("mine")
    done = torchrun(*train_words(cohort, tmp_path / "taken", *SETTINGS))
    assert done.returncode != 0
    assert "holds other files and no run" in done.stderr
    assert "snpdeconv/cli.py" not in done.stderr  # a traceback would name it


def test_the_first_rank_has_time_to_tell_why_all_failed(cohort, tmp_path):
    words = ("--set", "training.learning_rate=1e30", "--set", "tracking.log_every_steps=1")
    done = torchrun(*train_words(cohort, tmp_path / "run", *SETTINGS, *words))
    assert done.returncode != 0
    outcome = json.loads((tmp_path / "run" / "provenance.json").read_text())["outcome"]
    assert outcome.startswith("failed: ")
    assert "no longer finite" in outcome
