"""The parts of the pair scan against float64 regression, brute force and exact enumeration."""

import itertools

import numpy as np
import pytest
import torch
from scipy import special, stats

from snpdeconv.epistasis import pair_columns
from snpdeconv.epistasis import screen as decoded
from snpdeconv.epistasis import screen as screen_module
from snpdeconv.epistasis.clump import (
    LeadPairs,
    LocalLdAdjustment,
    _products,
    clump_members,
    lead,
    refine_leads,
)
from snpdeconv.epistasis.dosages import Dosages
from snpdeconv.epistasis.screen import screen
from snpdeconv.epistasis.test import Null, retest_pairs
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats.common import EmpiricalCumulants, binary_score_tail

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    num, snps = 500, 23
    codes = rng.binomial(2, rng.uniform(0.1, 0.9, snps), (num, snps)).astype(np.uint8)
    codes[:, 1] = np.where(rng.random(num) < 0.6, codes[:, 0], codes[:, 1])  # in LD with 0
    codes[rng.random(codes.shape) < 0.04] = MISSING
    codes[:, 22] = 0
    return codes, rng.normal(size=num) * np.exp(0.3 * rng.normal(size=num)), rng.normal(size=(num, 2))


def standardised(codes):
    dosage = np.where(codes == MISSING, np.nan, codes.astype(float))
    centred = np.nan_to_num(dosage - np.nanmean(dosage, axis=0))
    sd = centred.std(axis=0)
    return centred / np.where(sd > 0, sd, 1)


def heterozygote(codes):
    called = codes != MISSING
    return np.where(called, codes == 1, np.sum(codes == 1, axis=0) / called.sum(axis=0))


def left_by(columns, value):
    return value - columns @ np.linalg.lstsq(columns, value, rcond=None)[0]


def test_pair_columns_are_what_members_leave_of_the_product(study):
    codes, *_ = study
    pairs = np.array([[0, 1], [4, 20], [3, 22], [5, 5]])
    found = pair_columns(PackedGenotypes.from_codes(codes), pairs)
    z = standardised(codes)
    for p, (i, j) in enumerate(pairs[:2]):
        expected = left_by(np.column_stack([np.ones(500), z[:, i], z[:, j]]), z[:, i] * z[:, j])
        assert found[:, p] == pytest.approx(expected / expected.std(), abs=2e-5)
    assert found.dtype == np.float32
    assert not found[:, 2:].any()  # a constant SNP, and a SNP with itself, have no interaction
    rows = np.arange(0, 500, 3)
    some = pair_columns(PackedGenotypes.from_codes(codes), pairs, rows=rows)
    assert np.array_equal(some, pair_columns(PackedGenotypes.from_codes(codes[rows]), pairs))


def test_screen_equals_its_definition(study):
    codes, residual, _ = study
    residual = residual - residual.mean()
    dosages = Dosages.of(PackedGenotypes.from_codes(codes))
    n, snps = codes.shape
    found = screen(
        dosages,
        torch.tensor(residual, dtype=torch.float32),
        variance=None,
        chrom_code=np.arange(snps) // 6,
        position_bp=np.arange(snps) * 1000,
        min_distance_bp=1500,
        min_carriers=100,
        t_min=0.0,
        keep=1000,
        tile=8,
    )
    z = standardised(codes)
    kurtosis = (z**4).mean(axis=0)
    called = codes != MISSING
    frequency = np.where(called, codes, 0).sum(axis=0) / 2 / called.sum(axis=0)
    carrier = 1 - (1 - np.minimum(frequency, 1 - frequency)) ** 2
    expected = {}
    for i, j in itertools.combinations(range(snps), 2):
        if (i // 6 == j // 6 and j - i < 2) or carrier[i] * carrier[j] * n < 100:
            continue
        total = np.sum(residual * z[:, i] * z[:, j])
        robust = np.sum((residual * z[:, i] * z[:, j]) ** 2)
        robust = max(robust - total**2 * kurtosis[i] * kurtosis[j] / n, 0.1 * robust)
        expected[i, j] = total / np.sqrt(max(robust, np.sum(residual**2)))
    assert found.num_tested == len(expected) == len(found.first)
    for i, j, t in zip(found.first, found.second, found.statistic, strict=True):
        assert t == pytest.approx(expected[i, j], abs=1e-4)
    assert (np.diff(np.abs(found.statistic)) <= 0).all()
    assert found.num_flop == pytest.approx(4 * n * (8 * 8 * 3 + 8 * 7 * 2 + 7 * 7))


def test_exact_test_equals_regression(study):
    codes, residual, covariates = study
    dosages = Dosages.of(PackedGenotypes.from_codes(codes))
    pairs = np.array([[0, 1], [2, 9], [4, 17], [3, 22]])
    null = Null.of(residual, covariates=covariates, device=CPU)
    found = retest_pairs(dosages, null, pairs, factor=1.0)
    z, het = standardised(codes), heterozygote(codes)
    for p, (i, j) in enumerate(pairs[:3]):
        beside = np.column_stack([np.ones(500), covariates, z[:, [i, j]], het[:, [i, j]]])
        product = left_by(beside, z[:, i] * z[:, j])
        beta = product @ residual / (product @ product)
        error = left_by(np.column_stack([beside, product]), residual)
        usual = error @ error / (500 - 8) / (product @ product)
        leverage = product**2 / (product @ product)
        hc3 = np.sum((product * error / (1 - leverage)) ** 2) / (product @ product) ** 2
        t = beta / np.sqrt(max(usual, hc3))
        assert found.statistic[p] == pytest.approx(t, abs=2e-3)
        assert found.neg_log10_p[p] == pytest.approx(-np.log10(2 * stats.t.sf(abs(t), 492)), abs=5e-3)
        assert found.effect[p] == pytest.approx(beta * product.std(), abs=1e-4)
        assert found.r[p] == pytest.approx(np.mean(z[:, i] * z[:, j]), abs=1e-5)
    assert found.statistic[3] == 0
    frequency = np.nanmean(np.where(codes == MISSING, np.nan, codes.astype(float)), axis=0) / 2
    minor = np.where(codes == MISSING, 0, np.where(frequency <= 0.5, codes, 2 - codes.astype(int)))
    assert found.carriers[1] == np.sum((minor[:, 2] > 0) & (minor[:, 9] > 0))
    halved = retest_pairs(dosages, null, pairs, factor=0.5)
    assert halved.statistic == pytest.approx(found.statistic / 2)
    none = retest_pairs(dosages, null, np.empty((0, 2), dtype=np.int64), factor=1.0)
    assert len(none.statistic) == 0


def test_binary_statistic_near_the_centre_is_the_score_test(study):
    codes, _, covariates = study
    rng = np.random.default_rng(2)
    mean = special.expit(covariates @ [0.5, -0.3])
    case = rng.random(500) < mean
    dosages = Dosages.of(PackedGenotypes.from_codes(codes))
    null = Null.of(case - mean, covariates=covariates, mean=mean, device=CPU)
    pairs = np.array([[2, 9], [6, 7], [8, 14]])
    found = retest_pairs(dosages, null, pairs, factor=1.0)
    z, het, weight = standardised(codes), heterozygote(codes), mean * (1 - mean)
    for p, (i, j) in enumerate(pairs):
        beside = np.column_stack([np.ones(500), covariates, z[:, [i, j]], het[:, [i, j]]])
        root = np.sqrt(weight)[:, None]
        product = left_by(root * beside, root[:, 0] * z[:, i] * z[:, j]) / root[:, 0]
        score = product @ (case - mean) / np.sqrt(weight @ product**2)
        assert abs(score) < 2
        assert found.statistic[p] == pytest.approx(score, abs=2e-3)


def test_saddlepoint_equals_enumeration():
    rng = np.random.default_rng(4)
    mean = rng.uniform(0.03, 0.2, 18)
    x = rng.gamma(1.0, size=18)
    outcomes = np.array(list(itertools.product([0, 1], repeat=18)), dtype=np.float32)
    probability = np.exp(outcomes @ np.log(mean) + (1 - outcomes) @ np.log1p(-mean))
    scores = outcomes @ x - mean @ x
    sd = np.sqrt(np.sum(mean * (1 - mean) * x**2))
    for z in (2.5, 3.5, 4.5):
        exact = probability[scores >= z * sd].sum()
        found = binary_score_tail(
            torch.tensor(x[:, None], dtype=torch.float32),
            torch.tensor([z * sd], dtype=torch.float32),
            torch.tensor(mean, dtype=torch.float32),
        )
        assert 10 ** -float(found) / 2 == pytest.approx(exact, rel=0.3)
        if z > 4:
            assert 10 ** -float(found) > 4 * 2 * stats.norm.sf(z)  # the normal tail would be far too small


def test_cumulants_of_a_distribution_that_was_seen():
    values = torch.from_numpy(np.random.default_rng(1).gamma(0.5, size=500))
    values = (values - values.mean()) / values.std()
    tilt = torch.linspace(-8, 8, 321, dtype=torch.float64, requires_grad=True)
    expected = (tilt[:, None] * values).exp().mean(1).log()
    (slope,) = torch.autograd.grad(expected.sum(), tilt, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), tilt)
    found = EmpiricalCumulants.of(values)
    with torch.no_grad():
        assert found.value(tilt) == pytest.approx(expected, abs=1e-5)
        first, second = found.derivatives(tilt)
        assert first == pytest.approx(slope, abs=1e-4)
        assert second == pytest.approx(bend, rel=0.03, abs=1e-3)


def test_saddlepoint_at_the_end_of_the_range():
    """All carriers are controls: no score can be lower, and the p-value is that of a few coins."""
    column = torch.zeros(1000, 1)
    column[:25] = 1.0
    mean = torch.full((1000,), 0.1)
    found = binary_score_tail(column, -25 * mean[:1], mean)
    assert 10 ** -float(found) / 2 == pytest.approx(0.9**25, rel=0.9)


@pytest.mark.parametrize("binary", [False, True])
def test_window_products_equal_regression(study, binary):
    codes, residual, _ = study
    mean = np.random.default_rng(7).uniform(0.1, 0.6, 500) if binary else None
    residual = (residual > 0.5) - mean if binary else residual - residual.mean()
    null = Null.of(residual, mean=mean, device=CPU)
    dosages = Dosages.of(PackedGenotypes.from_codes(codes))
    left, right = np.array([0, 3, 5]), np.array([1, 7, 22, 5])
    found = _products(dosages, null.residual, null, left, right)
    z, weight = standardised(codes), null.weight.double().numpy()
    root = np.sqrt(weight)
    for a, i in enumerate(left):
        for b, j in enumerate(right):
            if j in (22, i):
                assert found[a, b] == 0
                continue
            beside = root[:, None] * np.column_stack([np.ones(500), z[:, [i, j]]])
            product = left_by(beside, root * z[:, i] * z[:, j])
            t = product @ (residual / root) / np.linalg.norm(product)
            scale = 1.0 if binary else residual.std()
            assert found[a, b] == pytest.approx(t / scale, abs=2e-3)


def haplotypes(rng, num):
    """SNPs 0 and 8 mark, together, the haplotype that carries an ungenotyped causal allele; others tag it."""
    first, second = rng.random((2, num, 2)) < 0.3
    causal = first & second
    tags = [np.where(rng.random((num, 2)) < 0.1, rng.random((num, 2)) < 0.2, causal) for _ in range(3)]
    noise = [rng.random((num, 2)) < 0.3 for _ in range(4)]
    columns = [first, *noise[:2], *tags, *noise[2:], second]
    return np.stack([c.sum(axis=1) for c in columns], axis=1).astype(np.uint8), causal.sum(axis=1)


@pytest.mark.parametrize("true_interaction", [False, True])
def test_surroundings_take_out_one_ungenotyped_snp(true_interaction):
    rng = np.random.default_rng(11)
    num = 2000
    codes, causal = haplotypes(rng, num)
    genotypes = PackedGenotypes.from_codes(codes)
    column = pair_columns(genotypes, np.array([[0, 8]]))[:, 0]
    residual = (0.35 * column if true_interaction else 0.6 * causal) + rng.normal(size=num)
    z = standardised(codes)
    tested = np.column_stack([np.ones(num), z[:, [0, 8]]])
    residual = left_by(tested, residual)
    dosages = Dosages.of(genotypes)
    null = Null.of(residual, device=CPU)
    place = LocalLdAdjustment(dosages, np.zeros(9, dtype=np.int64), np.arange(9) * 20_000)
    pair = np.array([0, 8])
    assert place.near(pair)
    assert not LocalLdAdjustment(dosages, np.zeros(9, dtype=np.int64), np.arange(9) * 200_000).near(pair)
    share = place.discount(null, null.residual, pair, torch.tensor(column))
    assert share > 0.6 if true_interaction else share < 0.45
    statistic = retest_pairs(dosages, null, pair[None], factor=1.0).statistic
    assert abs(statistic[0]) > 5
    leaders = lead(dosages, null, pair[None], statistic, local_ld=place, t_min=4.5, max_clumps=3)
    assert leaders.kept.tolist() == [true_interaction]
    assert len(clump_members(dosages, null, leaders, max_pairs=3)) == int(true_interaction)


def test_leaders_are_judged_again_without_the_others():
    """A close pair that hid behind a strong one is kept once the strong one is out of the residual."""
    rng = np.random.default_rng(17)
    num = 1500
    codes = rng.binomial(2, 0.3, (num, 12)).astype(np.uint8)
    genotypes = PackedGenotypes.from_codes(codes)
    pairs = np.array([[0, 9], [3, 4]])
    columns = pair_columns(genotypes, pairs)
    residual = columns @ [1.5, 0.2] + rng.normal(size=num)
    dosages = Dosages.of(genotypes)
    null = Null.of(residual, device=CPU)
    chrom_code = np.array([0] * 6 + [1] * 6)
    place = LocalLdAdjustment(dosages, chrom_code, np.arange(12) * 60_000)
    leaders = LeadPairs(
        pairs=pairs,
        t=np.array([20.0, 6.0]),
        discount=np.array([1.0, 0.1]),
        kept=np.array([True, False]),
        columns=torch.tensor(columns),
    )
    judged = refine_leads(dosages, null, leaders, local_ld=place, factor=1.0, t_min=5.0)
    assert judged.kept.tolist() == [True, True]
    assert judged.discount[0] == 1  # on two chromosomes
    assert 0.8 < judged.discount[1] <= 1
    strict = refine_leads(dosages, null, leaders, local_ld=place, factor=0.5, t_min=5.0)
    assert strict.kept.tolist() == [True, False]


def test_tiles_of_a_device_are_screened_without_leaving_it_or_waiting_for_it():
    """Fake tensors of a device refuse to meet one on the host, and have no value that could be asked for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    num, device = 40, torch.device("meta")
    place = screen_module._Place(
        np.zeros(num, dtype=np.int64), np.arange(num) * 100, min_distance_bp=500, device=device
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        z = torch.empty(300, num // 2, device=device)
        left, right = slice(0, 20), decoded.Tile(20, 40, z.bfloat16(), z.bfloat16())
        for floor in (1.0, None):
            test = screen_module._Test(
                num_samples=300,
                carrier=torch.empty(num, device=device),
                kurtosis=torch.empty(num, device=device),
                place=place,
                min_carriers=10.0,
                floor=floor,
            )
            assert place.may_be_near(left, right.variants)
            total, squared, tested = test.of(left, (z.bfloat16().T, z.bfloat16().T), right)
            assert (total.dtype, tuple(tested.shape)) == (torch.float32, (20, 20))
            found = screen_module._Found.of(20, total, (squared > 4) & tested, squared)
            assert tuple(found.place.shape) == (400, 2)
            assert {found.place.device.type, found.statistic.device.type, found.number.device.type} == {
                "meta"
            }
        with pytest.raises(RuntimeError):
            int(found.number)


def test_a_tile_with_more_strong_pairs_than_room_is_done_again(monkeypatch):
    rng = np.random.default_rng(0)
    codes = rng.binomial(2, 0.4, (200, 60)).astype(np.uint8)
    dosages = Dosages.of(PackedGenotypes.from_codes(codes))
    ask = {
        "variance": None, "chrom_code": np.zeros(60, dtype=np.int64), "position_bp": np.arange(60) * 20_000,
        "min_distance_bp": 10_000, "min_carriers": 5.0, "t_min": 1.0, "keep": 10_000, "tile": 16,
    }  # fmt: skip
    residual = torch.from_numpy(rng.normal(size=200).astype(np.float32))
    expected = screen_module.screen(dosages, residual, **ask)
    assert len(expected.first) > 200
    monkeypatch.setattr(screen_module, "MOST_OF_TILE", 3)
    monkeypatch.setattr(decoded, "KEPT_ELEMENTS_CPU", 2 * 200 * 16 * 2)  # two of four tiles stay
    found = screen_module.screen(dosages, residual, **ask)
    for name in ("first", "second", "statistic"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_products_in_16_bits_find_the_same_pairs_with_a_t_that_is_hardly_another():
    rng = np.random.default_rng(1)
    codes = rng.binomial(2, rng.uniform(0.1, 0.5, 200), (3000, 200)).astype(np.uint8)
    dosages = Dosages.of(PackedGenotypes.from_codes(codes))
    residual = torch.from_numpy(rng.normal(size=3000).astype(np.float32))
    ask = {
        "variance": None, "chrom_code": np.zeros(200, dtype=np.int64), "min_distance_bp": 10_000,
        "position_bp": np.arange(200) * 20_000, "min_carriers": 5.0, "t_min": 2.0, "keep": 100_000,
    }  # fmt: skip
    single, half = (
        screen_module.screen(dosages, residual, **ask, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    t_of = [
        dict(zip(zip(s.first.tolist(), s.second.tolist(), strict=True), s.statistic.tolist(), strict=True))
        for s in (single, half)
    ]
    shared = t_of[0].keys() & t_of[1].keys()
    assert len(shared) > 0.98 * len(t_of[0])
    assert max(abs(t_of[0][pair] - t_of[1][pair]) for pair in shared) < 0.02
    assert half.inflation == pytest.approx(single.inflation, abs=2e-3)
