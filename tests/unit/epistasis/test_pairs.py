"""The pair scan as a whole: planted pairs come out once, nulls stay silent, memory follows the tile."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import special

from snpdeconv.epistasis import pair_columns, scan_pairs
from snpdeconv.errors import InputError
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

NUM = 600
BLOCK = 5


def linked_codes(rng, *, num=NUM, blocks=30):
    """Blocks of five SNPs in LD, each copy of a founder allele with a tenth of the haplotypes redrawn."""
    founder = rng.random((2, num, blocks)) < rng.uniform(0.2, 0.5, blocks)
    alleles = np.repeat(founder, BLOCK, axis=2)
    redrawn = rng.random(alleles.shape) < 0.1
    redrawn[:, :, ::BLOCK] = False
    alleles = np.where(redrawn, rng.random(alleles.shape) < 0.3, alleles)
    return alleles.sum(axis=0).astype(np.uint8)


def places(codes):
    """Chromosomes and positions: every block far from the next one."""
    v = np.arange(codes.shape[1])
    return {
        "chrom": np.array([str(1 + b // 10) for b in v // BLOCK], dtype=object),
        "position_bp": (v // BLOCK * 2_000_000 + v % BLOCK * 1_000 + 1).astype(np.int64),
    }


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(5)
    codes = linked_codes(rng)
    genotypes = PackedGenotypes.from_codes(codes)
    planted = np.array([[10, 75], [40, 120]])
    columns = pair_columns(genotypes, planted)
    trait = columns @ [0.4, -0.5] + rng.normal(size=NUM)
    return codes, genotypes, planted, trait


def block_pairs(scan):
    return [(int(i) // BLOCK, int(j) // BLOCK) for i, j in scan.pairs]


def test_planted_pairs_lead_one_clump_each(study):
    codes, genotypes, planted, trait = study
    scan = scan_pairs(genotypes, trait, **places(codes))
    strong = scan.significant()
    found = {pair for pair, is_strong in zip(block_pairs(scan), strong, strict=True) if is_strong}
    assert found == {(2, 15), (8, 24)}
    assert strong.sum() == 2  # of all the products of linked SNPs, one leads
    for clump in scan.clump[strong]:
        assert len({pair for pair, c in zip(block_pairs(scan), scan.clump, strict=True) if c == clump}) == 1
    kept = {tuple(pair) for pair in scan.pairs.tolist()}
    assert {tuple(pair) for pair in planted.tolist()} <= kept
    assert scan.effect[strong][np.argsort(scan.i[strong])] == pytest.approx([0.4, -0.5], abs=0.12)
    assert (scan.q_value[strong] < 0.05).all()
    assert np.isnan(scan.q_value[~scan.leads]).all()
    assert (scan.i < scan.j).all()
    assert len(kept) == len(scan)


def test_the_list_is_bounded_and_leaders_stay(study):
    codes, genotypes, _, trait = study
    full = scan_pairs(genotypes, trait, **places(codes))
    short = scan_pairs(genotypes, trait, max_pairs=full.leads.sum() + 3, **places(codes))
    assert len(short) == full.leads.sum() + 3 < len(full)
    assert short.pairs[short.leads].tolist() == full.pairs[full.leads].tolist()
    assert (np.diff(full.clump) >= 0).all()
    assert np.array_equal(np.unique(full.clump), full.clump[full.leads])


@pytest.mark.parametrize("tile", [4, 52, 148])
def test_the_tile_has_no_say(study, tile):
    codes, genotypes, _, trait = study
    default = scan_pairs(genotypes, trait, **places(codes))
    tiled = scan_pairs(genotypes, trait, tile=tile, **places(codes))
    assert tiled.pairs.tolist() == default.pairs.tolist()
    assert tiled.num_tested == default.num_tested
    assert tiled.t == pytest.approx(default.t, abs=1e-3)


def test_half_precision_screens_as_well(study):
    codes, genotypes, _, trait = study
    full = scan_pairs(genotypes, trait, **places(codes))
    half = scan_pairs(genotypes, trait, dtype=torch.bfloat16, **places(codes))
    assert half.pairs[half.significant()].tolist() == full.pairs[full.significant()].tolist()
    assert half.t[half.significant()] == pytest.approx(full.t[full.significant()], abs=1e-2)


def test_twice_the_same(study):
    codes, genotypes, _, trait = study
    first, second = (scan_pairs(genotypes, trait, **places(codes)) for _ in range(2))
    assert first.pairs.tolist() == second.pairs.tolist()
    assert np.array_equal(first.t, second.t)


def test_rows_and_missing_genotypes(study):
    codes, _, _, trait = study
    rng = np.random.default_rng(1)
    with_missing = np.where(rng.random(codes.shape) < 0.03, MISSING, codes).astype(np.uint8)
    rows = np.sort(rng.choice(NUM, 500, replace=False))
    some = scan_pairs(PackedGenotypes.from_codes(with_missing), trait[rows], rows=rows, **places(codes))
    alone = scan_pairs(PackedGenotypes.from_codes(with_missing[rows]), trait[rows], **places(codes))
    assert some.pairs.tolist() == alone.pairs.tolist()
    assert np.array_equal(some.t, alone.t)
    strong = {pair for pair, s in zip(block_pairs(some), some.significant(), strict=True) if s}
    assert strong == {(2, 15), (8, 24)}


def test_covariates_that_are_the_interaction_leave_nothing(study):
    codes, genotypes, planted, trait = study
    columns = pair_columns(genotypes, planted)
    covariates = np.column_stack([columns, np.ones(NUM)])
    residual = trait - columns @ np.linalg.lstsq(columns, trait, rcond=None)[0]
    assert not scan_pairs(genotypes, residual, covariates=covariates, **places(codes)).significant().any()


def test_close_pairs_are_not_tested(study):
    codes, genotypes, _, trait = study
    num = codes.shape[1]
    scan = scan_pairs(genotypes, trait, min_distance_bp=0, min_carriers=0, **places(codes))
    assert scan.num_tested == num * (num - 1) // 2
    scan = scan_pairs(genotypes, trait, min_carriers=0, **places(codes))
    blocks = num // BLOCK
    assert scan.num_tested == num * (num - 1) // 2 - blocks * BLOCK * (BLOCK - 1) // 2


def test_nothing_to_find():
    codes = np.zeros((50, 8), dtype=np.uint8)
    scan = scan_pairs(PackedGenotypes.from_codes(codes), np.arange(50.0), **places(codes))
    assert len(scan) == scan.num_tested == 0
    assert scan.pairs.shape == (0, 2)
    assert not scan.significant().any()


def test_wrong_number_of_residuals(study):
    codes, genotypes, *_ = study
    with pytest.raises(InputError, match="599 residuals for 600 samples"):
        scan_pairs(genotypes, np.zeros(NUM - 1), **places(codes))


@pytest.mark.parametrize("kind", ["normal", "lognormal", "binary"])
def test_null_traits_seldom_give_a_pair(kind):
    runs, hits = 24, 0
    for seed in range(runs):
        rng = np.random.default_rng([9, seed])
        codes = linked_codes(rng, num=400, blocks=24)
        mean = None
        if kind == "normal":
            residual = rng.normal(size=400)
        elif kind == "lognormal":
            residual = np.exp(rng.normal(size=400))
        else:
            mean = special.expit(-2.4 + 0.6 * rng.normal(size=400))
            residual = (rng.random(400) < mean) - mean
        scan = scan_pairs(PackedGenotypes.from_codes(codes), residual, mean=mean, **places(codes))
        hits += bool(scan.significant().any())
    assert hits <= 4  # of Binomial(24, .05), more have probability .006


def test_a_planted_pair_of_a_binary_trait(study):
    codes, genotypes, planted, _ = study
    rng = np.random.default_rng(3)
    mean = np.full(NUM, 0.2)
    case = rng.random(NUM) < special.expit(-1.4 + 1.5 * pair_columns(genotypes, planted[:1])[:, 0])
    scan = scan_pairs(genotypes, case - mean, mean=mean, **places(codes))
    strong = {pair for pair, s in zip(block_pairs(scan), scan.significant(), strict=True) if s}
    assert strong == {(2, 15)}


MEMORY = """
import resource
import numpy as np, torch
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.epistasis import scan_pairs
torch.set_num_threads(1)
def scan(num):
    codes = np.random.default_rng(0).binomial(2, .3, (128, num)).astype(np.uint8)
    scan_pairs(PackedGenotypes.from_codes(codes), np.random.default_rng(1).normal(size=128), tile=256,
               chrom=np.full(num, "1", dtype=object), position_bp=np.arange(num) * 100_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

print(scan(512), scan(4096))
"""


def test_memory_follows_the_tile_and_not_the_square():
    out = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True, text=True).stdout
    small, large = map(float, out.split())
    assert large - small < 50  # MiB; one matrix of all pairs would have 64, and the screen needs several
