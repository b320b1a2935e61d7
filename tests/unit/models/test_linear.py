from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import f1_score, roc_auc_score

from snpdeconv.models import linear
from snpdeconv.models.linear import fit_linear
from snpdeconv.models.model import InterpretableSNPModel

Make = Callable[..., Any]
SNPS = 90


@pytest.fixture
def cohort() -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (300, 90), a tenth missing at random in places, and a trait of SNPs 10 and 60."""
    rng = np.random.default_rng(11)
    codes = rng.binomial(2, rng.uniform(0.15, 0.85, SNPS), (300, SNPS))
    trait = 1.6 * codes[:, 10] - 1.5 * codes[:, 60] + rng.normal(size=300)
    codes[rng.random(codes.shape) < 0.02] = 3
    return torch.from_numpy(codes), torch.from_numpy(trait).float()


def model_of(codes: torch.Tensor, **arguments: Any) -> InterpretableSNPModel:
    torch.manual_seed(0)
    present = codes < 3
    frequency = (codes * present).sum(0) / (2 * present.sum(0))
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "patch": 16, "encoding_dim": 2}
    arguments = {"linear": "fitted", "allele_frequency": frequency, **sizes, **arguments}
    return InterpretableSNPModel(codes.shape[1], "cnn_transformer", **arguments).eval()


@torch.no_grad()
def predictions(
    model: InterpretableSNPModel, codes: torch.Tensor, covariates: torch.Tensor | None = None
) -> np.ndarray:
    """The wide path alone."""
    model.head.out.weight.zero_()
    return model(codes, covariates).numpy()


def test_the_wide_path_becomes_ridge_regression(cohort: tuple[torch.Tensor, torch.Tensor]):
    codes, trait = cohort
    model = model_of(codes)
    z = model.encode(codes)[..., 0].double().numpy()

    fit = fit_linear(model, codes, trait, kind="quantitative")

    reference = Ridge(alpha=fit.penalty * SNPS).fit(z, trait)
    np.testing.assert_allclose(predictions(model, codes)[:, 0], reference.predict(z), atol=2e-4)
    assert fit.num_samples == 300


def test_the_penalty_is_the_best_of_refits_without_each_sample(
    cohort: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
):
    codes, trait = cohort[0][:60], cohort[1][:60]
    monkeypatch.setattr(linear, "PENALTIES", np.array([1e-3, 0.03, 1.0, 30.0]))
    model = model_of(codes)
    z = model.encode(codes)[..., 0].double().numpy()
    y = trait.double().numpy()

    fit = fit_linear(model, codes, trait, kind="quantitative")

    def error(penalty: float) -> float:
        left_out = []
        for i in range(60):
            keep = np.arange(60) != i
            left_out.append(Ridge(alpha=penalty * SNPS).fit(z[keep], y[keep]).predict(z[[i]])[0])
        return float(np.mean((y - left_out) ** 2))

    errors = {penalty: error(penalty) for penalty in linear.PENALTIES.tolist()}
    assert fit.penalty == min(errors, key=errors.__getitem__)
    np.testing.assert_allclose(fit.loo_r2, 1 - errors[fit.penalty] / y.var(), atol=1e-5)


def test_the_offset_turns_the_fit_into_predictions_of_samples_left_out(
    cohort: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
):
    codes, trait = cohort[0][:60], cohort[1][:60]
    monkeypatch.setattr(linear, "PENALTIES", np.array([0.3]))
    model = model_of(codes)
    z = model.encode(codes)[..., 0].double().numpy()

    fit = fit_linear(model, codes, trait, kind="quantitative")

    left_out = predictions(model, codes, fit.offset)[:, 0]
    for i in (0, 17, 59):
        keep = np.arange(60) != i
        expected = Ridge(alpha=0.3 * SNPS).fit(z[keep], trait[keep]).predict(z[[i]])[0]
        assert abs(left_out[i] - expected) < 1e-4


def test_samples_that_were_not_sampled_need_no_offset(cohort: tuple[torch.Tensor, torch.Tensor]):
    codes, trait = cohort

    offset = fit_linear(model_of(codes), codes, trait, kind="quantitative", max_samples=100).offset

    assert offset.shape == (300, 1)
    assert int((offset != 0).sum()) == 100


@pytest.mark.parametrize("dim", [1, 4, 8])
def test_every_encoding_carries_the_same_regression(
    cohort: tuple[torch.Tensor, torch.Tensor], dim: int, pack: Make
):
    codes, trait = cohort
    reference, model = model_of(codes), model_of(codes, encoding_dim=dim)
    fit_linear(reference, codes, trait, kind="quantitative")
    expected = predictions(reference, codes)

    for form in (codes, pack(codes), model.encode(codes)):
        fit_linear(model, form, trait, kind="quantitative")
        np.testing.assert_allclose(predictions(model, codes), expected, atol=1e-4)


def test_chunks_and_padding_change_nothing(
    cohort: tuple[torch.Tensor, torch.Tensor], pack: Make, monkeypatch: pytest.MonkeyPatch
):
    codes, trait = cohort
    whole = model_of(codes)
    fit_linear(whole, codes, trait, kind="quantitative")

    slots = torch.cat([torch.arange(45), torch.full((3,), -1), torch.arange(45, 90), torch.full((3,), -1)])
    columns = torch.where(slots >= 0, codes[:, slots], 3)
    padded = model_of(columns, slot_mask=slots >= 0, allele_frequency=whole.encoder.allele_frequency[slots])
    monkeypatch.setattr(linear, "CHUNK_SLOTS", 32)
    fit = fit_linear(padded, pack(columns), trait, kind="quantitative")

    assert fit.loo_r2 > 0.2
    np.testing.assert_allclose(predictions(padded, columns), predictions(whole, codes), atol=1e-4)


def test_attention_starts_at_each_snps_share(cohort: tuple[torch.Tensor, torch.Tensor]):
    codes, trait = cohort
    model = model_of(codes)

    fit_linear(model, codes, trait, kind="quantitative")
    attention = model.attention(codes)

    assert set(attention.mean(0).topk(2).indices.tolist()) == {10, 60}
    torch.testing.assert_close(attention.sum(1), torch.ones(300))


def test_covariates_are_fixed_effects(cohort: tuple[torch.Tensor, torch.Tensor]):
    codes, trait = cohort
    covariates = torch.randn(300, 2, generator=torch.Generator().manual_seed(4))
    shifted = trait + covariates @ torch.tensor([3.0, -2.0])
    plain, adjusted = model_of(codes), model_of(codes, num_covariates=2)

    without = fit_linear(plain, codes, trait, kind="quantitative")
    fit = fit_linear(adjusted, codes, shifted, covariates, kind="quantitative")

    slope = adjusted.wide.covariate_weight
    assert slope is not None
    np.testing.assert_allclose(slope.detach()[0], [3.0, -2.0], atol=0.2)
    assert fit.loo_r2 > without.loo_r2 + 0.3
    weights = np.corrcoef(plain.wide.weight[0], adjusted.wide.weight[0])[0, 1]
    assert weights > 0.95


def test_a_binary_trait_gets_calibrated_logits(cohort: tuple[torch.Tensor, torch.Tensor]):
    codes, trait = cohort
    case = (trait > trait.quantile(0.7)).float()
    covariates = torch.randn(300, 1, generator=torch.Generator().manual_seed(4))
    model = model_of(codes[:200], num_covariates=1)

    fit_linear(model, codes[:200], case[:200], covariates[:200], kind="binary")
    logits = predictions(model, codes[200:], covariates[200:])[:, 0]

    assert roc_auc_score(case[200:], logits) > 0.7
    probability = 1 / (1 + np.exp(-logits))
    assert abs(probability.mean() - 0.3) < 0.1


def test_classes_of_unequal_size_are_told_apart():
    # Populations whose frequencies differ a little at many SNPs: leave-one-out calibration is what makes the
    # small class come out, plain regression on indicators hands it to its larger neighbour.
    rng = np.random.default_rng(2)
    ancestral = rng.uniform(0.2, 0.8, 1500)
    drift = np.sqrt(0.02 * ancestral * (1 - ancestral))
    populations = [np.clip(ancestral + drift * rng.normal(size=1500), 0.02, 0.98) for _ in range(3)]
    label = np.repeat([0, 1, 2], [150, 100, 24])
    codes = torch.from_numpy(np.stack([rng.binomial(2, populations[k]) for k in label]))
    target = torch.from_numpy(label)
    train = torch.from_numpy(rng.random(len(label)) < 0.6)
    model = model_of(codes[train], num_outputs=3, patch=64)

    fit_linear(model, codes[train], target[train], kind="multiclass")
    found = predictions(model, codes[~train]).argmax(1)

    assert f1_score(label[~train], found, average="macro") > 0.95


def test_a_large_cohort_is_sampled(cohort: tuple[torch.Tensor, torch.Tensor]):
    codes, trait = cohort
    covariates = torch.zeros(300, 1)
    first, second = model_of(codes, num_covariates=1), model_of(codes, num_covariates=1)

    fit = fit_linear(first, codes, trait, covariates, kind="quantitative", max_samples=100)
    fit_linear(second, codes, trait, covariates, kind="quantitative", max_samples=100)

    assert fit.num_samples == 100
    assert torch.equal(first.wide.weight, second.wide.weight)


def test_fitted_weights_are_a_buffer_and_travel_with_the_state(cohort: tuple[torch.Tensor, torch.Tensor]):
    codes, trait = cohort
    model = model_of(codes)
    fit_linear(model, codes, trait, kind="quantitative")

    again = InterpretableSNPModel(**model.config).eval()
    again.load_state_dict(model.state_dict())

    assert "wide.weight" not in dict(model.named_parameters())
    assert torch.equal(again(codes), model(codes))
    assert "wide.weight" in dict(model_of(codes, linear="trained").named_parameters())
