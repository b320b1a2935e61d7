"""Products with packed genotypes against the decoded matrix in float64, by a CPU's tiles and a device's."""

import numpy as np
import pytest
import torch

from snpdeconv.finemapping import columns as columns_module
from snpdeconv.finemapping import fit_single_effects
from snpdeconv.finemapping.susie import genotype_score, weights_of
from snpdeconv.finemapping.tiles import TILE_ROWS, DeviceTiles, Tiles
from snpdeconv.genetics.gpu import bfloat16_terms, cached_on_device, count_codes, product
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

NUM_SAMPLES, NUM_VARIANTS = TILE_ROWS + 45, 37


@pytest.fixture(params=[0.0, 0.05], ids=["called", "missing"])
def codes(request):
    rng = np.random.default_rng(0)
    made = rng.integers(0, 3, (NUM_SAMPLES, NUM_VARIANTS)).astype(np.uint8)
    made[:, :30][rng.random((NUM_SAMPLES, 30)) < request.param] = MISSING
    if request.param:
        made[:, 8] = MISSING
    return made


def imputed(indicator, codes):
    called = codes != MISSING
    mean = (indicator * called).sum(axis=0) / np.maximum(called.sum(axis=0), 1)
    return np.where(called, indicator, mean)


def of_a_cpu(genotypes, tile_variants):
    return Tiles(genotypes, tile_variants=tile_variants)


def of_a_device(genotypes, tile_variants):
    rows = 7 if tile_variants else 1000
    packed = cached_on_device(genotypes, torch.device("cpu"))
    tile_genotypes = rows * 4 * packed.shape[1]
    return DeviceTiles.of(packed, num_variants=genotypes.num_variants, tile_genotypes=tile_genotypes)


@pytest.mark.parametrize("make", [of_a_cpu, of_a_device])
@pytest.mark.parametrize("tile_variants", [None, 8, 1])
def test_products_sums_and_squares_are_those_of_the_imputed_matrix(codes, make, tile_variants):
    tiles = make(PackedGenotypes.from_codes(codes), tile_variants)
    np.testing.assert_array_equal(tiles.counts, [(codes == code).sum(axis=0) for code in range(4)])
    some = torch.tensor([36, -1, 3, 8])
    np.testing.assert_array_equal(tiles.codes(some)[:, [0, 2, 3]], codes[:, [36, 3, 8]])
    assert (tiles.codes(some)[:, 1] == MISSING).all()
    dosage, het = imputed(codes.astype(float), codes), imputed((codes == 1).astype(float), codes)
    np.testing.assert_allclose(tiles.dosage_mean, dosage.mean(axis=0))
    np.testing.assert_allclose(tiles.het_mean, het.mean(axis=0))
    rng = np.random.default_rng(1)
    vectors, weight = rng.normal(size=(NUM_SAMPLES, 3)), rng.random(NUM_SAMPLES)
    of_dosage, of_het = rng.normal(size=(2, NUM_VARIANTS))
    expected = np.stack([dosage.T @ vectors, het.T @ vectors])
    for number in (1, 2):
        found = tiles.products(torch.from_numpy(vectors), het=number == 2)
        np.testing.assert_allclose(found, expected[:number], atol=2e-4)
        used = torch.from_numpy(np.stack([of_dosage, of_het])[:number])
        total = dosage @ of_dosage + (number == 2) * (het @ of_het)
        np.testing.assert_allclose(tiles.combine(used), total, atol=1e-4)
        score, along = tiles.gram_times(used, beside=torch.from_numpy(vectors[:, 0]))
        np.testing.assert_allclose(score, total + vectors[:, 0], atol=1e-4)
        with_score = np.stack([dosage.T @ score.numpy(), het.T @ score.numpy()])[:number]
        np.testing.assert_allclose(along[:, :, 0], with_score, rtol=1e-5, atol=1e-3)
    squares = np.stack([weight @ dosage**2, weight @ (dosage * het), weight @ het**2])
    np.testing.assert_allclose(tiles.squares(torch.from_numpy(weight)), squares, rtol=1e-5, atol=1e-4)


def test_three_terms_hold_a_float32_and_whole_numbers_are_multiplied_exactly():
    values = torch.randn(5, 1000, dtype=torch.float64) * torch.logspace(-20, 20, 1000, dtype=torch.float64)
    terms = bfloat16_terms(values)
    assert terms.dtype == torch.bfloat16
    torch.testing.assert_close(terms.double().view(3, 5, -1).sum(0), values, rtol=2**-23, atol=0)
    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 3, (4096, 40)))
    found = product(codes.T.bfloat16(), codes.bfloat16())
    assert torch.equal(found.long(), codes.T @ codes)


def test_products_on_a_device_are_as_accurate_as_float32_allows():
    rng = np.random.default_rng(0)
    codes = rng.binomial(2, rng.uniform(0.05, 0.5, 64), (5000, 64)).astype(np.uint8)
    vectors = rng.normal(size=(5000, 4)) * np.array([1, 1e-6, 1e6, 1])
    tiles = DeviceTiles.of(
        cached_on_device(PackedGenotypes.from_codes(codes), torch.device("cpu")), num_variants=64
    )
    found = tiles.products(torch.from_numpy(vectors), het=False)[0].numpy()
    size = np.linalg.norm(codes, axis=0)[:, None] * np.linalg.norm(vectors, axis=0)
    assert np.abs((found - codes.T @ vectors) / size).max() < 3e-7


@pytest.mark.parametrize("make", [of_a_cpu, of_a_device])
def test_what_effects_add_up_to_in_a_pass_is_what_is_looked_up(codes, make, monkeypatch):
    genotypes = PackedGenotypes.from_codes(codes)
    monkeypatch.setattr(columns_module, "Tiles", make)
    columns = columns_module.Columns(genotypes, basis=np.full((NUM_SAMPLES, 1), NUM_SAMPLES**-0.5))
    y = codes[:, 3] * 1.0 + (codes[:, 20] == 1) + np.random.default_rng(2).normal(size=NUM_SAMPLES)
    fit = fit_single_effects(genotypes, y, kind="quantitative")
    assert fit.effects
    expected = genotype_score(
        genotypes, effects=fit.effects, scaling=columns.scaling, extra=np.empty((NUM_SAMPLES, 0))
    )
    of_dosage, of_het, _ = columns.scaling.coefficients(*weights_of(fit.effects))
    np.testing.assert_allclose(columns.score(of_dosage, of_het), expected, atol=1e-5)


def test_a_fit_on_a_device_is_that_of_a_cpu(monkeypatch):
    rng = np.random.default_rng(0)
    codes = rng.binomial(2, rng.uniform(0.1, 0.5, 150), (400, 150)).astype(np.uint8)
    codes[rng.random(codes.shape) < 0.01] = MISSING
    y = codes[:, 3] * 0.6 + (codes[:, 70] == 1) * 0.9 + rng.normal(size=400)
    covariates = rng.normal(size=(400, 2))
    cases = {"quantitative": y, "binary": (y > 1).astype(float)}
    genotypes = PackedGenotypes.from_codes(codes)

    def fits():
        return [
            fit_single_effects(genotypes, target, kind=kind, covariates=covariates)
            for kind, target in cases.items()
        ]

    expected = fits()
    monkeypatch.setattr(columns_module, "Tiles", lambda given, tile_variants: of_a_device(given, 8))
    for found, known in zip(fits(), expected, strict=True):
        assert len(found.effects) == len(known.effects) >= 1
        np.testing.assert_allclose(found.pip, known.pip, atol=1e-4)
        np.testing.assert_allclose(found.fitted, known.fitted, atol=1e-4)
        assert found.elbo[-1] == pytest.approx(known.elbo[-1], abs=1e-2)


def test_a_cohort_stays_on_the_device_as_long_as_it_exists_and_is_the_last_one_asked_for():
    device = torch.device("cpu")
    codes = np.random.default_rng(0).integers(0, 4, (9, 10)).astype(np.uint8)
    first, second = (PackedGenotypes.from_codes(codes) for _ in range(2))
    first.packed.flags.writeable = False
    there = cached_on_device(first, device)
    assert cached_on_device(first, device) is there
    np.testing.assert_array_equal(there, first.packed)
    other = cached_on_device(second, device)
    assert other is not there
    assert cached_on_device(first, device) is not there
    del first
    from snpdeconv.genetics import gpu as module

    assert device not in module._held


def test_on_a_device_nothing_leaves_it_and_nothing_waits_for_it():
    """Fake tensors of a device refuse to meet one on the host, and have no value that could be asked for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        packed = torch.empty((300, 10), dtype=torch.uint8, device="meta")
        counts = count_codes(packed, num_variants=37, tile_genotypes=400)
        vectors = torch.empty((300, 3), dtype=torch.float64, device="meta")
        for has_missing in (True, False):
            tiles = DeviceTiles(packed, counts=counts, has_missing=has_missing, tile_genotypes=400)
            weight = torch.empty((2, 37), dtype=torch.float64, device="meta")
            found = [
                tiles.products(vectors, het=True),
                tiles.squares(vectors[:, 0]),
                tiles.combine(weight),
                *tiles.gram_times(weight[:1], beside=vectors[:, 0]),
                tiles.codes(counts[0, :5]),
            ]
            assert [tuple(one.shape) for one in found] == [
                (2, 37, 3), (3, 37), (300,), (300,), (1, 37, 1), (300, 5),
            ]  # fmt: skip
            assert all(one.device.type == "meta" for one in found)
        with pytest.raises(RuntimeError, match="devices"):
            tiles.combine(torch.empty((2, 37), dtype=torch.float64))
        with pytest.raises(RuntimeError):
            _ = tiles.counts
