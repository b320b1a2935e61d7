from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.genetics.encoding import (
    DOMINANCE_FLOOR,
    GenotypeEncoder,
    as_codes,
    channel_means,
    channels,
    check_encoding_dim,
    dominance_values,
    dosage_weights,
    unpack_codes,
)


def random_codes(rng: np.random.Generator, samples: int, snps: int, missing: float = 0.05) -> np.ndarray:
    frequency = rng.uniform(0.1, 0.9, snps)
    codes = rng.binomial(2, frequency, (samples, snps)).astype(np.int8)
    codes[rng.random(codes.shape) < missing] = 3
    return codes


def test_a_byte_holds_four_codes_lowest_bits_first():
    packed = torch.tensor([[0b11_10_01_00, 0b00_00_00_01]], dtype=torch.uint8)

    assert unpack_codes(packed, 8).tolist() == [[0, 1, 2, 3, 1, 0, 0, 0]]
    assert unpack_codes(packed, 5).tolist() == [[0, 1, 2, 3, 1]]


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=4))
def test_packed_rows_and_integer_codes_are_the_same_genotypes(rows: list[list[int]]):
    packed = [[sum(c << (2 * i) for i, c in enumerate(r[:4])), r[4] | r[5] << 2 | 0xF0] for r in rows]

    assert as_codes(torch.tensor(packed, dtype=torch.uint8), 6).tolist() == rows
    assert as_codes(torch.tensor(rows), 6).tolist() == rows


def test_negative_codes_are_missing():
    codes = as_codes(torch.tensor([[0, -1, 2, -9, 3, 1]]), 6)

    assert codes.tolist() == [[0, 3, 2, 3, 3, 1]]
    assert codes.dtype == torch.uint8


@pytest.mark.parametrize("shape", [(2, 7), (2, 6, 1)])
def test_a_width_that_fits_neither_form_is_an_error(shape: tuple[int, ...]):
    with pytest.raises(InputError, match=r"genotypes: shape .* neither 6 integer codes .* nor 2 packed"):
        as_codes(torch.zeros(shape, dtype=torch.int64), 6)


def test_the_haplotype_encoding_has_rank_eight():
    codes = random_codes(np.random.default_rng(1), 60, 40)

    encoded = GenotypeEncoder().haplotype_encoding(codes)

    assert encoded.shape == (60, 40, 8)
    assert encoded.dtype == torch.float32
    assert np.linalg.matrix_rank(encoded.reshape(-1, 8).double().numpy()) == 8


def test_haplotype_channels_of_a_small_matrix():
    # SNP frequencies 1/2, 1/4, 1/2 over the genotypes that are there.
    codes = torch.tensor([[0, 0, 2], [2, 1, 1], [1, 3, 0]])

    encoded = GenotypeEncoder().haplotype_encoding(codes)

    assert encoded[1, :, :4].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert encoded[2, 1, :6].tolist() == [0, 0, 0, 1, 0, 0]
    assert encoded[1, :, 4].tolist() == [1.0, 0.5, 0.0]
    np.testing.assert_allclose(encoded[1, 1, 5], 0.5 / np.sqrt(2 * 0.25 * 0.75), rtol=1e-6)
    assert encoded[1, :, 6].tolist() == [0.0, 2 * 1 / 2, 1 * 1 / 2]
    assert encoded[1, :, 7].tolist() == [2 * 1 / 2, 1 * 1 / 2, 0.0]
    # A missing neighbour counts as its mean, 2p = 0.5 copies.
    assert encoded[2, 0, 7] == 1 * 0.5 / 2


def test_phased_alleles_tell_cis_from_trans():
    cis = np.array([[[0, 1], [0, 1]]])
    trans = np.array([[[0, 1], [1, 0]]])
    encoder = GenotypeEncoder(frequency=np.array([0.5, 0.5]))

    encoded_cis, encoded_trans = encoder.haplotype_encoding(cis), encoder.haplotype_encoding(trans)
    unphased = encoder.haplotype_encoding(cis.sum(-1))

    assert torch.equal(encoded_cis[..., :6], encoded_trans[..., :6])
    assert encoded_cis[0, :, 6].tolist() == [0, 1]
    assert encoded_cis[0, :, 7].tolist() == [1, 0]
    assert encoded_trans[0, :, 6:].sum() == 0
    assert unphased[0, 1, 6] == 0.5


def test_a_missing_allele_makes_the_genotype_missing_and_its_haplotype_expected():
    alleles = np.array([[[1, -1], [1, 1]], [[0, 1], [1, 0]]])

    encoded = GenotypeEncoder(frequency=np.array([0.25, 0.5])).haplotype_encoding(alleles)

    assert encoded[0, 0, :4].tolist() == [0, 0, 0, 1]
    assert encoded[0, 1, 6] == 1 + 0.25


def test_phased_alleles_without_frequencies_use_their_own():
    alleles = np.random.default_rng(3).integers(0, 2, (20, 6, 2))
    alleles[0, 0, 0] = -1

    fitted = GenotypeEncoder().fit(np.where((alleles < 0).any(-1), -1, alleles.sum(-1)))

    assert torch.equal(GenotypeEncoder().haplotype_encoding(alleles), fitted.haplotype_encoding(alleles))


@pytest.mark.parametrize("dim", [1, 2, 4, 8])
def test_the_encoder_and_the_models_channels_agree(dim: int):
    codes = random_codes(np.random.default_rng(2), 30, 12)
    encoder = GenotypeEncoder().fit(codes)
    encode = {
        1: encoder.additive_encoding,
        2: encoder.dominance_encoding,
        4: encoder.one_hot_encoding,
        8: encoder.haplotype_encoding,
    }[dim]

    expected = torch.stack(channels(torch.from_numpy(codes).to(torch.uint8), encoder.frequency, dim), dim=-1)

    assert encode(codes).shape == (30, 12, dim)
    assert torch.equal(encode(codes), expected)


def test_additive_and_one_hot_values():
    encoder = GenotypeEncoder(frequency=np.array([0.5, 0.1]))
    codes = np.array([[2, 0], [1, 3]])

    np.testing.assert_allclose(
        encoder.additive_encoding(codes)[..., 0], [[2**0.5, -0.2 / 0.18**0.5], [0, 0]], rtol=1e-6
    )
    assert encoder.one_hot_encoding(codes)[1].tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


@given(st.floats(0.12, 0.88))
def test_dominance_is_standard_and_uncorrelated_with_dosage(p: float):
    proportions = np.array([(1 - p) ** 2, 2 * p * (1 - p), p**2])
    value = dominance_values(torch.tensor([p], dtype=torch.float64))[:, 0].numpy()

    assert abs(proportions @ value) < 1e-9
    assert abs(proportions @ value**2 - 1) < 1e-9
    assert abs(proportions @ (value * np.arange(3))) < 1e-9


def test_dominance_of_rare_homozygotes_is_held_and_of_constant_snps_is_zero():
    value = dominance_values(torch.tensor([0.01, 0.0, 1.0]))

    assert DOMINANCE_FLOOR - 1 < float(value[2, 0]) < DOMINANCE_FLOOR + 1
    assert value[:, 1:].abs().max() == 0


@pytest.mark.parametrize("dim", [1, 2, 4, 8])
def test_channel_means_are_expectations_under_equilibrium(dim: int):
    # Every genotype pair of two SNPs, weighted by its probability.
    frequency = torch.tensor([0.3, 0.8])
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(3)).to(torch.uint8)
    q, p = 1 - frequency, frequency
    proportions = torch.stack([q * q, 2 * p * q, p * p])
    weight = proportions[codes[:, 0].long(), 0] * proportions[codes[:, 1].long(), 1]

    mean = torch.stack([(weight[:, None] * c).sum(0) for c in channels(codes, frequency, dim)])

    torch.testing.assert_close(mean, channel_means(frequency, dim), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dim", [1, 2, 4, 8])
def test_dosage_weights_recover_the_standardised_dosage(dim: int):
    codes = torch.from_numpy(random_codes(np.random.default_rng(4), 20, 9)).to(torch.uint8)
    frequency = torch.linspace(0.1, 0.9, 9)

    centred = torch.stack(channels(codes, frequency, dim), dim=1) - channel_means(frequency, dim)
    dosage = (centred * dosage_weights(frequency, dim)).sum(1)

    torch.testing.assert_close(dosage, channels(codes, frequency, 1)[0], atol=2e-6, rtol=0)


def test_normalisation_matches_float64_and_fills_missing_with_the_mean():
    codes = random_codes(np.random.default_rng(5), 50, 20)
    codes[:, 3] = 2
    codes[:, 7] = 3

    z = GenotypeEncoder().normalize_genotypes(codes)

    dosage = np.where(codes == 3, np.nan, codes.astype(np.float64))
    keep = np.setdiff1d(np.arange(20), [3, 7])
    dosage = dosage[:, keep]
    expected = (dosage - np.nanmean(dosage, 0)) / np.nanstd(dosage, 0)
    np.testing.assert_allclose(z[:, keep], np.nan_to_num(expected), atol=1e-5)
    assert z[:, [3, 7]].abs().max() == 0


def test_normalisation_fits_on_training_samples_only():
    rng = np.random.default_rng(6)
    train, test = random_codes(rng, 80, 5, missing=0), random_codes(rng, 10, 5, missing=0)

    z = GenotypeEncoder().fit(train).normalize_genotypes(test)

    np.testing.assert_allclose(z, (test - train.mean(0)) / train.std(0), atol=1e-5)


def test_stored_frequencies_stand_in_for_a_training_matrix():
    z = GenotypeEncoder(frequency=torch.tensor([0.5, torch.nan])).normalize_genotypes(np.array([[2.0, 1.0]]))

    np.testing.assert_allclose(z, [[1 / np.sqrt(0.5), 0]], rtol=1e-6)


def test_fractional_dosages_and_nan_are_accepted_where_they_mean_something():
    dosage = np.array([[0.5, np.nan], [1.5, 1.0], [1.0, 0.0]])

    assert GenotypeEncoder().normalize_genotypes(dosage)[0, 1] == 0
    with pytest.raises(InputError, match="fractional dosages have no indicators"):
        GenotypeEncoder().one_hot_encoding(dosage)


def test_a_read_only_array_is_taken_without_a_warning():
    codes = random_codes(np.random.default_rng(7), 5, 4)
    codes.setflags(write=False)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GenotypeEncoder().additive_encoding(codes).shape == (5, 4, 1)


@pytest.mark.parametrize(
    "genotypes, problem",
    [
        (np.array([[0, 5]]), "a genotype of 5"),
        (np.array([0, 1]), r"shape \(2,\)"),
        (np.zeros((1, 2, 3)), "phased alleles of shape"),
        (np.full((1, 2, 2), 2), "values up to 2"),
    ],
)
def test_what_is_no_genotype_is_an_error(genotypes: np.ndarray, problem: str):
    with pytest.raises(InputError, match=problem):
        GenotypeEncoder().haplotype_encoding(genotypes)


def test_another_number_of_snps_than_fitted_is_an_error():
    encoder = GenotypeEncoder().fit(np.array([[0, 1, 2], [1, 1, 0]]))

    with pytest.raises(InputError, match="2 SNPs, but the encoder was fitted on 3"):
        encoder.normalize_genotypes(np.array([[0, 1]]))


def test_only_four_encodings_exist():
    check_encoding_dim(8)
    with pytest.raises(ConfigError, match="encoding_dim: no encoding has 3 channels"):
        check_encoding_dim(3)
