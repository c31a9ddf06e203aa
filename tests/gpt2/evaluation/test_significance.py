"""Intervals and tests beside scipy's and brute force, and how often they hold."""

import time
from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from gpt2.evaluation.significance import Bootstrap, beside, by_unit, holm, mcnemar, permutation, resampled, wilson


def mean(sums):
    """Of columns (value, 1)."""
    return sums[..., 0] / sums[..., 1]


def macro_f1(sums):
    matrix = sums.reshape(*sums.shape[:-1], 3, 3)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return (2 * hits / np.maximum(matrix.sum(-1) + matrix.sum(-2), 1)).mean(-1)


def with_ones(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def posts(generator, n, right=0.7):
    """(n,) true and predicted classes."""
    truth = generator.choice(3, n, p=[0.6, 0.2, 0.2])
    return truth, np.where(generator.random(n) < right, truth, generator.integers(0, 3, n))


@pytest.mark.parametrize(("method", "theirs"), [("percentile", "percentile"), ("bca", "BCa"), ("basic", "basic")])
def test_intervals_are_scipys(method, theirs):
    values = np.random.default_rng(0).exponential(size=80)
    ours = Bootstrap(with_ones(values), 20_000).interval(mean, method)
    reference = stats.bootstrap((values,), np.mean, n_resamples=20_000, method=theirs, rng=np.random.default_rng(1))
    assert ours == pytest.approx(tuple(reference.confidence_interval), abs=0.012)


def test_paired_interval_is_that_of_the_differences():
    generator = np.random.default_rng(0)
    first = generator.normal(size=150)
    second = first + generator.normal(0.1, 0.2, size=150)
    both = Bootstrap(np.concatenate([with_ones(second), with_ones(first)], axis=1), 20_000)
    ours = both.interval(beside(mean, slice(0, 2), slice(2, 4)), "percentile")
    reference = stats.bootstrap((second - first,), np.mean, n_resamples=20_000, method="percentile")
    assert ours == pytest.approx(tuple(reference.confidence_interval), abs=0.004)
    assert both.probability(beside(mean, slice(0, 2), slice(2, 4))) > 0.999


def test_counts_and_rows_are_drawn_alike():
    """The sums of few different rows come from multinomial counts, others from drawn rows."""
    generator = np.random.default_rng(0)
    truth, predicted = posts(generator, 2000)
    cells = np.eye(9)[3 * truth + predicted]
    counted = resampled(cells, 4000, np.random.default_rng(1))
    drawn = resampled(cells + 0.5, 4000, np.random.default_rng(2)) - 1000
    assert (counted.sum(1) == 2000).all()
    assert counted.mean(0) == pytest.approx(drawn.mean(0), rel=0.02, abs=1)
    assert np.cov(counted.T) == pytest.approx(np.cov(drawn.T), rel=0.1, abs=8)


def test_macro_f1_of_seven_thousand_posts_is_sklearns_and_quick():
    truth, predicted = posts(np.random.default_rng(0), 7000)
    began = time.process_time()
    drawn = Bootstrap(np.eye(9)[3 * truth + predicted])
    low, high = drawn.interval(macro_f1)
    print(f"{time.process_time() - began:.2f} s")
    expected = f1_score(truth, predicted, average="macro")
    assert drawn.value(macro_f1) == pytest.approx(expected) and low < expected < high
    generator, slow = np.random.default_rng(3), []
    for _ in range(200):
        chosen = generator.integers(0, 7000, 7000)
        slow.append(f1_score(truth[chosen], predicted[chosen], average="macro"))
    assert drawn.deviation(macro_f1) == pytest.approx(np.std(slow), rel=0.2)


def test_intervals_hold_what_they_promise():
    """Of 400 samples, the interval holds the truth in about 95 of 100."""
    generator, kept = np.random.default_rng(0), {"mean": 0, "f1": 0}
    truth, predicted = posts(generator, 400_000)
    real = float(macro_f1(np.eye(9)[3 * truth + predicted].sum(0)))
    for seed in range(400):
        values = generator.exponential(size=100)
        low, high = Bootstrap(with_ones(values), 600, seed).interval(mean)
        kept["mean"] += low <= 1 <= high
        truth, predicted = posts(generator, 600)
        low, high = Bootstrap(np.eye(9)[3 * truth + predicted], 600, seed).interval(macro_f1)
        kept["f1"] += low <= real <= high
    assert 0.91 <= kept["mean"] / 400 <= 0.98 and 0.91 <= kept["f1"] / 400 <= 0.98


def test_units_are_users_not_their_posts():
    """Ten equal posts of a user say no more than one."""
    values, user = np.repeat(np.random.default_rng(0).normal(size=50), 10), np.repeat(np.arange(50), 10)
    wrong, right = Bootstrap(with_ones(values)), Bootstrap(by_unit(with_ones(values), user))
    assert right.columns.shape == (50, 2) and right.value(mean) == pytest.approx(wrong.value(mean))
    assert right.deviation(mean) / wrong.deviation(mean) == pytest.approx(np.sqrt(10), rel=0.1)


def test_the_interval_of_a_share_is_scipys():
    hits, units = np.array([0, 5, 10, 3]), np.array([10, 10, 10, 400])
    for low, high, k, n in zip(*wilson(hits, units), hits, units, strict=True):
        theirs = stats.binomtest(int(k), int(n)).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-4)
    assert [float(bound) for bound in wilson(0, 0)] == pytest.approx([0, 1])


def test_mcnemar_is_the_binomial_test():
    generator = np.random.default_rng(0)
    for n in (12, 500, 6000):
        first, second = generator.random(n) < 0.7, generator.random(n) < 0.73
        b, c = int((first & ~second).sum()), int((second & ~first).sum())
        assert mcnemar(first, second) == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-6)
    assert mcnemar(first, first) == 1


@pytest.mark.parametrize("n", [9, 60])
def test_permutation_is_scipys(n):
    """Every throw of 9 coins; of 60, some."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.2, 1, n), generator.normal(0, 1, n)
    ours = permutation(with_ones(first), with_ones(second), mean, draws=20_000)
    reference = stats.permutation_test(
        (first, second),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert ours == pytest.approx(reference.pvalue, abs=1e-9 if n == 9 else 0.015)


def test_a_margin_is_added_to_what_must_be_thrown():
    generator = np.random.default_rng(0)
    first, second = generator.normal(0, 1, 9), generator.normal(0.3, 1, 9)
    gain = first - second
    thrown = np.array([gain @ signs for signs in product((1, -1), repeat=9)]) / 9
    for margin in (0.0, 0.2, 1.0):
        expected = (thrown >= gain.mean() + margin - 1e-12).mean()
        assert permutation(with_ones(first), with_ones(second), mean, margin) == pytest.approx(expected)


@pytest.mark.parametrize("n", [20, 200])
def test_of_systems_that_are_worse_by_the_margin_few_are_taken_for_better(n):
    generator, taken = np.random.default_rng(0), 0
    for _ in range(400):
        alike = generator.normal(0, 1, n)
        first, second = alike + generator.normal(-0.1, 0.3, n), alike + generator.normal(0, 0.3, n)
        taken += permutation(with_ones(first), with_ones(second), mean, 0.1, draws=400) <= 0.05
    assert 8 <= taken <= 32  # 20 are expected; a standard error is 4.4


def test_holm_is_the_closed_bonferroni_test():
    """A hypothesis is rejected where every set of hypotheses that holds it is, by Bonferroni."""
    values = [0.012, 0.0004, 0.2, 0.03, 0.009]
    for i, found in enumerate(holm(values)):
        sets = [s for size in range(1, 6) for s in combinations(range(5), size) if i in s]
        assert found == pytest.approx(max(min(1, len(s) * min(values[j] for j in s)) for s in sets))
    assert holm([]) == []


def test_equal_systems_are_a_coins_throw():
    both = Bootstrap(np.tile(with_ones(np.random.default_rng(0).normal(size=30)), 2))
    assert both.probability(beside(mean, slice(0, 2), slice(2, 4))) == 0.5
    with pytest.raises(ValueError, match="no units"):
        Bootstrap(np.zeros((0, 2)))
