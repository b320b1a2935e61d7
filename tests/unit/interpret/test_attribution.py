"""Attention and integrated gradients: exact where they are known, against fine integration where not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from snpdeconv.errors import ResourceError
from snpdeconv.interpret.attribution import attention_scores, integrated_gradients, pooled
from snpdeconv.models.encoder import SlotEncoder
from snpdeconv.models.model import ARCHITECTURES, InterpretableSNPModel, create_gpu_optimized_model


class Standin(nn.Module):
    """Any function of the encoded genotypes, with dropout that evaluation turns off."""

    def __init__(self, function, *, encoding_dim=2, frequency=None):
        super().__init__()
        self.encoder = SlotEncoder(7, encoding_dim=encoding_dim, allele_frequency=frequency)
        self.function = function
        self.dropout = nn.Dropout(0.5)

    def encode(self, genotypes):
        return self.encoder.encode(genotypes)

    def forward_encoded(self, encoded, covariates=None):
        return self.dropout(self.function(encoded, covariates))

    def attention(self, genotypes):
        return torch.softmax(genotypes.float(), dim=1)


def some_codes(num=24, snps=7, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (num, snps)))


def batches(codes, *, size=10, covariates=None):
    for start in range(0, len(codes), size):
        part = slice(start, start + size)
        yield SimpleNamespace(
            genotypes=codes[part], covariates=None if covariates is None else covariates[part]
        )


def test_a_linear_model_is_attributed_exactly():
    codes, weight = some_codes(), torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    model = Standin(lambda x, _: (x * weight).sum((1, 2)).unsqueeze(1) + 5)
    found = integrated_gradients(model, batches(codes), kind="quantitative", device="cpu", steps=2)
    encoded = model.encode(codes).double().numpy()
    expected = np.abs((encoded * weight.numpy()).sum(2)).mean(0)
    assert found.score == pytest.approx(expected, rel=1e-5)
    assert found.score.dtype == np.float64
    assert found.completeness_gap < 1e-6
    assert found.num_samples == 24
    assert found.method == "integrated_gradients"


def test_the_baseline_of_one_hot_channels_is_their_mean_not_a_missing_genotype():
    frequency = torch.linspace(0.1, 0.5, 7)
    codes = torch.from_numpy(np.random.default_rng(0).binomial(2, frequency.numpy(), (500, 7)))
    weight = torch.tensor([0.0, 1.0, 2.0, 100.0])
    model = Standin(lambda x, _: (x @ weight).sum(1, keepdim=True), encoding_dim=4, frequency=frequency)
    found = integrated_gradients(model, batches(codes), kind="quantitative", device="cpu", steps=2)
    expected = np.abs(codes.numpy() - 2 * frequency.numpy()).mean(0)
    assert found.score == pytest.approx(expected, rel=1e-4)


def network(num_outputs, seed=0):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(14, 16), nn.Tanh(), nn.Linear(16, num_outputs))
    for parameter in layers.parameters():
        parameter.data *= 2
    return layers


def fine_attribution(layers, encoded, baseline, contrast, *, steps=2000):
    """Midpoint rule in float64, one sample at a time."""
    layers = layers.double()
    rows = []
    for x, weights in zip(encoded.double(), contrast.double(), strict=True):
        fraction = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        points = baseline.double() + fraction[:, None, None] * (x - baseline.double())
        points.requires_grad_()
        (gradient,) = torch.autograd.grad((layers(points) * weights).sum(), points)
        rows.append(((x - baseline.double()) * gradient.mean(0)).sum(1))
    layers.float()
    return torch.stack(rows).detach().numpy()


@pytest.mark.parametrize(("kind", "num_outputs"), [("binary", 1), ("multiclass", 4)])
def test_a_network_is_attributed_as_by_fine_integration(kind, num_outputs, caplog):
    codes, layers = some_codes(), network(num_outputs)
    model = Standin(lambda x, _: layers(x))
    encoded = model.encode(codes)
    contrast = torch.ones(len(codes), 1)
    if kind == "multiclass":
        predicted = layers(encoded).argmax(1)
        contrast = torch.full((len(codes), 4), -1 / 3)
        contrast[torch.arange(len(codes)), predicted] = 1
        assert len(predicted.unique()) > 1
    expected = fine_attribution(layers, encoded, torch.zeros(7, 2), contrast)
    found = integrated_gradients(model, batches(codes), kind=kind, device="cpu", steps=32)
    assert found.score == pytest.approx(np.abs(expected).mean(0), rel=1e-4)
    assert found.completeness_gap < 1e-4
    coarse = integrated_gradients(model, batches(codes), kind=kind, device="cpu", steps=2)
    assert coarse.completeness_gap > 10 * found.completeness_gap
    assert coarse.completeness_gap < 0.1 or "raise the number of steps (now 2)" in caplog.text


def test_covariates_reach_the_model_and_take_no_part():
    codes, covariates = some_codes(), torch.randn(24, 3)
    model = Standin(lambda x, c: x[:, :, :1].sum(1) * c[:, :1])
    given = [
        (b.genotypes, torch.zeros(len(b.genotypes)), b.covariates)
        for b in batches(codes, covariates=covariates)
    ]
    found = integrated_gradients(model, given, kind="quantitative", device="cpu", steps=4)
    encoded = model.encode(codes)[:, :, 0].numpy()
    expected = np.abs(encoded * covariates[:, :1].numpy()).mean(0)
    assert found.score == pytest.approx(expected, rel=1e-5)


def test_a_model_that_ignores_genotypes_has_no_importance_and_no_gap():
    model = Standin(lambda x, _: x.sum((1, 2)).unsqueeze(1) * 0)
    found = integrated_gradients(model, batches(some_codes()), kind="binary", device="cpu")
    assert not found.score.any()
    assert found.completeness_gap == 0


def test_attention_is_the_mean_over_all_samples_or_the_first_ones():
    codes = some_codes()
    model = Standin(None)
    rows = torch.softmax(codes.float(), dim=1).double().numpy()
    everyone = attention_scores(model, batches(codes), device="cpu")
    assert everyone.score == pytest.approx(rows.mean(0))
    assert (everyone.num_samples, everyone.completeness_gap) == (24, None)
    pairs = [(b.genotypes, torch.zeros(len(b.genotypes))) for b in batches(codes)]
    some = attention_scores(model, pairs, device="cpu", max_samples=13)
    assert some.num_samples == 13
    assert some.score == pytest.approx(rows[:13].mean(0))
    layers = network(1)
    gradients = [
        integrated_gradients(
            Standin(lambda x, _: layers(x)), loader, kind="binary", device="cpu", max_samples=n
        )
        for loader, n in ((batches(codes), 13), (batches(codes[:13]), None))
    ]
    assert gradients[0].score == pytest.approx(gradients[1].score)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_and_autocast_are_off_and_the_mode_comes_back(training):
    codes, layers = some_codes(), network(1)
    model = Standin(lambda x, _: layers(x)).train(training)
    before = integrated_gradients(model, batches(codes), kind="binary", device="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        after = integrated_gradients(model, batches(codes), kind="binary", device="cpu")
    assert np.array_equal(before.score, after.score)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_maximum_over_samples_is_that_of_evaluation_without_gradients():
    codes, weight = some_codes(), torch.randn(7, 2, generator=torch.Generator().manual_seed(0))

    class Noisy(Standin):
        def attention(self, genotypes):
            assert not torch.is_grad_enabled()
            return torch.softmax(self.dropout(genotypes.float()), dim=1)

    model = Noisy(lambda x, _: (x * weight).sum((1, 2)).unsqueeze(1)).train()
    rows = torch.softmax(codes.float(), dim=1).numpy()
    attention = attention_scores(model, batches(codes), device="cpu", aggregate="max")
    assert attention.score == pytest.approx(rows.max(0))
    found = integrated_gradients(
        model, batches(codes), kind="quantitative", device="cpu", steps=2, aggregate="max"
    )
    encoded = model.encode(codes).double().numpy()
    assert found.score == pytest.approx(np.abs((encoded * weight.numpy()).sum(2)).max(0), rel=1e-5)
    assert model.training


class Tight(Standin):
    """Has memory for so many samples only."""

    def __init__(self, function, *, room):
        super().__init__(function)
        self.room, self.seen = room, []

    def forward_encoded(self, encoded, covariates=None):
        self.spend(len(encoded))
        return super().forward_encoded(encoded, covariates)

    def attention(self, genotypes):
        self.spend(len(genotypes))
        return super().attention(genotypes)

    def spend(self, num):
        self.seen.append(num)
        if num > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("aggregate", ["mean", "max"])
def test_out_of_memory_halves_the_batches_and_changes_nothing(aggregate, caplog):
    codes, covariates, layers = some_codes(), torch.randn(24, 1), network(1)

    def run(room):
        model = Tight(lambda x, c: layers(x) * c, room=room)
        options = {"device": "cpu", "aggregate": aggregate}
        given = [batches(codes, covariates=covariates) for _ in range(2)]
        attention = attention_scores(model, given[0], **options)
        seen = list(model.seen)
        return attention, integrated_gradients(model, given[1], kind="binary", steps=4, **options), seen

    *expected, _ = run(room=100)
    *found, seen = run(room=3)
    assert seen == [10, 5, *[2] * 12]  # batches of 10, 10 and 4
    assert "out of memory with 10 samples at once; going on with 5" in caplog.text
    for one, other in zip(found, expected, strict=True):
        assert one.score == pytest.approx(other.score, rel=1e-6)
        assert one.num_samples == other.num_samples == 24
    assert found[1].completeness_gap == pytest.approx(expected[1].completeness_gap, rel=1e-4)


def test_no_memory_for_one_sample_is_a_clear_error_and_other_errors_pass():
    with pytest.raises(ResourceError, match=r"no memory for a single sample \(GPU: CUDA out of memory"):
        attention_scores(Tight(None, room=0), batches(some_codes()), device="cpu")
    with pytest.raises(RuntimeError, match="Expected size"):
        integrated_gradients(
            Standin(lambda x, _: x @ torch.ones(3)), batches(some_codes()), kind="binary", device="cpu"
        )


def test_a_model_made_for_mixed_precision_is_attributed_in_full_precision():
    torch.manual_seed(0)
    model = create_gpu_optimized_model(
        16, encoding_dim=2, architecture="cnn", width=8, channels=(4, 4), patch=8, use_amp=True
    )
    codes = some_codes(12, 16)
    for method, options in ((attention_scores, {}), (integrated_gradients, {"kind": "binary", "steps": 4})):
        wrapped = method(model, batches(codes), device="cpu", **options)
        plain = method(model.base, batches(codes), device="cpu", **options)
        assert np.array_equal(wrapped.score, plain.score)
        assert wrapped.score.any()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("encoding_dim", [2, 8])
def test_every_architecture_is_attributed_completely_and_padding_not_at_all(architecture, encoding_dim):
    torch.manual_seed(0)
    mask = torch.ones(32, dtype=torch.bool)
    mask[[6, 7, 30, 31]] = False
    model = InterpretableSNPModel(
        32,
        architecture,
        encoding_dim=encoding_dim,
        num_outputs=3,
        width=16,
        num_layers=1,
        num_heads=2,
        channels=(4, 4),
        patch=8,
        allele_frequency=torch.full((32,), 0.3),
        slot_mask=mask,
    )
    # A network starts at zero or nearly so; this one shall have something to say.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    codes = some_codes(16, 32)
    codes[:, ~mask] = 3
    gradients = integrated_gradients(model, batches(codes), kind="multiclass", device="cpu", steps=128)
    attention = attention_scores(model, batches(codes), device="cpu")
    assert gradients.completeness_gap < 0.02
    for found in (gradients, attention):
        assert found.score.shape == (32,)
        assert np.all(found.score[~mask.numpy()] == 0)
        assert np.all(found.score[mask.numpy()] > 0)
    assert attention.score.sum() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_of_a_trained_network_put_the_causal_snp_first(architecture):
    torch.manual_seed(1)
    codes = torch.from_numpy(np.random.default_rng(2).binomial(2, 0.4, (200, 16)))
    trait = codes[:, 5].float() - 0.8
    model = InterpretableSNPModel(
        16, architecture, encoding_dim=1, width=8, num_layers=1, num_heads=2, channels=(4, 4), patch=8
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(codes)[:, 0], trait).backward()
        optimiser.step()
    found = integrated_gradients(model, batches(codes, size=64), kind="quantitative", device="cpu", steps=8)
    assert found.score.argmax() == 5
    assert found.score[5] > 3 * np.delete(found.score, 5).max()


def test_parts_pool_to_the_whole():
    codes = some_codes()
    model = Standin(lambda x, _: (x**3).sum((1, 2)).unsqueeze(1))
    how = {"kind": "quantitative", "device": "cpu", "steps": 3}
    whole = integrated_gradients(model, batches(codes), **how)
    parts = [integrated_gradients(model, batches(codes[rows]), **how) for rows in (slice(7), slice(7, None))]
    joint = pooled(parts)
    np.testing.assert_allclose(joint.score, whole.score, rtol=1e-12)
    assert joint.num_samples == whole.num_samples
    assert joint.completeness_gap == pytest.approx(whole.completeness_gap)
    assert joint.change == pytest.approx(whole.change)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_input_has_gradients_and_the_weights_are_trainable_afterwards(architecture, monkeypatch):
    torch.manual_seed(0)
    model = InterpretableSNPModel(256, architecture, encoding_dim=2, width=16)
    model.head.out.weight.requires_grad_(False)
    asked = []
    forward = InterpretableSNPModel.forward_encoded

    def seen(self, *given):
        asked.append([name for name, weight in self.named_parameters() if weight.requires_grad])
        return forward(self, *given)

    monkeypatch.setattr(InterpretableSNPModel, "forward_encoded", seen)
    codes = torch.randint(0, 3, (4, 256))
    found = integrated_gradients(model, batches(codes), kind="binary", device="cpu", steps=2)
    assert found.score.any()
    assert asked
    assert not any(asked)
    fixed = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert fixed == ["head.out.weight"]
