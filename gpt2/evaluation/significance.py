"""How sure a figure is: bootstrap intervals, paired comparisons, exact tests, and the price of asking often.

Every metric here is a function of sums over units that are independent of each other (posts, users, documents): a
confusion matrix is a sum of one-hot rows, NDCG a sum of gains by a sum of ones, bits per byte a sum of bits by a sum of
bytes. So resampling units is resampling sums, and a metric is computed for all draws at once. Systems that answered the
same units are columns side by side: their draws are paired by themselves. (`scipy.stats.bootstrap` and
`permutation_test` draw the units, and call a metric for each draw.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np

Metric = Callable[[np.ndarray], np.ndarray]
"""(..., k) sums to (...) values."""
Method = Literal["percentile", "bca", "basic"]

DRAWS, LEVEL = 2000, 0.95
CELLS = 2_000_000
"""Units drawn at a time, which bounds the memory."""
NORMAL = NormalDist()


class Bootstrap:
    """The sums of (n, k) columns, of n units drawn with replacement, `draws` times (Efron and Tibshirani 1993)."""

    def __init__(self, columns: np.ndarray, draws: int = DRAWS, seed: int = 0):
        if not len(columns):
            raise ValueError("there are no units to draw from; give one row for each post, user or document")
        self.columns = np.asarray(columns, dtype=float)
        self.total = self.columns.sum(0)
        self.sums = resampled(self.columns, draws, np.random.default_rng(seed))

    @cached_property
    def left_out(self) -> np.ndarray:
        """(n, k) sums without each unit."""
        return self.total - self.columns

    def value(self, metric: Metric) -> float:
        """Of the units as they are."""
        return float(metric(self.total))

    def deviation(self, metric: Metric) -> float:
        """The standard error."""
        return float(metric(self.sums).std(ddof=1))

    def probability(self, metric: Metric, above: float = 0.0) -> float:
        """The share of the draws in which the metric is above a value; those that equal it count half."""
        drawn = metric(self.sums)
        return float((drawn > above).mean() + (drawn == above).mean() / 2)

    def interval(self, metric: Metric, method: Method = "bca", level: float = LEVEL) -> tuple[float, float]:
        """`percentile`; `bca`, which corrects for bias and skew (Efron 1987); or `basic`, the draws mirrored at the
        value, for what every resampling inflates, as a calibration error."""
        drawn, tail = np.sort(metric(self.sums)), (1 - level) / 2
        if method == "basic":
            low, high = np.quantile(drawn, [tail, 1 - tail])
            return 2 * self.value(metric) - float(high), 2 * self.value(metric) - float(low)
        tails = self._bca(metric, drawn, tail) if method == "bca" else (tail, 1 - tail)
        low, high = np.quantile(drawn, tails)
        return float(low), float(high)

    def _bca(self, metric: Metric, drawn: np.ndarray, tail: float) -> tuple[float, float]:
        """The quantiles to take; those of `percentile` where all draws are on one side of the value."""
        value = self.value(metric)
        share = float((drawn < value).mean() + (drawn == value).mean() / 2)
        if not 0 < share < 1:
            return tail, 1 - tail
        bias, skew = NORMAL.inv_cdf(share), self._acceleration(metric)

        def corrected(z: float) -> float:
            return NORMAL.cdf(bias + (bias + z) / (1 - skew * (bias + z)))

        return corrected(NORMAL.inv_cdf(tail)), corrected(NORMAL.inv_cdf(1 - tail))

    def _acceleration(self, metric: Metric) -> float:
        if len(self.columns) > 50_000:  # it falls with 1 / sqrt(n)
            return 0.0
        without = metric(self.left_out)
        far = without.mean() - without
        spread = float((far**2).sum())
        return float((far**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0


def resampled(columns: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """(draws, k) sums of n rows, drawn with replacement from the n rows of (n, k) columns.

    Of few different rows, as of a confusion matrix, the counts are drawn at once: they are multinomial.
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
    """How much more the metric is of the first system's columns than of the second's."""
    return lambda sums: metric(sums[..., first]) - metric(sums[..., second])


def by_unit(columns: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Rows added up by their unit: (units, k)."""
    _, which = np.unique(unit, return_inverse=True)
    return np.stack([np.bincount(which.ravel(), weights=column) for column in columns.T], axis=1)


def wilson(hits: np.ndarray | int, units: np.ndarray | int, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) of the share at 95 % (Wilson 1927); 0 and 1 where there are no units.

    `scipy.stats.binomtest` has it for one whole count at a time, and none of no units.
    """
    n = np.maximum(np.asarray(units, float), 1e-9)
    p = np.asarray(hits, float) / n
    centre, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return np.clip((centre - half) / scale, 0, 1), np.clip((centre + half) / scale, 0, 1)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided exact p of two systems, right or wrong at the same units, being right equally often (McNemar 1947)."""
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n = only_first + only_second
    return float(binomtest(only_first, n).pvalue) if n else 1.0


def permutation(
    first: np.ndarray, second: np.ndarray, metric: Metric, margin: float = 0.0, draws: int = DRAWS, seed: int = 0
) -> float:
    """One-sided p of the first system being no better than the second less `margin`: how often it would be ahead by so
    much more than -margin if it were a coin's throw at each unit which of the two (n, k) rows is whose. All throws
    where they are few, else some drawn (Fisher 1935; Good 2005)."""
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
    """The p-values adjusted so that the chance of any false alarm among them is bounded (Holm 1979). SciPy adjusts for
    the false discovery rate alone."""
    order = np.argsort(values, kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(values, dtype=float)[order] * factors))
    out = np.empty(len(values))
    out[order] = adjusted
    return out.tolist()
