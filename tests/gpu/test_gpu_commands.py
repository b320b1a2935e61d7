"""The commands on a GPU, as a user types them; of a simulated one where there is none."""

import contextlib
import json

import numpy as np
import pytest
import torch
from command_line import train_words
from simulated_gpu import simulated_gpu

pd = pytest.importorskip("pandas")
SETTINGS = ("--set", "interpretation.pairs=false", "--set", "interpretation.num_permutations=0")


@pytest.fixture(params=[("simulated", "cnn"), *(pytest.param(("cuda", name), marks=pytest.mark.gpu)
                                                for name in ("cnn", "cnn_transformer", "gnn"))])  # fmt: skip
def place(request):
    """Where and which network; simulated, a whole run takes half a minute."""
    for name in ("pydantic", "typer", "mlflow", "msprime", "submitit"):
        pytest.importorskip(name)
    if request.param[0] == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    return request.param


@pytest.mark.slow
def test_train_rank_and_predict_come_to_what_they_do_on_the_cpu(place, run, cohort, tmp_path):
    where, architecture = place
    settings = (*SETTINGS, "--set", f"model.architecture={architecture}")
    for name in ("cpu", "cuda"):
        words = train_words(
            cohort, tmp_path / name, *settings, "--set", f"resources.device={name}", "--name", name
        )
        with simulated_gpu() if (name, where) == ("cuda", "simulated") else contextlib.nullcontext():
            done = run(*words)
        assert done.code == 0, done.err
    ours, theirs = (
        pd.read_csv(tmp_path / name / "ranking.tsv", sep="\t").sort_values(["chrom", "pos"]).reset_index()
        for name in ("cuda", "cpu")
    )
    for column in ("pip", "marginal"):
        np.testing.assert_allclose(ours[column], theirs[column], atol=1e-3)
    for column in ("attention", "integrated_gradients"):
        assert np.corrcoef(ours[column], theirs[column])[0, 1] > 0.99
    found, expected = (
        json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("cuda", "cpu")
    )
    assert found["r2"]["value"] == pytest.approx(expected["r2"]["value"], abs=0.02)
    predicted = {}
    for name in ("cpu", "cuda"):
        out = tmp_path / f"{name}.tsv"
        words = ("predict", "--model", "cpu", "--genotypes", cohort / "holdout" / "cohort.bed", "--out", out)
        more = ("--preset", "small_cpu" if name == "cpu" else "memory_constrained")
        with simulated_gpu() if (name, where) == ("cuda", "simulated") else contextlib.nullcontext():
            done = run(*words, *more)
        assert done.code == 0, done.err
        predicted[name] = pd.read_csv(out, sep="\t")["prediction"]
    np.testing.assert_allclose(predicted["cuda"], predicted["cpu"], rtol=0.02, atol=0.02)
    assert predicted["cpu"].std() > 0.1
