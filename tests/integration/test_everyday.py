"""What a user meets every day at the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import train_words

from snpdeconv.config import load_config, preset_text
from snpdeconv.errors import ConfigError


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--genotypes", "a", "--phenotypes", "b", "--trait", "t", "--out", "x", "--out", "y"),
        ("rank", "--out", "x", "--out=y"),
        ("predict", "--model", "m", "--out", "x", "--genotypes", "a", "--out", "y"),
        ("submit", "small_cpu", "--out", "x", "--out", "y"),
        ("retrain", "--name", "m", "--out", "x", "--out", "y"),
        ("simulate", "folder", "--seed", "1", "--seed", "2"),
    ],
)
def test_an_option_that_takes_one_value_is_refused_a_second(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert done.code == 2
    option = "--seed" if words[0] == "simulate" else "--out"
    assert done.err == f"error: {option}: is given 2 times; give it once\n"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("training.epochs=0", "--set training.epochs: "),
        ("training.epochs=many", "--set training.epochs: "),
        ("model.width=30", "--set model.width: "),
        ("interpretation.rank_by=attention", ""),
    ],
)
def test_what_a_setting_breaks_is_said_of_it(setting, told):
    if not told:
        told, setting = "--set interpretation.methods: ", "interpretation.methods=single_effects"
        with pytest.raises(ConfigError, match=re.escape(told)):
            load_config("small_cpu", overrides=["interpretation.rank_by=attention", setting])
        return
    with pytest.raises(ConfigError, match=f"^{re.escape(told)}"):
        load_config("small_cpu", overrides=["training.seed=2", setting])


def test_a_preset_may_hold_only_what_it_changes(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: memory_constrained\ntraining: {epochs: 7}\n")
    config, base = load_config(str(mine)), load_config("memory_constrained")
    assert config.training == base.training.model_copy(update={"epochs": 7})
    assert config.data == base.data
    assert config.preset == "mine"
    mine.write_text(config.to_yaml())
    assert load_config(str(mine)) == config  # what is written is whole
    mine.write_text("base: small_gpu\n")
    with pytest.raises(ConfigError, match="mine: base: there is no preset 'small_gpu'; did you mean"):
        load_config(str(mine))
    mine.write_text("base: small_cpu\ntraining: {epohcs: 7}\n")
    with pytest.raises(ConfigError, match=r"mine: training.epohcs: .* 'training.epochs'"):
        load_config(str(mine))
    mine.write_text(preset_text("small_cpu").replace("gradient_clip", "# "))
    with pytest.raises(ConfigError, match=r"mine: training.gradient_clip: .* base: small_cpu"):
        load_config(str(mine))


def test_json_is_alone_on_standard_output(run, cohort, tmp_path):
    trained = run(*train_words(cohort, tmp_path / "run", "--name", "m", "--json"))
    assert json.loads(trained.out)["version"] == 1
    ranked = run("rank", "--model", "m", "--method", "marginal", "--out", tmp_path / "r", "--json")
    assert json.loads(ranked.out)["method"] == "marginal"
    others = cohort / "holdout" / "cohort.bed"
    predicted = run("predict", "--model", "m", "--genotypes", others, "--out", tmp_path / "p.tsv", "--json")
    assert json.loads(predicted.out)["num_samples"] == 60
    assert json.loads(run("status", "--json").out) == []


def test_the_page_that_ui_opens_is_that_of_the_runs(cohort, run, home, tmp_path, monkeypatch):
    from snpdeconv.tracking.connection import connect
    from snpdeconv.tracking.home import embedded_uri
    from snpdeconv.tracking.server import Ui, _newest_experiment, show_page

    assert run(*train_words(cohort, tmp_path / "run", "--name", "height")).code == 0
    client = connect(embedded_uri())
    experiment = _newest_experiment(client)
    (one,) = client.search_runs([experiment])
    assert re.fullmatch(r"height cnn \d{4}-\d\d-\d\d \d\d:\d\d", one.info.run_name)
    page = Ui("http://127.0.0.1:5000", None, experiment).page
    assert page == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs?workflowType=machine_learning"
    opened = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" >{opened}\n')
    browser.chmod(0o755)
    show = f"from snpdeconv.tracking.server import show_page; show_page({page!r})"
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("BROWSER", raising=False)
    show_page(page)
    assert not opened.exists()
    subprocess.run([sys.executable, "-c", show], check=True, env={"BROWSER": f"{browser} %s"})
    assert opened.read_text() == page


def test_no_installation_is_named_that_cannot_work():
    """The package is in no index: extras are installed from the checkout, libraries by their own names."""
    top = Path(__file__).parents[2]
    for path in (top / "README.md", *(top / "snpdeconv").rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"pip install .*snpdeconv\b", line), f"{path}: {line}"


def test_without_msprime_simulate_says_what_to_install(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "msprime", None)
    done = run("simulate", tmp_path / "c")
    assert done.code == 2
    assert "pip install 'msprime>=1.3'" in done.err
