"""A challenger is promoted for what it predicts better, not for luck, a seed, or being looked at often."""

import numpy as np
import pytest

from snpdeconv.pipelines.retrain import LEVEL, judge, level_of

N = 400


def predictions(rng, *, noise, gain=0.0):
    """A trait, and two models of it that a seed sets apart, the second better by `gain` of R²."""
    signal = rng.normal(size=N) * np.sqrt(0.5)
    more = rng.normal(size=N) * np.sqrt(gain)
    truth = signal + more + rng.normal(size=N) * np.sqrt(0.5 - gain)

    def trained(also=0.0):
        return 0.9 * signal + also + rng.normal(size=N) * np.sqrt(noise)

    return truth, trained, more


def look_at(truth, champion, challenger, twin, *, look=1, kind="quantitative", metric="r2"):
    return judge(
        kind, challenger=challenger, champion=champion, truth=truth, metric=metric, look=look,
        twin=twin, seed=1, num_resamples=100,
    )  # fmt: skip


def test_the_levels_of_all_looks_sum_to_no_more_than_one_in_twenty():
    assert sum(level_of(look) for look in range(1, 10_000)) == pytest.approx(LEVEL, rel=1e-3)
    assert level_of(1) > level_of(2) > level_of(50)


def test_fifty_looks_that_differ_by_a_seed_alone_promote_nothing():
    promoted = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        truth, trained, _ = predictions(rng, noise=0.02)
        champion = trained()
        for look in range(1, 51):
            promoted += look_at(truth, champion, trained(), trained, look=look).is_better
    assert promoted == 0


def test_a_better_challenger_is_promoted_and_its_like_decides_with_it():
    promoted = 0
    for seed in range(40):
        rng = np.random.default_rng(100 + seed)
        truth, trained, more = predictions(rng, noise=0.005, gain=0.08)
        verdict = look_at(truth, trained(), trained(more), lambda: trained(more))  # noqa: B023
        promoted += verdict.is_better
        assert verdict.training_noise is None or verdict.training_noise > 0
    assert promoted >= 36


def test_a_challenger_whose_twin_is_no_better_was_lucky():
    rng = np.random.default_rng(3)
    truth, trained, more = predictions(rng, noise=0.02, gain=0.12)
    champion, lucky = trained(), trained(more)
    assert look_at(truth, champion, lucky, lambda: trained(more)).is_better
    assert not look_at(truth, champion, lucky, trained).is_better


def test_what_is_refused_on_the_people_alone_trains_no_twin():
    rng = np.random.default_rng(4)
    truth, trained, _ = predictions(rng, noise=0.02)
    same = trained()
    verdict = look_at(truth, same, same, lambda: pytest.fail("a twin was trained"))
    assert (verdict.difference, verdict.low, verdict.high) == (0, 0, 0)
    assert not verdict.is_better
    assert verdict.training_noise is None


def test_what_was_enough_at_the_first_look_is_not_at_the_fiftieth():
    rng = np.random.default_rng(5)
    truth, trained, more = predictions(rng, noise=0.001, gain=0.04)
    champion, challenger, twin = trained(), trained(more), trained(more)
    first, last = (look_at(truth, champion, challenger, lambda: twin, look=look) for look in (1, 50))
    assert first.is_better
    assert not last.is_better
    assert last.low < first.low
    assert last.detectable > first.detectable > 0


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_classes_are_judged_by_their_auroc(kind):
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 2 if kind == "binary" else 3, size=N)

    def trained(strength):
        score = strength * (truth[:, None] == np.arange(truth.max() + 1)) + rng.normal(
            size=(N, truth.max() + 1)
        )
        shares = np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)
        return shares[:, 1] if kind == "binary" else shares

    options = {"kind": kind, "metric": "auroc"}
    assert look_at(truth, trained(0.5), trained(2.0), lambda: trained(2.0), **options).is_better
    assert not look_at(truth, trained(1.0), trained(1.0), lambda: trained(1.0), **options).is_better
