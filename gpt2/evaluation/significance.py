"""Statistical significance: bootstrap intervals, paired comparisons, exact tests, correction for multiple tests.

Every metric here is a function of sums over independent units (posts, users, documents). A confusion matrix is a sum of
one-hot rows, NDCG a ratio of summed gains and counts, bits per byte a ratio of summed bits and bytes. So resampling
units means resampling sums, and a metric is computed for all draws at once. Systems evaluated on the same units are
columns of one array, so their draws are paired. (`scipy.stats.bootstrap` and `permutation_test` draw the units and call
the metric for each draw.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np

Metric = Callable[[np.ndarray], np.ndarray]
"""Maps (..., k) sums to (...) values."""
Method = Literal["percentile", "bca", "basic"]

DRAWS, LEVEL = 2000, 0.95
CELLS = 2_000_000
"""Units drawn at a time, which bounds memory."""
NORMAL = NormalDist()


class Bootstrap:
    """Bootstrap of the sums of (n, k) columns: n units drawn with replacement, `draws` times (Efron and Tibshirani
    1993)."""

    def __init__(self, columns: np.ndarray, draws: int = DRAWS, seed: int = 0):
        if not len(columns):
            raise ValueError("there are no units to draw from; give one row for each post, user or document")
        self.columns = np.asarray(columns, dtype=float)
        self.total = self.columns.sum(0)
        self.sums = resampled(self.columns, draws, np.random.default_rng(seed))

    @cached_property
    def left_out(self) -> np.ndarray:
        """Return (n, k) leave-one-out sums."""
        return self.total - self.columns

    def value(self, metric: Metric) -> float:
        """Return the metric of the original units."""
        return float(metric(self.total))

    def deviation(self, metric: Metric) -> float:
        """Return the bootstrap standard error of the metric."""
        return float(metric(self.sums).std(ddof=1))

    def probability(self, metric: Metric, above: float = 0.0) -> float:
        """Return the share of draws in which the metric is above a value; ties count half."""
        drawn = metric(self.sums)
        return float((drawn > above).mean() + (drawn == above).mean() / 2)

    def interval(self, metric: Metric, method: Method = "bca", level: float = LEVEL) -> tuple[float, float]:
        """Return (low, high), the bootstrap interval of the metric.

        `bca` corrects for bias and skew (Efron 1987). `basic` mirrors the draws at the value: for metrics that
        resampling inflates, such as a calibration error.
        """
        drawn, tail = np.sort(metric(self.sums)), (1 - level) / 2
        if method == "basic":
            low, high = np.quantile(drawn, [tail, 1 - tail])
            return 2 * self.value(metric) - float(high), 2 * self.value(metric) - float(low)
        tails = self._bca(metric, drawn, tail) if method == "bca" else (tail, 1 - tail)
        low, high = np.quantile(drawn, tails)
        return float(low), float(high)

    def _bca(self, metric: Metric, drawn: np.ndarray, tail: float) -> tuple[float, float]:
        """Return the BCa quantiles; those of `percentile` if all draws lie on one side of the value."""
        value = self.value(metric)
        share = float((drawn < value).mean() + (drawn == value).mean() / 2)
        if not 0 < share < 1:
            return tail, 1 - tail
        bias, skew = NORMAL.inv_cdf(share), self._acceleration(metric)

        def corrected(z: float) -> float:
            return NORMAL.cdf(bias + (bias + z) / (1 - skew * (bias + z)))

        return corrected(NORMAL.inv_cdf(tail)), corrected(NORMAL.inv_cdf(1 - tail))

    def _acceleration(self, metric: Metric) -> float:
        """Return the acceleration of BCa, from the leave-one-out values."""
        if len(self.columns) > 50_000:  # it falls with 1 / sqrt(n)
            return 0.0
        without = metric(self.left_out)
        far = without.mean() - without
        spread = float((far**2).sum())
        return float((far**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def resampled(columns: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Return (draws, k) sums of n rows drawn with replacement from the n rows of (n, k) columns.

    If few rows are distinct, as in a confusion matrix, their counts are drawn from a multinomial distribution.
    """
    n = len(columns)
    if columns.shape[1] <= 64 and not (columns % 1).any():
        rows, counts = np.unique(columns, axis=0, return_counts=True)
        if len(rows) < n / 4:
            return generator.multinomial(n, counts / n, size=draws) @ rows
    out = np.empty((draws, columns.shape[1]))
    step = max(1, CELLS // n)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        drawn = generator.integers(0, n, (size, n), dtype=np.int32) + np.arange(size, dtype=np.int64)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        out[start : start + size] = counts.astype(float) @ columns
    return out


def beside(metric: Metric, first: slice, second: slice) -> Metric:
    """Return the metric that is the first system's value minus the second's, given the columns of each."""
    return lambda sums: metric(sums[..., first]) - metric(sums[..., second])


def by_unit(columns: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Return (units, k) sums of the (n, k) rows of each unit."""
    _, which = np.unique(unit, return_inverse=True)
    return np.stack([np.bincount(which.ravel(), weights=column) for column in columns.T], axis=1)


def wilson(hits: np.ndarray | int, units: np.ndarray | int, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), the 95 % interval of a share (Wilson 1927); (0, 1) if there are no units.

    `scipy.stats.binomtest` computes it for one integer count at a time and rejects zero units.
    """
    n = np.maximum(np.asarray(units, float), 1e-9)
    p = np.asarray(hits, float) / n
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return np.clip((centre - half) / scale, 0, 1), np.clip((centre + half) / scale, 0, 1)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947) for two systems' (n,) correctness on equal units."""
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def permutation(
    first: np.ndarray, second: np.ndarray, metric: Metric, margin: float = 0.0, draws: int = DRAWS, seed: int = 0
) -> float:
    """Return the one-sided p-value of a paired permutation test (Fisher 1935; Good 2005).

    The null hypothesis is that the first system is no better than the second minus `margin`. Each permutation swaps the
    systems' (n, k) rows at random units. All permutations are used if they are few, else `draws` random ones.
    """
    middle, half = (first + second).sum(0) / 2, (first - second) / 2
    observed = float(metric(middle + half.sum(0)) - metric(middle - half.sum(0))) + margin
    n, whole = len(half), 2.0 ** len(half) <= draws
    if whole:
        signs = np.array(list(product((1.0, -1.0), repeat=n)))
    else:
        signs = np.random.default_rng(seed).choice((1.0, -1.0), (draws, n))
    moved = signs @ half
    thrown = metric(middle + moved) - metric(middle - moved)
    ahead = int((thrown >= observed - 1e-12).sum())
    return ahead / len(signs) if whole else (ahead + 1) / (draws + 1)


def holm(values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for the family-wise error rate (Holm 1979).

    SciPy only adjusts for the false discovery rate.
    """
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(values, dtype=float)[order] * factors))
    out = np.empty(len(values))
    out[order] = adjusted
    return out.tolist()
