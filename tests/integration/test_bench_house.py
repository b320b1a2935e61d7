"""What benchmarks/house.py says of this checkout: its surface, what a command passes through, differences."""

import copy
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def house(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("house")


def test_the_surface_is_seen_and_what_is_taken_from_it_is_told(house):
    before = {"files": 3, "surface": house.surface(house.Checkout(house.HERE))}
    found = before["surface"]
    assert {"snpdeconv train", "snpdeconv rank", "snpdeconv predict"} <= set(found["commands"])
    assert "required=True" in found["commands"]["snpdeconv train"]["--genotypes"]
    assert found["settings"]["training.epochs"].endswith("= (in the preset)")
    assert found["settings"]["tracking.log_places"].endswith("= False")
    assert found["presets"]["small_cpu: training.epochs"] == "50"
    assert found["names"]["snpdeconv.create_gpu_optimized_model"].startswith("(")
    assert "snpdeconv.MultiGPUSNPTrainer.train" in found["names"]

    after = copy.deepcopy(before)
    after["files"] = 2
    del after["surface"]["commands"]["snpdeconv train"]["--seed"]
    after["surface"]["settings"]["tracking.log_places"] = "<class 'bool'> = True"
    told = house.compare(before, after)
    assert "files: 3 -> 2" in told
    changed = [line.split()[:3] for line in told if line.startswith("  ")]
    assert changed == [
        ["-snpdeconv", "train", "--seed"],
        ["-tracking.log_places", "<class", "'bool'>"],
        ["+tracking.log_places", "<class", "'bool'>"],
    ]


@pytest.mark.slow
def test_what_train_and_rank_pass_through_is_counted(house):
    passed = house.walked(house.Checkout(house.HERE))
    for name in ("train", "rank"):
        assert 20 < passed[name]["files"] <= passed[name]["files_loaded"]
        assert passed[name]["functions"] > passed[name]["files"]
    first = passed["train"]["before_first_metric"]
    assert 20 < first["files"] < passed["train"]["files"]
