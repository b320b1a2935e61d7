import logging
import math

import pytest
import torch
from small_runs import NUM_FEATURES, assert_same_tensors, cohort, loaders, make_network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from snpdeconv import InterpretableSNPModel, MultiGPUSNPTrainer
from snpdeconv.errors import ConfigError, InputError, ResourceError, TrainingError
from snpdeconv.training.checkpoint import CheckpointStore, read_checkpoint
from snpdeconv.training.data import PackedLoader


def make_trainer(model=None, data=None, **options):
    train, val = loaders() if data is None else data
    options = {"use_amp": False, "learning_rate": 0.02, "device": "cpu"} | options
    return MultiGPUSNPTrainer(make_network() if model is None else model, train, val, **options)


def accuracy(logits, target):
    return {"accuracy": float(((logits[:, 0] > 0) == (target > 0.5)).float().mean())}


def test_a_run_learns_and_tells_what_happened(caplog):
    logged = []
    trainer = make_trainer(
        data=loaders(num_samples=200),
        metrics=accuracy,
        log_metrics=lambda step, values: logged.append((step, dict(values))),
        log_every=10,
    )
    with caplog.at_level(logging.INFO):
        history = trainer.train(6)
    assert history["val_accuracy"][-1] > 0.85
    assert history["train_loss"][-1] < history["train_loss"][0]
    assert {len(values) for values in history.values()} == {6}
    assert history["epoch"] == list(range(1, 7))
    assert min(history["peak_gib"]) > 0.01
    assert min(history["samples_per_second"]) > 0
    steps = [(step, values) for step, values in logged if "train/loss" in values]
    assert [step for step, _ in steps] == [10 * i for i in range(1, 16)]
    assert all(values["train/gradient_norm"] > 0 for _, values in steps)
    epochs = [(step, values) for step, values in logged if "train/epoch_lr" in values]
    assert [step for step, _ in epochs] == [25 * i for i in range(1, 7)]
    names = {
        "epoch": "epoch",
        "memory/peak_gib": "peak_gib",
        "val/accuracy": "val_accuracy",
        "train/epoch_loss": "train_loss",
        "throughput/samples_per_second": "samples_per_second",
    }
    for public, own in names.items():
        assert [values[public] for _, values in epochs] == history[own]
    assert "epoch 6: training loss" in caplog.text
    # The last word is of the epoch whose weights were kept.
    kept = trainer.best_epoch
    step, values = logged[-1]
    assert step == 25 * 6 + 1
    assert (values["epoch"], values["val/loss"]) == (kept, history["val_loss"][kept - 1])
    assert values["train/epoch_loss"] == history["train_loss"][kept - 1]
    assert f"epoch {kept} kept: validation loss {values['val/loss']:.4g}" in caplog.text


def test_the_best_epoch_ends_the_run_in_patience_and_comes_back(tmp_path):
    values = iter([0.5, 0.7, 0.6, 0.7, 0.9, 0.9])
    seen = []

    def measure(logits, target):
        seen.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return {"score": next(values)}

    trainer = make_trainer(metrics=measure, monitor="val_score")
    history = trainer.train(50, 2, tmp_path)
    assert history["val_score"] == [0.5, 0.7, 0.6, 0.7]  # an equal value is no improvement
    assert_same_tensors(trainer.model.state_dict(), seen[1])
    best = read_checkpoint(CheckpointStore(tmp_path).best())
    assert (best["epoch"], best["value"], best["monitor"]) == (2, 0.7, "val_score")
    assert_same_tensors(best["model"], seen[1])


def test_the_start_may_be_the_best_and_comes_back(tmp_path):
    values = iter([0.8, 0.5, 0.7, 0.9])
    logged = []
    model = make_network()
    given = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(
        model,
        metrics=lambda *_: {"score": next(values)},
        monitor="val_score",
        validate_before_training=True,
        log_metrics=lambda step, values: logged.append((step, dict(values))),
    )
    history = trainer.train(50, 2, tmp_path)
    assert history["val_score"] == [0.5, 0.7]  # patience counts from the start
    assert trainer.best_epoch == 0
    assert trainer.start["val_score"] == 0.8
    assert_same_tensors(trainer.model.state_dict(), given)
    start = {"epoch": 0.0, "val/loss": trainer.start["val_loss"], "val/score": 0.8}
    assert (logged[0][1], logged[-1][1]) == (start, start)
    assert logged[-1][0] > max(step for step, _ in logged[:-1])
    best = read_checkpoint(CheckpointStore(tmp_path).best())
    assert (best["epoch"], best["value"]) == (0, 0.8)


def test_the_keyword_of_the_version_before_is_taken_with_a_warning():
    with pytest.warns(DeprecationWarning, match="validate_before_training"):
        trainer = make_trainer(score_start=True)
    trainer.train(1)
    assert "val_loss" in trainer.start


def test_an_epoch_that_is_better_than_the_start_is_kept():
    trainer = make_trainer(data=loaders(num_samples=200), validate_before_training=True)
    history = trainer.train(3)
    assert trainer.best_epoch == 1 + history["val_loss"].index(min(history["val_loss"]))
    assert min(history["val_loss"]) < trainer.start["val_loss"]


@pytest.mark.parametrize("direction, best", [(None, 1), ("min", 0)])
def test_direction_and_metrics_that_are_not_there_in_every_epoch(direction, best):
    values = iter([{"r": 0.1}, {"r": 0.3, "other": 1.0}, {"r": math.nan}, {}])
    seen = []

    def measure(logits, target):
        seen.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return next(values)

    trainer = make_trainer(metrics=measure, monitor="val_r", monitor_direction=direction)
    history = trainer.train(4)
    assert [None if math.isnan(value) else value for value in history["val_other"]] == [None, 1.0, None, None]
    assert [None if math.isnan(value) else value for value in history["val_r"]] == [0.1, 0.3, None, None]
    assert_same_tensors(trainer.model.state_dict(), seen[best])


def test_mistakes_of_the_caller():
    with pytest.raises(ConfigError, match=r"did you mean 'val_accuracy'"):
        make_trainer(metrics=accuracy, monitor="val_acuracy").train(1)
    with pytest.raises(ConfigError, match="accumulation=0"):
        make_trainer(accumulation=0)
    with pytest.raises(InputError, match="training loader gave no sample"):
        make_trainer(data=([], loaders()[1]), schedule="constant").train(1)
    with pytest.raises(InputError, match="validation loader gave no sample"):
        make_trainer(data=(loaders()[0], [])).train(1)
    with pytest.raises(InputError, match="no such checkpoint"):
        make_trainer().train(1, resume_from="/nowhere/last.pt")


def test_a_run_without_a_finite_monitored_value_keeps_its_last_weights(caplog):
    trainer = make_trainer(metrics=lambda *_: {"auroc": math.nan}, monitor="val_auroc")
    history = trainer.train(20, 3)
    assert len(history["epoch"]) == 3
    assert "last weights stay" in caplog.text


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_the_rates_of_a_run(schedule):
    logged = []
    trainer = make_trainer(
        schedule=schedule,
        learning_rate=0.1,
        warmup_fraction=0.25,
        plateau_patience=0,
        plateau_factor=0.5,
        metrics=lambda *_: {"flat": 1.0},
        monitor="val_flat",
        log_every=1,
        log_metrics=lambda step, values: logged.append(values.get("train/lr")),
    )
    history = trainer.train(4, 10)
    rates = [rate for rate in logged if rate is not None]
    if schedule == "cosine":  # 28 steps, of which 7 warm up
        assert rates[:8] == pytest.approx([0.1 * min(1, (i + 1) / 7) for i in range(8)])
        assert rates[-1] == pytest.approx(0.05 * (1 + math.cos(math.pi * 20 / 21)))
    elif schedule == "plateau":
        assert history["lr"] == pytest.approx([0.1, 0.1, 0.05, 0.025])
    else:
        assert set(rates) == {0.1}
    assert history["lr"] == rates[6::7]


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(NUM_FEATURES, 1)

    def forward(self, genotypes):
        return self.layer(genotypes)


def with_value(value, where):
    x, y = cohort(40)
    (x if where == "genotypes" else y).view(-1)[17] = value
    return DataLoader(TensorDataset(x, y), batch_size=8), loaders()[1]


@pytest.mark.parametrize("where", ["genotypes", "target"])
@pytest.mark.parametrize("log_every", [1, 1000])
def test_non_finite_data_end_the_run_with_their_name_and_save_nothing(tmp_path, where, log_every):
    trainer = make_trainer(
        Linear(), with_value(math.nan, where), log_every=log_every, checkpoint_every_steps=4
    )
    with pytest.raises(TrainingError, match="data hold NaN or infinity"):
        trainer.train(2, checkpoint_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_rate_that_is_too_high_is_named_and_no_poisoned_checkpoint_is_written(tmp_path):
    trainer = make_trainer(
        Linear(),
        loss="mse",
        learning_rate=1e30,
        schedule="constant",
        gradient_clip=None,
        log_every=1000,
        checkpoint_every_steps=1,
    )
    with pytest.raises(TrainingError, match=r"1e\+30 is probably too high.*lower learning_rate"):
        trainer.train(30, 30, tmp_path)
    for path in tmp_path.glob("last-*"):
        assert all(torch.isfinite(value).all() for value in read_checkpoint(path)["model"].values())


def test_weights_that_a_finite_loss_has_spoilt_are_not_saved(tmp_path):
    model = Linear()
    trainer = make_trainer(model, checkpoint_every_steps=1, gradient_clip=None)
    model.layer.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match="weights are no longer finite"):
        trainer.train(1, checkpoint_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fp16_is_named_where_it_overflows():
    x, y = cohort(40)
    data = DataLoader(TensorDataset(x * 1e5, y), batch_size=8), loaders()[1]
    trainer = make_trainer(Linear(), data, use_amp=True, amp_dtype=torch.float16)
    with pytest.raises(TrainingError, match="range of fp16"):
        trainer.train(1)


def test_a_validation_loss_that_is_not_finite_ends_the_run():
    trainer = make_trainer(Linear(), (loaders()[0], with_value(math.inf, "genotypes")[0]))
    with pytest.raises(TrainingError, match="validation loss"):
        trainer.train(1)


def test_covariates_and_classes_from_a_plain_data_loader():
    x, _ = cohort(120)
    covariates = torch.randn(120, 2, generator=torch.Generator().manual_seed(4))
    target = (covariates[:, 0] > 0).long() + (x[:, 0] > 0).long()
    data = DataLoader(TensorDataset(x, target, covariates), batch_size=16, shuffle=True)
    model = make_network(num_outputs=3, num_covariates=2, dropout=0.0, width=16)
    history = make_trainer(model, (data, data), metrics=lambda z, y: {
        "accuracy": float((z.argmax(1) == y).double().mean())
    }).train(15)  # fmt: skip
    assert max(history["val_accuracy"]) > 0.8


def test_precision_bf16_and_fp16_train_too():
    for dtype in (torch.bfloat16, torch.float16):
        history = make_trainer(data=loaders(num_samples=200), use_amp=True, amp_dtype=dtype).train(4)
        assert history["val_loss"][-1] < history["val_loss"][0]


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoints(tmp_path, monkeypatch):
    make_trainer(schedule="constant").train(1, checkpoint_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        make_trainer(schedule="constant").train(2, checkpoint_dir=tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def interpretable():
    torch.manual_seed(0)
    model = InterpretableSNPModel(
        16, "cnn_transformer", encoding_dim=2, width=8, num_layers=1, num_heads=2, patch=8
    )
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (30, 4), generator=generator, dtype=torch.uint8)
    loader = PackedLoader(packed, torch.rand(30, generator=generator).round(), batch_size=7)
    trainer = MultiGPUSNPTrainer(model, loader, loader, use_amp=False, device="cpu")
    trainer.train(1)
    return trainer, loader, packed


def test_importance_is_of_the_whole_loader(interpretable):
    trainer, loader, packed = interpretable
    attention = trainer.model.attention(packed)
    names = [f"rs{i}" for i in range(16)]
    mean = trainer.get_snp_importance(loader, "attention", snp_names=names)
    assert list(mean) == names
    assert list(mean.values()) == pytest.approx(attention.double().mean(0).tolist(), rel=1e-5)
    highest = trainer.get_snp_importance(loader, "attention", "max")
    assert list(highest) == [str(i) for i in range(16)]
    assert list(highest.values()) == pytest.approx(attention.amax(0).tolist(), rel=1e-5)
    gradients = trainer.get_snp_importance(loader, method="integrated_gradients")
    assert len(gradients) == 16
    assert min(gradients.values()) >= 0 < max(gradients.values())


@pytest.mark.parametrize("method", ["attention", "integrated_gradients"])
@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_importance_leaves_a_model_in_training_as_it_is(interpretable, method, aggregate):
    trainer, loader, _ = interpretable
    expected = trainer.get_snp_importance(loader, method, aggregate)
    trainer.model.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.get_snp_importance(loader, method, aggregate) == expected
    assert_same_tensors(trainer.model.state_dict(), before)
    assert trainer.model.training


def test_importance_by_an_unknown_method_or_with_wrong_names(interpretable):
    trainer, loader, _ = interpretable
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        trainer.get_snp_importance(loader, "atention")
    with pytest.raises(ConfigError, match=r"aggregate: no importance by 'median'; did you mean 'mean'\?"):
        trainer.get_snp_importance(loader, aggregate="median")
    with pytest.raises(ConfigError, match="2 names for 16 SNPs"):
        trainer.get_snp_importance(loader, snp_names=["a", "b"])
