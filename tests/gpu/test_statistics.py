"""Single effects, pairs and the linear part come to the same on a GPU and on the CPU."""

import numpy as np
import pytest
import torch
from gpu_work import cohort as packed_cohort
from gpu_work import make_model
from simulated_gpu import simulated_gpu

from snpdeconv.device import available_bytes, or_on_the_cpu, with_index
from snpdeconv.finemapping import Settings, fit_single_effects
from snpdeconv.finemapping.joint import deconvolve
from snpdeconv.finemapping.tiles import DeviceTiles
from snpdeconv.genetics import gpu as residence
from snpdeconv.genetics.gpu import bfloat16_terms, product
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.models.linear import SparseScores, fit_linear

CODES = (300, 120)


@pytest.fixture(scope="module")
def study():
    """Genotypes, some missing, two covariates, and traits of one SNP and a pair."""
    rng = np.random.default_rng(1)
    codes = rng.binomial(2, rng.uniform(0.2, 0.8, CODES[1]), size=CODES).astype(np.uint8)
    codes[rng.random(CODES) < 0.02] = 3
    z = np.where(codes == 3, 1, codes) - 1.0
    score = z[:, 5] + 2 * z[:, 40] * z[:, 90]
    return {
        "codes": codes,
        "genotypes": PackedGenotypes.from_codes(codes),
        "covariates": rng.normal(size=(CODES[0], 2)),
        "quantitative": score + rng.normal(size=CODES[0]),
        "binary": (score + rng.logistic(size=CODES[0]) > 0).astype(float),
        "multiclass": np.digitize(score + rng.normal(size=CODES[0]), [-1, 1]),
    }


def found_in(study, kind, device, **options):
    return deconvolve(
        study["genotypes"],
        study[kind],
        kind=kind,
        chrom=np.full(CODES[1], "1", dtype=object),
        position_bp=np.arange(CODES[1]) * 20_000,
        covariates=study["covariates"],
        settings=Settings(device=device),
        **options,
    )


@pytest.mark.parametrize("kind", ["quantitative", "binary"])
def test_a_trait_is_taken_apart_as_on_the_cpu(gpu, study, kind):
    how = {"pairs": kind == "quantitative"}
    ours, theirs = found_in(study, kind, gpu, **how), found_in(study, kind, "cpu", **how)
    np.testing.assert_allclose(ours.pip, theirs.pip, atol=1e-4)
    np.testing.assert_allclose(ours.fitted, theirs.fitted, atol=1e-3)
    if kind == "quantitative":
        assert ours.pip[5] > 0.99
        assert (ours.pairs.first[0], ours.pairs.second[0]) == (40, 90)
        np.testing.assert_allclose(ours.pairs.pip, theirs.pairs.pip, atol=1e-4)


def test_products_of_genotypes_are_exact(gpu, study):
    codes = torch.from_numpy(study["codes"][:, :64].astype(np.int64)).masked_fill_(
        torch.from_numpy(study["codes"][:, :64] == 3), 0
    )
    ours = product(codes.to(gpu, torch.bfloat16).T, codes.to(gpu, torch.bfloat16))
    assert torch.equal(ours.cpu().long(), codes.T @ codes)  # whole numbers up to 2^24, in int64
    vectors = torch.randn(len(codes), 3, dtype=torch.float64)
    terms = bfloat16_terms(vectors.T.to(gpu))
    sums = product(terms, codes.to(gpu, torch.bfloat16)).double().view(3, 3, -1).sum(0)
    torch.testing.assert_close(sums.cpu(), vectors.T @ codes.double(), rtol=1e-6, atol=1e-5)


def test_counts_and_sums_of_tiles_are_exact(gpu, study):
    codes = study["codes"]
    tiles = DeviceTiles.of(
        residence.cached_on_device(study["genotypes"], torch.device(gpu)),
        num_variants=CODES[1],
        tile_genotypes=4096,
    )
    assert np.array_equal(tiles.counts, [(codes == code).sum(0) for code in range(4)])
    ones = torch.ones(CODES[0], 1, dtype=torch.float64, device=gpu)
    called = np.where(codes == 3, np.nan, codes)
    expected = np.nan_to_num(called, nan=0).sum(0) + (codes == 3).sum(0) * np.nanmean(called, axis=0)
    np.testing.assert_allclose(tiles.products(ones, het=True).cpu().numpy()[0, :, 0], expected, rtol=1e-7)


def test_a_cohort_is_on_a_gpu_once_by_whatever_name(gpu, study):
    genotypes = study["genotypes"]
    first = residence.cached_on_device(genotypes, torch.device("cuda"))
    assert residence.cached_on_device(genotypes, torch.device("cuda", 0)) is first
    assert with_index("cuda") == torch.device(gpu)
    assert available_bytes(torch.device(gpu)) > 0


@pytest.mark.parametrize("kind", ["quantitative", "binary", "multiclass"])
@pytest.mark.parametrize("dependent", [False, True])
def test_the_linear_part_is_fitted_as_on_the_cpu(gpu, kind, dependent):
    packed, trait, covariates = packed_cohort(200, seed=3)
    if dependent:  # the intercept, and a column twice: least squares by `gels` would not do
        covariates = torch.stack([covariates[:, 0], covariates[:, 0], torch.ones(200)], dim=1)
    target = {
        "quantitative": trait,
        "binary": (trait > 0).float(),
        "multiclass": (trait > 0).long() + (trait > 1),
    }[kind]
    outputs = 3 if kind == "multiclass" else 1
    codes = ((packed[:, :, None] >> torch.arange(0, 8, 2)) & 3).flatten(1).numpy().astype(np.uint8)
    sparse = None
    if kind != "multiclass":
        found = deconvolve(
            PackedGenotypes.from_codes(codes), target.numpy(), kind=kind, pairs=False,
            chrom=np.full(96, "1", dtype=object), position_bp=np.arange(96),
            covariates=covariates.numpy()[:, :1], settings=Settings(device="cpu"),
        )  # fmt: skip
        terms = found.terms
        wide = np.zeros((terms.covariate_weight.shape[0], covariates.shape[1]))
        wide[:, :1] = terms.covariate_weight
        terms = type(terms)(**{**vars(terms), "covariate_weight": wide})
        sparse = SparseScores(terms, in_sample=found.fitted, out_of_fold=0.9 * found.fitted)
    fits = []
    for where in (gpu, "cpu"):
        model = make_model(
            "cnn", num_outputs=outputs, num_covariates=covariates.shape[1], linear="fitted"
        ).to(where)
        fit = fit_linear(model, packed, target, covariates, kind=kind, sparse=sparse)
        model.eval()
        fits.append((fit, model(packed.to(where), covariates.to(where)).detach().cpu()))
    (ours, logits), (theirs, expected) = fits
    assert ours.penalty == theirs.penalty
    torch.testing.assert_close(ours.offset, theirs.offset, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert logits.std() > 0.1


def test_little_memory_means_smaller_tiles_and_at_last_the_cpu(caplog):
    rng = np.random.default_rng(2)
    codes = rng.binomial(2, rng.uniform(0.2, 0.8, 400), size=(150, 400)).astype(np.uint8)
    trait = codes[:, 5] + 0.7 * rng.normal(size=150)
    genotypes = PackedGenotypes.from_codes(codes)

    def found(device):
        return fit_single_effects(
            genotypes, trait, kind="quantitative", settings=Settings(device=str(device), refine=False)
        )

    expected = found("cpu")
    with simulated_gpu(room=230_000) as gpu:  # decoded, the genotypes take 240 KB
        ours = found(gpu)
    assert "with 60000 genotypes of a tile at once; going on with 30000 (GPU: CUDA" in caplog.text
    np.testing.assert_allclose(ours.pip, expected.pip, atol=1e-4)
    with simulated_gpu(room=5_000) as gpu:  # the packed genotypes alone take 15 KB
        ours = or_on_the_cpu(found, gpu, what="single effects")
    assert "no memory for single effects on cuda:0: computed on the CPU (GPU: CUDA" in caplog.text
    assert np.array_equal(ours.pip, expected.pip)


def test_a_simulated_gpu_keeps_a_gpus_rules():
    with simulated_gpu() as gpu:
        ours = torch.arange(12.0, device="cuda:0").view(3, 4)
        assert (ours.device, ours.double().device, torch.zeros_like(ours).device) == (gpu, gpu, gpu)
        assert ours.cpu().numpy()[1, 2] == 6
        ours[:, 1] = 7
        assert ours[torch.tensor([0, 2])][:, :2].tolist() == [[0, 7], [8, 7]]
        for lacking in (
            lambda: ours.numpy(),
            lambda: np.asarray(ours),
            lambda: ours @ torch.ones(4),
            lambda: torch.linalg.lstsq(ours, ours, driver="gelsd"),
            lambda: torch.mm(ours, ours.T, out_dtype=torch.float32),
        ):
            with pytest.raises((TypeError, RuntimeError)):
                lacking()
