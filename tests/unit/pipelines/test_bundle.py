"""A model folder gives back what was saved, byte for byte in its names, and damage is told in one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from snpdeconv.config import load_config
from snpdeconv.errors import InputError, UserError
from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.samples import HashedSamples, Samples
from snpdeconv.genetics.terms import Terms
from snpdeconv.genetics.variants import Variants
from snpdeconv.models.layers import SparsePart
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines.bundle import Bundle, load_bundle, save_bundle
from snpdeconv.pipelines.dataset import Scale
from snpdeconv.pipelines.run_folder import Inputs
from snpdeconv.training.metrics import Calibration


@pytest.fixture
def bundle():
    return Bundle(
        model=InterpretableSNPModel(8, "cnn", encoding_dim=2, width=8, channels=(4, 4), patch=4).eval(),
        variants=Variants.build(
            variant_id=["001", "1e5", "NA"],
            chrom=["1", "1", "X"],
            position_bp=[5, 10, 3],
            counted_allele=["1", "1", "2"],
            other_allele=["2", "02", "1"],
        ),
        frequency=np.array([0.1, 0.25, 0.5]),
        block=np.array(["001", "1.10", "1.1"], dtype=object),
        layout=Layout(columns=np.array([0, 1, -1, -1, 2, -1, -1, -1]), patch=4),
        trait="height",
        kind="quantitative",
        classes=(),
        scale=Scale(1.5, 2.0),
        calibration=Calibration(kind="quantitative", scale=1.0, bias=(0.0,)),
        covariate_encoder=None,
        components=None,
        held_out=HashedSamples.from_samples(Samples.build(["i", "j"], fid=["f", "g"])),
        inputs=Inputs(genotypes="/a.bed", phenotypes="/p.tsv", trait="height"),
        config=load_config("small_cpu"),
    )


def test_names_that_look_like_numbers_stay_as_they_are(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "model")
    loaded = load_bundle(tmp_path / "model")
    for name in ("variant_id", "chrom", "counted_allele", "other_allele", "position_bp"):
        assert getattr(loaded.variants, name).tolist() == getattr(bundle.variants, name).tolist(), name
    assert loaded.block.tolist() == ["001", "1.10", "1.1"]
    assert loaded.frequency.tolist() == [0.1, 0.25, 0.5]
    codes = torch.tensor([[0, 1, 3, 3, 2, 3, 3, 3]])
    assert torch.equal(loaded.model(codes), bundle.model(codes))
    assert loaded.config == bundle.config


def test_people_tested_on_travel_as_hashes(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "model")
    text = "".join(path.read_text(errors="replace") for path in (tmp_path / "model").glob("held_out*"))
    loaded = load_bundle(tmp_path / "model").held_out
    assert loaded == bundle.held_out
    assert "\t" not in text
    assert len(loaded) == 2
    assert loaded.salt != HashedSamples.from_samples(Samples.build(["i"])).salt
    with_families = Samples.build(["j", "i", "j"], fid=["g", "g", "f"])
    assert loaded.among(with_families).tolist() == [True, False, False]
    assert loaded.among(Samples.build(["j", "k", "i"])).tolist() == [True, False, True]  # as a VCF names them


def test_a_model_from_before_there_were_hashes_knows_whom_it_was_tested_on(bundle, tmp_path):
    save_bundle(bundle, tmp_path / "model")
    (tmp_path / "model" / "held_out.json").unlink()
    Samples.build(["i"], fid=["f"]).write_tsv(tmp_path / "model" / "held_out.tsv")
    assert load_bundle(tmp_path / "model").held_out.iid.tolist() == ["i"]


def test_a_model_from_before_there_were_windows_attends_to_every_token(bundle, tmp_path):
    # 300 tokens: two windows, were it built today.
    model = InterpretableSNPModel(1200, "cnn_transformer", encoding_dim=1, width=8, num_heads=2, patch=4)
    layout = Layout(columns=np.append([0, 1, 2], np.full(1197, -1)), patch=4)
    save_bundle(replace(bundle, model=model.eval(), layout=layout), tmp_path / "model")
    about_path = tmp_path / "model" / "config.json"
    about = json.loads(about_path.read_text())
    assert load_bundle(tmp_path / "model").model.body.num_windows == 2
    del about["model"]["window"]
    about_path.write_text(json.dumps(about))
    assert load_bundle(tmp_path / "model").model.body.num_windows == 1


def test_the_sparse_part_of_the_head_travels(bundle, tmp_path):
    terms = Terms(
        first=np.array([0, 4]),
        second=np.array([-1, 1]),
        first_value=np.array([[0.0, 1.0, 3.0, 0.5], [1.0, 2.0, -1.0, 0.0]]),
        second_value=np.array([[1.0, 1.0, 1.0, 1.0], [0.5, 0.0, 2.0, 0.0]]),
        weight=np.array([[2.0, -1.0]]),
        intercept=np.zeros(1),
        covariate_weight=np.empty((1, 0)),
    )
    codes = torch.tensor([[1, 0, 3, 3, 2, 3, 3, 3], [2, 2, 3, 3, 1, 3, 3, 3]])
    before = bundle.model(codes).detach()
    bundle.model.carry(SparsePart.of(terms))
    save_bundle(bundle, tmp_path / "model")
    loaded = load_bundle(tmp_path / "model")
    assert torch.equal(loaded.model(codes), bundle.model(codes))
    added = torch.tensor([[2 * 1.0 - -1.0 * 0.5], [2 * 3.0 - 2.0 * 2.0]])
    torch.testing.assert_close(loaded.model(codes).detach(), before + added, atol=1e-4, rtol=0)


def without(folder, key):
    about = json.loads((folder / "config.json").read_text())
    del about[key]
    (folder / "config.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"torn"), "is no model .*header"),
        (lambda f: (f / "model.safetensors").unlink(), "is no model .*model.safetensors"),
        (lambda f: without(f, "calibration"), "config.json: is damaged .calibration: Field required"),
        (lambda f: without(f, "format"), "config.json: is damaged .format: Field required"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: is damaged"),
        (lambda f: (f / "variants.tsv").write_text("a\tb\n1\t2\n"), "is no model .*is missing"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(bundle, tmp_path, damage, told):
    save_bundle(bundle, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=told) as caught:
        load_bundle(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_model_from_before_its_norm_was_by_sample_predicts_as_it_did(bundle, tmp_path):
    torch.manual_seed(1)
    before = InterpretableSNPModel(
        8, "cnn", encoding_dim=2, width=8, channels=(4, 4), patch=4, norm="batch", dropout=0.0
    )
    codes = torch.randint(0, 4, (16, 8))
    for stage in before.body.stages:
        assert type(stage.norm) is torch.nn.BatchNorm1d  # the layer that it was
    torch.nn.init.normal_(before.head.out.weight)
    with torch.no_grad():
        for _ in range(5):
            before.train()(codes)  # moves the running statistics
    expected = before.eval()(codes).detach()
    save_bundle(replace(bundle, model=before), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    about = json.loads(path.read_text())
    del about["model"]["norm"]
    path.write_text(json.dumps(about))
    loaded = load_bundle(tmp_path / "model").model
    assert torch.equal(loaded(codes).detach(), expected)
    assert float((expected - expected.mean()).abs().max()) > 0.1


def with_tensor(folder, name, value):
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: value}, path)


def with_value(folder, value, *keys):
    path = folder / "config.json"
    about = at = json.loads(path.read_text())
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: with_tensor(f, "model.wide.bias", torch.tensor([torch.nan])), "bias is not finite"),
        (lambda f: with_tensor(f, "model.wide.bias", torch.zeros(7)), "bias has shape .7,., not .1,."),
        (lambda f: with_tensor(f, "model.unknown", torch.zeros(1)), "tensor unknown is unknown"),
        (lambda f: with_tensor(f, "layout.columns", torch.tensor([0, 1, 9, -1, 2, -1, -1, -1])), "layout of"),
        (lambda f: with_tensor(f, "layout.columns", torch.zeros(8, dtype=torch.int64)), "layout of"),
        (lambda f: with_tensor(f, "layout.columns", torch.zeros(4, dtype=torch.int64)), "layout of .4,."),
        (lambda f: with_value(f, 10**9, "model", "width"), "model.width: Input should be less"),
        (lambda f: with_value(f, 65536, "model", "width"), "has shape"),
        (lambda f: with_value(f, 10**8, "model", "n_snps"), "weights of .8,. slots for 100000000"),
        (lambda f: with_value(f, 900, "model", "num_layers"), None),  # the cnn has none
        (lambda f: with_value(f, "evil.Model", "model", "architecture"), "architecture: Input should be"),
        (lambda f: with_value(f, 1000, "model", "num_covariates"), "covariate_weight is missing"),
        (lambda f: with_value(f, 0.0, "scale", "sd"), "scale.sd: Input should be greater"),
        (lambda f: with_value(f, [0.0, 0.0], "calibration", "bias"), "a calibration of 2 outputs"),
        (lambda f: with_value(f, "binary", "kind"), "the calibration is another trait"),
        (lambda f: with_value(f, {"features": [], "levels": 5}, "covariates"), "covariates.levels"),
        (lambda f: with_value(f, -1, "settings", "training", "epochs"), "training.epochs"),
        (lambda f: (f / "variants.tsv").write_bytes(b"x" * 10**6), "holds more than"),
        (lambda f: replaced(f / "variants.tsv", "0.25", "1.25"), "frequency is not between"),
        (lambda f: replaced(f / "variants.tsv", "\t10\t", "\t-10\t"), "position is negative"),
        (lambda f: with_value_of_hashes(f, "zz"), "fromhex"),
    ],
)  # fmt: skip
def test_numbers_and_shapes_are_checked_before_they_are_used(bundle, tmp_path, damage, told):
    save_bundle(bundle, tmp_path / "model")
    damage(tmp_path / "model")
    if told is None:
        load_bundle(tmp_path / "model")
        return
    with pytest.raises(UserError, match=told) as caught:
        load_bundle(tmp_path / "model")
    assert "\n" not in str(caught.value)


def replaced(path, before, after):
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def with_value_of_hashes(folder, salt):
    path = folder / "held_out.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"salt": salt}))
