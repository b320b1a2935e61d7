"""Products of SNPs with covariates: the test against dense algebra, its size, and what makes a signal."""

import numpy as np
import pytest
from scipy import special

from snpdeconv.epistasis import scan_covariates
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

NUM = 400


def drawn(rng, num=NUM, variants=12):
    """Codes of unlinked SNPs, one covariate that varies and one that is an indicator."""
    codes = rng.binomial(2, rng.uniform(0.1, 0.5, variants), (num, variants)).astype(np.uint8)
    e = np.column_stack([rng.gamma(3.0, size=num), rng.integers(0, 2, num)])
    return codes, (e - e.mean(axis=0)) / e.std(axis=0)


def left_of(y, design, weight=None):
    root = np.ones(len(y)) if weight is None else np.sqrt(weight)
    return y - design @ np.linalg.lstsq(root[:, None] * design, (root * y.T).T, rcond=None)[0]


def design_of(codes, covariates):
    called = codes != MISSING
    dosage = np.where(called, codes, codes[called].mean())
    het = np.where(called, codes == 1, (codes[called] == 1).mean())
    return np.column_stack([np.ones(len(codes)), covariates]), dosage, het


@pytest.mark.parametrize("modifier", [0, 1])
def test_a_quantity_has_the_sandwich_and_the_tail_of_random_signs(modifier):
    rng = np.random.default_rng(3)
    codes, e = drawn(rng)
    codes[rng.random(codes.shape) < 0.03] = MISSING
    trait = np.exp(0.4 * e[:, 0]) * rng.normal(size=NUM) + 0.5 * e[:, 0]
    trait += 0.2 * (codes[:, :3] * e[:, [modifier]]).sum(axis=1)
    signs = rng.choice([-1.0, 1.0], (20_000, NUM))
    far = 0
    for v in range(codes.shape[1]):
        one = PackedGenotypes.from_codes(codes[:, [v]])
        found = scan_covariates(one, trait, e[:, [modifier]], covariates=e, expected_false=1.0)
        common, dosage, het = design_of(codes[:, v], e)
        x = left_of((dosage - dosage.mean()) * e[:, modifier], np.column_stack([common, dosage, het]))
        leverage = np.sum(common * (common @ np.linalg.inv(common.T @ common)), axis=1)
        r = left_of(trait, common)
        u = x * r / np.sqrt(1 - leverage)
        z = (x @ r) / np.sqrt(u @ u)
        assert np.sign(found.statistic[0]) == np.sign(z)
        if abs(z) < 2:
            assert found.statistic[0] == pytest.approx(z, rel=1e-3)
        else:
            far += 1
            p = np.mean(np.abs(signs @ u) >= abs(x @ r))
            assert 10 ** -found.neg_log10_p[0] == pytest.approx(p, rel=0.2)
        plain = (x @ r) / np.sqrt(r @ r / (NUM - 3) * (x @ x))
        expected = min(0.0, (found.statistic[0] ** 2 - plain**2) / 2)
        assert found.log_discount[0] == pytest.approx(expected, abs=2e-3)
    assert far


def test_a_binary_trait_has_the_score_test_of_its_probabilities():
    rng = np.random.default_rng(4)
    codes, e = drawn(rng)
    mean = special.expit(0.7 * e[:, 0] - 1)
    case = (rng.random(NUM) < mean).astype(float)
    weight = mean * (1 - mean)
    for v in range(codes.shape[1]):
        one = PackedGenotypes.from_codes(codes[:, [v]])
        found = scan_covariates(one, case - mean, e[:, :1], covariates=e, mean=mean, expected_false=1.0)
        common, dosage, het = design_of(codes[:, v], e)
        x = left_of((dosage - dosage.mean()) * e[:, 0], np.column_stack([common, dosage, het]), weight)
        spread = max(weight @ x**2, (case - mean) ** 2 @ x**2)
        z = x @ (case - mean) / np.sqrt(spread)
        assert found.statistic[0] == pytest.approx(z, rel=0.02 if abs(z) < 2 else 0.2, abs=1e-3)


def test_neither_spread_nor_a_bent_effect_makes_an_interaction():
    """The residual spreads with the covariate and with the genotype: plain statistics are far too large."""
    rng = np.random.default_rng(5)
    codes, e = drawn(rng, num=1500, variants=300)
    e = e[:, 0]
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    p, plain = [], []
    for v in range(300):
        trait = np.exp(0.4 * e + 0.3 * z[:, v] * e) * rng.normal(size=1500) + e**2
        found = scan_covariates(
            PackedGenotypes.from_codes(codes[:, [v]]), trait, e[:, None],
            covariates=np.column_stack([e, e**2]), expected_false=1.0,
        )  # fmt: skip
        p.append(10 ** -found.neg_log10_p[0])
        plain.append(np.exp(-found.log_discount[0]))
    assert np.mean(np.array(p) < 0.05) < 0.09
    assert np.mean(np.array(p) < 0.01) < 0.03
    assert np.median(plain) > 1.5


def test_linked_products_are_one_signal_and_others_their_own():
    rng = np.random.default_rng(6)
    codes, e = drawn(rng, num=1000, variants=40)
    for neighbour in (11, 12):
        codes[:, neighbour] = np.where(rng.random(1000) < 0.1, codes[:, neighbour], codes[:, 10])
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    trait = 0.5 * z[:, 10] * e[:, 0] + 0.3 * z[:, 30] * e[:, 1] + rng.normal(size=1000)
    found = scan_covariates(PackedGenotypes.from_codes(codes), trait, e, covariates=e)
    first = found.signal == 0
    assert (found.variant[0], found.modifier[0]) == (10, 0)
    assert set(found.variant[first]) >= {10, 11, 12}
    second = np.flatnonzero(found.leads)[1]
    assert (found.variant[second], found.modifier[second]) == (30, 1)
    assert found.neg_log10_p[second] > 10
    assert found.q_value[[0, second]].max() < 1e-6
    assert (np.diff(found.q_value[found.leads]) >= 0).all()
    assert found.num_tested.tolist() == [40, 40]
    assert found.values.shape == (1000, len(found))
    # Shadows of the strongest are in its signal or nowhere.
    assert set(found.variant[~first & (found.modifier == 0)]).isdisjoint({10, 11, 12})


def test_what_has_no_product_left_is_not_tested():
    rng = np.random.default_rng(7)
    codes, e = drawn(rng)
    codes[:, 2] = 1
    own = codes[:, [3]].astype(float)  # its product with itself is dosage and dominance
    covariates = np.hstack([e, own, own**2])
    modifiers = np.hstack([e[:, :1], own])
    found = scan_covariates(
        PackedGenotypes.from_codes(codes), rng.normal(size=NUM), modifiers, covariates=covariates
    )
    assert found.num_tested.tolist() == [11, 10]


def test_more_than_fit_at_once_are_scanned_again(monkeypatch):
    from snpdeconv.epistasis import covariate

    rng = np.random.default_rng(8)
    codes, e = drawn(rng, num=800, variants=30)
    codes[:, 1:4] = codes[:, :1]
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    trait = 0.6 * z[:, 0] * e[:, 0] + 0.3 * z[:, 20] * e[:, 0] + rng.normal(size=800)
    monkeypatch.setattr(covariate, "MOST_PASSED", 3)
    found = scan_covariates(PackedGenotypes.from_codes(codes), trait, e[:, :1], covariates=e)
    assert found.variant[0] == 0
    assert 20 in found.variant[found.leads]


def test_the_discount_counts_what_the_likelihood_sees_without_the_signals_before():
    rng = np.random.default_rng(9)
    codes, e = drawn(rng, num=1000, variants=60)
    trait = np.exp(0.7 * e[:, 0]) * rng.normal(size=1000)
    how = {"modifiers": e[:, :1], "covariates": np.column_stack([e, e[:, 0] ** 2])}
    found = scan_covariates(PackedGenotypes.from_codes(codes), trait, expected_false=20.0, **how)
    later = np.flatnonzero(found.signal > 0)
    alone = np.array(
        [
            scan_covariates(
                PackedGenotypes.from_codes(codes[:, [v]]), trait, expected_false=1.0, **how
            ).log_discount[0]
            for v in found.variant[later]
        ]
    )
    assert len(later) > 3
    assert (found.log_discount[later] <= alone + 0.01).all()
    assert alone.min() < -3
