"""The linear part that a network starts from: sparse terms and ridge, honest about people left out, kept."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from snpdeconv import device as device_module
from snpdeconv.config import Config, load_config
from snpdeconv.device import choose_precision
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines import linear_part
from snpdeconv.pipelines.dataset import Dataset, open_cohort, prepare
from snpdeconv.pipelines.fit import build_model, choose_batch_size, choose_batch_sizes
from snpdeconv.pipelines.linear_part import assign_folds, fit_linear_part
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.pipelines.score import looks_for_pairs
from snpdeconv.simulation.simulate import simulate
from snpdeconv.training import data, memory

CPU = torch.device("cpu")
SIZES = ("model.width=8", "model.channels=4,4", "model.patch=16", "model.num_heads=2")


def config_of(linear: str = "fitted", **settings: str) -> Config:
    extra = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return load_config("small_cpu", overrides=[*SIZES, f"model.linear={linear}", *extra])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """700 people, 80 SNPs; the trait rests on two pairs, which single SNPs say little of."""
    folder = tmp_path_factory.mktemp("pairs")
    simulate(
        folder / "cohort", num_samples=700, num_variants=80, num_causal=4, trait="epistasis", pve=0.6, seed=4
    )
    inputs = Inputs.from_paths(
        genotypes=folder / "cohort" / "cohort.bed",
        phenotypes=folder / "cohort" / "phenotypes.tsv",
        trait="trait",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNPDECONV_HOME", str(folder / "home"))
        config = config_of()
        return prepare(config, inputs, cohort=open_cohort(inputs.genotypes, data=config.data))


def with_classes(dataset: Dataset, target: np.ndarray) -> Dataset:
    kind = "binary" if target.max() == 1 else "multiclass"
    classes = tuple(f"c{k}" for k in range(int(target.max()) + 1))
    trait = dataclasses.replace(dataset.trait, kind=kind, values=target, classes=classes)
    typed = target.astype(np.float32 if kind == "binary" else np.int64)
    return dataclasses.replace(dataset, trait=trait, target=typed)


def fitted(
    dataset: Dataset, path: Path, config: Config | None = None
) -> tuple[InterpretableSNPModel, torch.Tensor]:
    config = config or config_of()
    model = build_model(config, dataset)
    offset = fit_linear_part(model, dataset, config=config, device=CPU, path=path)
    with torch.no_grad():
        model.head.out.weight.zero_()
    return model.eval(), offset


@torch.no_grad()
def logits(model: InterpretableSNPModel, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(dataset.packed[rows])).numpy()


def r2(predicted: np.ndarray, dataset: Dataset, rows: np.ndarray) -> float:
    truth = dataset.target[rows]
    return float(1 - ((predicted[:, 0] - truth) ** 2).mean() / truth.var())


def test_with_pairs_it_predicts_where_ridge_regression_cannot(dataset, tmp_path):
    test = np.concatenate([dataset.split.val, dataset.split.test])
    model, offset = fitted(dataset, tmp_path / "a")
    ridge, _ = fitted(dataset, tmp_path / "b", config_of("ridge"))
    without, _ = fitted(dataset, tmp_path / "c", config_of(interpretation__pairs="false"))
    assert ridge.sparse is None
    assert model.sparse is not None
    assert model.sparse.sizes[1] > 0
    assert without.sparse is None or without.sparse.sizes[1] == 0
    found = r2(logits(model, dataset, test), dataset, test)
    assert found > r2(logits(ridge, dataset, test), dataset, test) + 0.25
    assert found > r2(logits(without, dataset, test), dataset, test) + 0.25

    # With the offset the training people are predicted like people left out: no better than the test people.
    train = dataset.split.train
    in_sample = logits(model, dataset, train)
    assert r2(in_sample + offset.numpy(), dataset, train) == pytest.approx(found, abs=0.12)
    assert r2(in_sample + offset.numpy(), dataset, train) < r2(in_sample, dataset, train)


def test_noise_gives_no_sparse_part_and_no_optimism(dataset, tmp_path, caplog):
    rng = np.random.default_rng(9)
    noise = dataclasses.replace(dataset, target=rng.normal(size=len(dataset.target)).astype(np.float32))
    with caplog.at_level(logging.INFO):
        model, offset = fitted(noise, tmp_path / "a")
    train = noise.split.train
    assert r2(logits(model, noise, train) + offset.numpy(), noise, train) < 0.02
    assert r2(logits(model, noise, noise.split.test), noise, noise.split.test) > -0.05
    assert model.sparse is None
    assert "builds on no sparse fit: no SNP or pair" in caplog.text


def test_the_file_of_the_fit_gives_the_same_model_without_fitting(dataset, tmp_path, monkeypatch):
    path = tmp_path / "checkpoints" / "linear.safetensors"
    first, offset = fitted(dataset, path)
    written = path.read_bytes()
    monkeypatch.setattr(linear_part, "deconvolve", None)
    again, same_offset = fitted(dataset, path)
    assert torch.equal(offset, same_offset)
    assert again.config == first.config
    state = again.state_dict()
    assert state.keys() == first.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in first.state_dict().items())
    assert path.read_bytes() == written


def test_the_file_of_other_settings_is_not_taken(dataset, tmp_path):
    path = tmp_path / "linear.safetensors"
    fitted(dataset, path, config_of("ridge"))
    model, _ = fitted(dataset, path)
    assert model.sparse is not None


@pytest.mark.parametrize("how", ["a weight", "its checksum", "cut off", "empty", "another file"])
def test_an_altered_file_is_fitted_anew(dataset, tmp_path, caplog, how):
    path = tmp_path / "linear.safetensors"
    first, offset = fitted(dataset, path, config_of("ridge"))
    written = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if how == "a weight":
        tensors["wide.weight"][0, 0] += 1
        save_file(tensors, path, metadata=facts)
    elif how == "its checksum":
        save_file(tensors, path, metadata={"digest": facts["digest"]})
    else:
        path.write_bytes({"cut off": written[:-10], "empty": b"", "another file": b"text" * 100}[how])
    with caplog.at_level(logging.WARNING, logger="snpdeconv"):
        again, same_offset = fitted(dataset, path, config_of("ridge"))
    assert f"{path} is damaged" in caplog.text
    assert torch.equal(offset, same_offset)
    assert torch.equal(again.wide.weight, first.wide.weight)


def test_cases_and_classes(dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="snpdeconv")
    train, test = dataset.split.train, np.concatenate([dataset.split.val, dataset.split.test])
    cuts = np.quantile(dataset.target, [0.7, 0.35])
    case = (dataset.target > cuts[0]).astype(np.int64)
    binary = with_classes(dataset, case)
    model, offset = fitted(binary, tmp_path / "binary")
    assert model.sparse is not None
    assert offset.shape == (len(train), 1)
    found = logits(model, binary, test)[:, 0]
    assert found[case[test] == 1].mean() > found[case[test] == 0].mean() + 0.5
    probability = 1 / (1 + np.exp(-found))
    assert probability.mean() == pytest.approx(0.3, abs=0.1)

    common = int(np.argmin(np.abs(dataset.frequency - 0.5)))
    codes = dataset.genotypes.codes(columns=np.array([common]))[:, 0].astype(np.int64)
    other = np.random.default_rng(1).integers(0, 3, len(codes))
    classes = with_classes(dataset, np.where(np.random.default_rng(2).random(len(codes)) < 0.3, other, codes))
    caplog.clear()
    model, offset = fitted(classes, tmp_path / "classes")
    assert "pairs of SNPs are looked for" not in caplog.text  # none are of classes
    assert model.sparse is not None
    assert offset.shape == (len(train), 3)
    # 80 % can be known. Ridge regression is linear in the dosage and misses most heterozygotes.
    assert (logits(model, classes, test).argmax(1) == classes.target[test]).mean() > 0.72


def test_many_or_small_classes_are_left_to_ridge_regression(dataset, tmp_path, caplog):
    rng = np.random.default_rng(3)
    size = len(dataset.target)
    with caplog.at_level(logging.INFO):
        fitted(with_classes(dataset, rng.integers(0, 7, size)), tmp_path / "many")
        fitted(with_classes(dataset, (np.arange(size) % 60 == 0).astype(np.int64)), tmp_path / "rare")
    assert "7 classes would take as many fits" in caplog.text
    assert "the smallest class has" in caplog.text


def test_covariates_belong_to_the_linear_part(dataset, tmp_path):
    covariate = np.random.default_rng(6).normal(size=(len(dataset.target), 1)).astype(np.float32)
    shifted = dataclasses.replace(dataset, target=dataset.target + 2 * covariate[:, 0], covariates=covariate)
    model, offset = fitted(shifted, tmp_path / "a")
    test = dataset.split.test
    assert model.sparse is not None
    slope = model.wide.covariate_weight.detach()
    assert slope[0, 0].item() == pytest.approx(2, abs=0.2)
    with torch.no_grad():
        predicted = model(torch.from_numpy(dataset.packed[test]), torch.from_numpy(covariate[test])).numpy()
    assert r2(predicted, shifted, test) > 0.8
    assert offset.abs().mean() < 0.3


@pytest.mark.parametrize("kind", ["quantitative", "binary"])
def test_families_stay_together_in_a_fold(kind):
    rng = np.random.default_rng(2)
    family = rng.permutation(np.repeat(np.arange(60), 5))
    target = rng.random(300) < 0.3
    fold = assign_folds(target.astype(np.float32), kind=kind, num_folds=4, seed=1, groups=family)
    assert all(len(np.unique(fold[family == one])) == 1 for one in range(60))
    assert np.bincount(fold).min() >= 60
    alone = assign_folds(target.astype(np.float32), kind=kind, num_folds=4, seed=1)
    assert list(np.bincount(alone)) == [75] * 4
    assert any(len(np.unique(alone[family == one])) > 1 for one in range(60))
    if kind == "binary":
        assert np.ptp([target[alone == one].sum() for one in range(4)]) <= 1


@pytest.mark.parametrize(("limit", "looks"), [("44850e2", True), ("44849e2", False)])
def test_no_device_decides_whether_pairs_are_looked_for(limit, looks, caplog):
    settings = load_config("small_cpu", overrides=[f"interpretation.max_pair_tests={limit}"]).interpretation
    genotypes = PackedGenotypes(np.zeros((10, 75), dtype=np.uint8), 300)
    caplog.set_level("INFO")
    for device in ("cpu", "cuda", "cuda:1"):  # 10 × 44,850 pairs × 10 looks
        found = looks_for_pairs(settings, genotypes, num_looks=10, device=torch.device(device))
        assert found is looks
        assert f"max_pair_tests={float(limit):.3g}" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(("num_people", "accumulation", "most", "chosen"), [
    (490, 1, 512, 8), (10_000, 1, 512, 256), (10_000, 4, 512, 64), (10**6, 1, 512, 512),
    (10**6, 1, 2048, 2048),
])  # fmt: skip
def test_no_memory_decides_the_batch_of_a_step(dataset, num_people, accumulation, most, chosen, monkeypatch):
    for module in (device_module, memory, data):
        monkeypatch.setattr(module, "available_bytes", lambda device: pytest.fail("nobody is to ask"))
    config = config_of(
        training__batch_size="auto",
        training__accumulation=str(accumulation),
        memory__max_batch_size=str(most),
    )
    split = dataclasses.replace(dataset.split, train=np.arange(num_people))
    assert choose_batch_size(config, dataclasses.replace(dataset, split=split)) == chosen


def test_what_fits_at_once_is_measured_and_no_more_than_the_batch(dataset):
    config = config_of(training__batch_size="auto")
    precision = choose_precision(CPU, requested="fp32")
    assert choose_batch_sizes(config, dataset, precision, device=CPU) == (8, 8)
