from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.models.model import InterpretableSNPModel

Make = Callable[..., Any]

FREQUENCY = torch.linspace(0.05, 0.95, 100)


@pytest.mark.parametrize("dim", [1, 2, 4, 8])
def test_packed_codes_and_encoded_genotypes_give_the_same_output(
    architecture: str, dim: int, small: Make, genotypes: Make, pack: Make
):
    model = small(architecture, encoding_dim=dim, num_outputs=3, allele_frequency=FREQUENCY).eval()
    codes = genotypes()

    expected = model(codes)

    assert expected.shape == (6, 3)
    assert expected.std() > 0.01
    assert model.encode(codes).shape == (6, 100, dim)
    assert torch.equal(model(pack(codes)), expected)
    assert torch.equal(model(codes.to(torch.int8).where(codes < 3, -1)), expected)
    assert torch.equal(model(model.encode(codes)), expected)
    assert torch.equal(model.forward_encoded(model.encode(codes).double()), expected)


def test_a_number_of_snps_that_fills_no_byte(architecture: str, small: Make, genotypes: Make, pack: Make):
    model = small(architecture, 37, patch=8).eval()
    codes = genotypes(n_snps=37)

    assert torch.equal(model(pack(codes)), model(codes))
    assert model.attention(codes).shape == (6, 37)


def test_missing_genotypes_take_the_mean_of_their_snp(architecture: str, small: Make, genotypes: Make):
    model = small(architecture, encoding_dim=1, allele_frequency=FREQUENCY).eval()
    codes = genotypes()
    encoded = model.encode(codes)

    assert encoded[codes == 3].abs().max() == 0
    assert encoded[codes != 3].abs().min() > 0


def test_every_parameter_gets_a_gradient(architecture: str, small: Make, genotypes: Make):
    model = small(architecture, num_covariates=2, num_outputs=2)
    encoded = model.encode(genotypes()).requires_grad_()

    model.forward_encoded(encoded, torch.randn(6, 2)).square().sum().backward()

    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    assert encoded.grad is not None
    assert (encoded.grad.abs().sum((0, 2)) > 0).all()


def test_a_new_model_starts_near_zero_whatever_the_sample(architecture: str, genotypes: Make):
    torch.manual_seed(0)
    model = InterpretableSNPModel(100, architecture, width=16, patch=16).eval()

    assert model(genotypes()).abs().max() < 0.02


def test_permuted_samples_give_permuted_outputs(architecture: str, small: Make, genotypes: Make):
    model = small(architecture).eval()
    codes = genotypes()
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    torch.testing.assert_close(model(codes[order]), model(codes)[order])
    torch.testing.assert_close(model.attention(codes[order]), model.attention(codes)[order])


def test_covariates_are_added_linearly(architecture: str, small: Make, genotypes: Make):
    model = small(architecture, num_covariates=2, num_outputs=3).eval()
    codes, covariates = genotypes(), torch.randn(6, 2)

    effect = model(codes, covariates) - model(codes, torch.zeros(6, 2))

    torch.testing.assert_close(effect, covariates @ model.wide.covariate_weight.t(), atol=1e-5, rtol=1e-4)


def test_further_columns_are_an_offset(architecture: str, small: Make, genotypes: Make):
    codes, covariates, offset = genotypes(), torch.randn(6, 2), torch.randn(6, 3)
    with_covariates = small(architecture, num_covariates=2, num_outputs=3).eval()
    without = small(architecture, num_outputs=3).eval()

    shifted = with_covariates(codes, torch.cat([covariates, offset], dim=1))

    torch.testing.assert_close(shifted - with_covariates(codes, covariates), offset, atol=1e-5, rtol=0)
    torch.testing.assert_close(without(codes, offset) - without(codes), offset, atol=1e-5, rtol=0)


@pytest.mark.parametrize("covariates", [None, torch.zeros(6, 5)])
def test_covariates_that_do_not_fit_are_an_error(
    covariates: torch.Tensor | None, small: Make, genotypes: Make
):
    with pytest.raises(InputError, match=r"covariates: .* the model takes \(batch, 2\)"):
        small("cnn", num_covariates=2)(genotypes(), covariates)


def test_an_encoded_array_of_another_shape_is_an_error(small: Make):
    with pytest.raises(InputError, match=re.escape("genotypes: shape (6, 100, 4) of an encoded array")):
        small("cnn")(torch.zeros(6, 100, 4))


def test_the_configuration_and_the_state_rebuild_the_model_bit_for_bit(
    architecture: str, small: Make, genotypes: Make
):
    mask = torch.ones(100, dtype=torch.bool)
    mask[90:] = False
    graph = torch.randint(0, 100, (100, 3))
    model = small(
        architecture,
        encoding_dim=2,
        num_covariates=1,
        allele_frequency=FREQUENCY,
        slot_mask=mask,
        neighbors=graph,
        neighbor_weights=torch.rand(100, 3),
    )

    again = InterpretableSNPModel(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())

    codes, covariates = genotypes(), torch.randn(6, 1)
    assert torch.equal(again.eval()(codes, covariates), model.eval()(codes, covariates))
    assert torch.equal(again.attention(codes), model.attention(codes))


def test_autocast_in_bfloat16_stays_close_to_float32(architecture: str, small: Make, genotypes: Make):
    model = small(architecture, allele_frequency=FREQUENCY).eval()
    codes = genotypes(samples=16)

    with torch.autocast("cpu", torch.bfloat16):
        half, attention = model(codes), model.attention(codes)

    full = model(codes)
    assert half.dtype == attention.dtype == torch.float32
    assert (half - full).abs().max() < 0.05 * full.std()
    torch.testing.assert_close(attention.sum(1), torch.ones(16))


def test_checkpointed_activations_change_neither_gradients_nor_buffers(
    architecture: str, small: Make, genotypes: Make
):
    plain = small(architecture, dropout=0.3)
    saving = InterpretableSNPModel(**{**plain.config, "checkpoint_activations": True})
    saving.load_state_dict(plain.state_dict())
    codes = genotypes()

    for model in (plain, saving):
        torch.manual_seed(9)
        model(codes).square().sum().backward()

    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
    for (name, b), c in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(b, c), name


def test_fewer_than_fifty_million_parameters_at_100_000_snps(architecture: str):
    def num_parameters(n_snps: int, dim: int) -> int:
        with torch.device("meta"):
            # The gnn's default graph needs to know the slots; on the meta device they have no values.
            graph = torch.zeros(n_snps, 4, dtype=torch.int64)
            model = InterpretableSNPModel(n_snps, architecture, encoding_dim=dim, neighbors=graph)
        return sum(p.numel() for p in model.parameters())

    assert num_parameters(100_000, 8) < 50e6
    assert num_parameters(200_000, 2) < 2.01 * num_parameters(100_000, 2)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({"architecture": "cnn_transfomer"}, "architecture: .* did you mean 'cnn_transformer'"),
        ({"encoding_dim": 3}, "encoding_dim: no encoding has 3 channels"),
        ({"width": 20, "num_heads": 8}, "num_heads: 8 heads do not divide a width of 20"),
        ({"patch": 6}, "patch: 6; give a multiple of 4"),
        ({"n_snps": 0}, "n_snps: 0 SNPs"),
        ({"allele_frequency": torch.zeros(3)}, r"allele_frequency: shape \(3,\)"),
        ({"slot_mask": torch.ones(3)}, r"slot_mask: shape \(3,\)"),
        (
            {"architecture": "gnn", "neighbors": torch.zeros(3, 2, dtype=torch.int64)},
            r"neighbors: shapes \(3, 2\)",
        ),
    ],
)
def test_sizes_that_do_not_hold_together_are_errors(arguments: dict[str, object], problem: str):
    with pytest.raises(ConfigError, match=problem):
        InterpretableSNPModel(**{"n_snps": 64, **arguments})  # type: ignore[arg-type]
