"""Predictions on genotypes that cannot be right are refused, and people with too few of them get none."""

import numpy as np
import pandas as pd
import pytest
from command_line import train_words

from snpdeconv.genetics.ingest import load_cohort
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.writers import write_bed


@pytest.fixture
def predict(run, cohort, tmp_path):
    """Trains a model, then predicts 60 people of whom some columns or codes are changed."""
    trained = run(*train_words(cohort, tmp_path / "run", "--name", "m"))
    assert trained.code == 0, trained.err
    held_out = load_cohort(cohort / "holdout" / "cohort.bed", cache_dir=tmp_path / "cache")

    def changed(name, *words, codes=None, rows=None, **columns):
        table = {**held_out.variants.to_frame().rename(columns={"pos": "position_bp"}), **columns}
        given = held_out.genotypes.codes().copy() if codes is None else codes
        samples = held_out.samples if rows is None else held_out.samples.take(rows)
        path = write_bed(
            tmp_path / name,
            given,
            variants=Variants(**{k: np.asarray(v) for k, v in table.items()}),
            samples=samples,
        )
        out = tmp_path / f"{name}.tsv"
        done = run("predict", "--model", "m@champion", "--genotypes", path, "--out", out, *words)
        return done, pd.read_csv(out, sep="\t") if out.exists() else None

    return held_out, changed


def test_predictions_on_what_cannot_be_right(predict, run, cohort, tmp_path):
    held_out, changed = predict
    codes, variants = held_out.genotypes.codes().copy(), held_out.variants
    sound, right = changed("sound")
    assert sound.code == 0
    assert "correlation" not in sound.err
    rng = np.random.default_rng(1)
    hopeless = {
        "labels": {"counted_allele": variants.other_allele, "other_allele": variants.counted_allele},
        "rows": {"codes": np.roll(codes, 7, axis=1)},
        "next site": {"position_bp": np.append(variants.position_bp[1:], variants.position_bp[-1] + 1)},
        "random": {"codes": rng.integers(0, 3, codes.shape).astype(np.uint8)},
        "constant": {"codes": np.zeros_like(codes)},
        "missing": {"codes": np.full_like(codes, 3)},
    }  # fmt: skip
    odd = np.arange(codes.shape[1]) % 2
    hopeless["half"] = {"codes": np.where(odd, np.array([2, 1, 0, 3], np.uint8)[codes], codes)}
    for name, change in hopeless.items():
        done, table = changed(name, **change)
        assert done.code == 2, (name, done.err)
        assert table is None
        assert any(word in done.err for word in ("allele frequenc", "no genotype is called")), done.err
    done, table = changed("forced", "--set", "data.check_frequencies=false", **hopeless["labels"])
    assert done.code == 0
    assert np.corrcoef(table["prediction"], right["prediction"])[0, 1] < 0.5
    tables = ("--phenotypes", cohort / "holdout" / "phenotypes.tsv", "--out", tmp_path / "ranked")
    swapped = ("--genotypes", tmp_path / "forced.bed", *tables)
    done = run("rank", "--model", "m@champion", "--method", "marginal", *swapped)
    assert done.code == 2
    override = done.err.partition("if it is right all the same, ")[2].split()
    assert override == ["--set", "data.check_frequencies=false"]
    done = run("rank", "--model", "m@champion", "--method", "marginal", *swapped, *override)
    assert done.code == 0, done.err
    few, table = changed("few", codes=codes[:20], rows=np.arange(20))
    assert few.code == 0
    assert np.allclose(table["prediction"], right["prediction"][:20], atol=1e-4)


def test_people_with_few_genotypes_get_no_prediction(predict):
    held_out, changed = predict
    codes = held_out.genotypes.codes().copy()
    codes[0] = 3
    codes[1, ::10] = 3
    done, table = changed("half", codes=codes)
    assert done.code == 0, done.err
    assert np.isnan(table["prediction"][0])
    assert table["prediction"][1:].notna().all()
    assert table["typed_weight"][0] == 0
    assert 0.5 < table["typed_weight"][1] < 1
    assert table["missing"][0] == table["missing"].max()
    assert table["missing"][2] == (codes[2] == 3).sum() == 0
    assert table["missing"][1] > 0
    assert "1 of 60 people are typed at under half" in done.err
    assert "people without a prediction: 1" in done.out
    warned, table = changed("warned", "--set", "data.min_typed_weight=0", codes=codes)
    assert warned.code == 0
    assert table["prediction"].notna().all()
    assert "1 of 60 people are typed at under half" in warned.err
