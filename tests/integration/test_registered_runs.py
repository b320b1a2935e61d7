"""What a run registers: one version however often it is interrupted, found by its run and checked."""

import json
import logging
from dataclasses import replace

import pytest
from command_line import train_words

from snpdeconv.pipelines import train as train_module
from snpdeconv.pipelines.run_folder import RunFolder
from snpdeconv.tracking.registry import list_models, resolve


class Killed(BaseException):
    """Stands for SIGKILL: no handler sees it."""


def test_a_run_killed_after_it_registered_makes_no_second_version_where_rounding_differs(
    run, cohort, tmp_path, monkeypatch
):
    words = train_words(cohort, tmp_path / "run", "--name", "height", "--json")
    remember = RunFolder.remember

    def killed_before_the_result(self, **facts):
        if "result" in facts:
            raise Killed
        remember(self, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "remember", killed_before_the_result)
        with pytest.raises(Killed):
            run(*words)
    (model,) = list_models()
    assert model.versions == (1,)
    before = (tmp_path / "run" / "model" / "SHA256SUMS").read_bytes()

    evaluate = train_module.evaluate_test

    def rounded_otherwise(*args, **options):
        evaluation = evaluate(*args, **options)
        calibration = replace(evaluation.calibration, scale=evaluation.calibration.scale * (1 + 2**-50))
        return replace(evaluation, calibration=calibration)

    monkeypatch.setattr(train_module, "evaluate_test", rounded_otherwise)
    done = run(*words)
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["version"] == 1
    (model,) = list_models()
    assert model.versions == (1,)
    assert (tmp_path / "run" / "model" / "SHA256SUMS").read_bytes() == before

    # The same run's model, by its run: checked on the way, kept where `--model` keeps it.
    result = json.loads(done.out.splitlines()[-1])
    weights = (tmp_path / "home" / "artifacts").rglob("model.safetensors")
    for path in [path for path in weights if path.parent.name == "model"]:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    damaged = run("rank", "--run", result["run_id"], "--out", tmp_path / "ranked")
    assert damaged.code == 2
    assert "model.safetensors: has changed" in damaged.err
    assert not (tmp_path / "home" / "cache" / "runs").exists()


def test_a_mistyped_tracking_address_ends_the_run_before_any_work(run, cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "localhost:5000")
    for words in (
        train_words(cohort, tmp_path / "run", "--name", "height"),
        ["predict", "--model", "m", "--genotypes", cohort / "cohort.bed", "--out", tmp_path / "p.tsv"],
        ["rank", "--run", "0" * 32, "--out", tmp_path / "r"],
    ):
        refused = run(*words)
        assert refused.code == 2
        assert "did you mean 'http://localhost:5000'?" in refused.err
        assert "Traceback" not in refused.err
    assert not (tmp_path / "run").exists()


def test_what_the_store_refused_is_told_at_the_end(run, cohort, tmp_path, monkeypatch, caplog):
    from snpdeconv.errors import InputError
    from snpdeconv.tracking import registry

    def refuse(*_, **__):
        raise InputError("is not as it was sealed", where="model")

    monkeypatch.setattr(registry, "register_bundle", refuse)
    with caplog.at_level(logging.WARNING, logger="snpdeconv.pipelines.train"):
        done = run(*train_words(cohort, tmp_path / "run", "--name", "height", "--json"))
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["version"] is None
    told = done.err + caplog.text
    assert "refused for good: model 'height' was not registered: model: is not as it was sealed" in told
    with pytest.raises(InputError):
        resolve("height")
