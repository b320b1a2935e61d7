from __future__ import annotations

import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, ResourceError
from snpdeconv.simulation.genotypes import POPULATIONS, population_labels, simulate_genotypes


def minor_frequency(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    frequency = codes.mean(axis=0) / 2
    return np.minimum(frequency, 1 - frequency)


def test_genotypes_are_those_of_common_biallelic_variants_in_order() -> None:
    codes, variants = simulate_genotypes(200, num_variants=300, seed=1, maf_min=0.05, num_holdout=50)
    assert codes.shape == (250, 300)
    assert codes.dtype == np.uint8
    assert set(np.unique(codes)) == {0, 1, 2}
    assert minor_frequency(codes[:200]).min() >= 0.05
    assert len(variants) == 300
    assert set(variants.chrom) == {"1"}
    assert (np.diff(variants.position_bp) > 0).all()
    assert variants.position_bp.min() >= 1
    for name, pos, counted, other in zip(
        variants.variant_id,
        variants.position_bp,
        variants.counted_allele,
        variants.other_allele,
        strict=True,
    ):
        assert name == f"1:{pos}:{other}:{counted}"
        assert counted in "ACGT"
        assert other in "ACGT"
        assert counted != other


def test_few_alleles_are_strand_ambiguous() -> None:
    _, variants = simulate_genotypes(20, num_variants=800, seed=1)
    pairs = [
        "".join(sorted(pair)) for pair in zip(variants.counted_allele, variants.other_allele, strict=True)
    ]
    ambiguous = sum(pair in ("AT", "CG") for pair in pairs) / 800
    transitions = sum(pair in ("AG", "CT") for pair in pairs) / 800
    assert 0.01 < ambiguous < 0.08
    assert 0.55 < transitions < 0.75


def test_genotypes_are_in_hardy_weinberg_proportions() -> None:
    codes, _ = simulate_genotypes(1000, num_variants=500, seed=2, maf_min=0.05)
    frequency = codes.mean(axis=0) / 2
    heterozygotes = (codes == 1).mean(axis=0) / (2 * frequency * (1 - frequency))
    assert heterozygotes.mean() == pytest.approx(1, abs=0.02)


def test_ld_decays_with_distance() -> None:
    codes, variants = simulate_genotypes(500, num_variants=1000, seed=3, maf_min=0.05)
    r2 = np.corrcoef(codes.T.astype(np.float64)) ** 2
    distance = np.abs(variants.position_bp[:, None] - variants.position_bp)

    def mean_r2(low_kb: float, high_kb: float) -> float:
        return float(r2[(distance > low_kb * 1e3) & (distance <= high_kb * 1e3)].mean())

    near, middle, far = mean_r2(0, 20), mean_r2(80, 120), mean_r2(2_000, 10_000)
    assert near > 0.25
    assert near > 2 * middle > 4 * far
    assert far == pytest.approx(1 / 500, rel=0.5)


def test_contiguous_variants_lie_at_sequence_density() -> None:
    _, variants = simulate_genotypes(200, num_variants=300, seed=1, contiguous=True)
    span_mb = (variants.position_bp[-1] - variants.position_bp[0]) / 1e6
    assert 600 < 300 / span_mb < 3000


@pytest.mark.parametrize("seed", range(6))
def test_thinning_leaves_the_number_asked_for_whatever_the_seed(seed: int) -> None:
    codes, variants = simulate_genotypes(20, num_variants=2, seed=seed, length_mb=0.5)
    assert codes.shape == (20, 2)
    assert len(variants) == 2


def test_long_genomes_are_spread_over_independent_chromosomes() -> None:
    steps: list[tuple[int, int]] = []
    codes, variants = simulate_genotypes(
        300, num_variants=201, seed=4, length_mb=19, maf_min=0.1, progress=lambda *step: steps.append(step)
    )
    assert steps == [(1, 2), (2, 2)]
    chroms, sizes = np.unique(variants.chrom.astype(str), return_counts=True)
    assert list(chroms) == ["1", "2"]
    assert set(sizes) <= {100, 101}
    assert variants.position_bp.max() <= 9.5e6
    assert (variants.genome_order() == np.arange(201)).all()
    first, second = (codes[:, variants.chrom == chrom].astype(np.float64) for chrom in ("1", "2"))
    between = np.corrcoef(first.T, second.T)[: first.shape[1], first.shape[1] :] ** 2
    assert between.mean() == pytest.approx(1 / 300, rel=0.2)


def test_equal_seeds_give_equal_genotypes_and_others_do_not() -> None:
    (first, named), (again, named_again), (other, _) = (
        simulate_genotypes(50, num_variants=80, seed=seed) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert named.to_frame().equals(named_again.to_frame())
    assert not np.array_equal(first, other)


def fst(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Hudson's estimator as a ratio of averages (Bhatia et al. 2013)."""
    p, q = first.mean(axis=0) / 2, second.mean(axis=0) / 2
    n, m = 2 * len(first), 2 * len(second)
    between = (p - q) ** 2 - p * (1 - p) / (n - 1) - q * (1 - q) / (m - 1)
    return float(between.sum() / (p * (1 - q) + q * (1 - p)).sum())


def test_three_populations_differ_as_humans_do() -> None:
    codes, _ = simulate_genotypes(301, num_variants=400, seed=5, from_three_populations=True, num_holdout=30)
    labels = population_labels(331)
    assert list(labels[:4]) == ["AFR", "EUR", "EAS", "AFR"]
    africa, europe, asia = (codes[labels == name] for name in POPULATIONS)
    # Bhatia et al. 2013 find .106 between Europeans and East Asians.
    assert 0.08 < fst(africa, europe) < 0.25
    assert 0.08 < fst(africa, asia) < 0.25
    assert 0.04 < fst(europe, asia) < min(fst(africa, europe), fst(africa, asia))
    # The held-out people are of the populations that their labels say.
    held_out = codes[301:][labels[301:] == "AFR"]
    assert fst(held_out, africa) < 0.02 < fst(held_out, europe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_samples": 9}, "samples: 9 people"),
        ({"num_variants": 0}, "variants: 0 variants"),
        ({"seed": -1}, "seed: -1 is negative"),
        ({"maf_min": 0.5}, "maf_min: 0.5 is not"),
        ({"maf_min": float("nan")}, "maf_min: nan is not"),
        ({"length_mb": 0.0}, "length_mb: 0 Mb"),
        ({"length_mb": 0.01}, "length_mb: 0.01 Mb hold"),
        ({"length_mb": 0.01, "contiguous": True}, "length_mb: 0.01 Mb hold"),
    ],
)
def test_sizes_that_cannot_be_simulated_are_refused(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"num_samples": 20, "num_variants": 300, "seed": 1} | changes
    num_samples = arguments.pop("num_samples")
    with pytest.raises(ConfigError) as refusal:
        simulate_genotypes(num_samples, **arguments)  # type: ignore[arg-type]
    assert str(refusal.value).startswith(message)


def test_without_msprime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msprime", None)
    with pytest.raises(ResourceError, match=r"pip install 'msprime"):
        simulate_genotypes(20, num_variants=20, seed=1)
