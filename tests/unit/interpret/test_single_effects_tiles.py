"""Products with packed genotypes against the decoded matrix in float64."""

import numpy as np
import pytest
import torch

from snpdeconv.genetics.genotypes import MISSING, PackedGenotypes
from snpdeconv.interpret.single_effects.tiles import TILE_ROWS, Tiles

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


@pytest.mark.parametrize("tile_variants", [None, 8, 1])
def test_products_sums_and_squares_are_those_of_the_imputed_matrix(codes, tile_variants):
    tiles = Tiles(PackedGenotypes.from_codes(codes), device=torch.device("cpu"), tile_variants=tile_variants)
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
