"""When the monitor raises an alert: a topic's negative share surges, or posts drift from the training data.

Drift. Each post has four numbers: its length in tokens; its surprise, the mean of -log of its tokens' shares in the
training texts (nats); the score, the probability of the watched label; the confidence, the largest probability. Each
number's distribution among the latest posts is compared with that among reference texts by the population stability
index (Siddiqi 2006): sum over bins of (p - q) log(p / q), with the deciles of the reference as bins. Between two
samples of n and m of the same distribution it is about 9 (1/n + 1/m).

The surge rule. A window with k negative of n posts is compared with the topic's earlier windows: the `history` last of
them, without the one just before, so that the beginning of a surge does not excuse its going on. They give a share, its
uncertainty, and its variation from window to window beyond chance (the intraclass correlation of a beta-binomial, by
moments, one standard error to the careful side). Under the beta-binomial that follows, the probability of k or more is
the window's p-value. The same is computed for the window together with the one before it.

The window surges if the smaller p-value is below `false_alarms / (2 x windows in a year)`. Its share must also be at
least `min_ratio` times that of the history. A window is not judged if it has fewer than `min_posts` posts, or fewer
than `MIN_HISTORY` earlier windows with posts. Consecutive surging windows are one alert.

Beta-binomial: Skellam 1948. Moment estimator: Kleinman 1973.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import gammaln

MEASURES = {
    "tokens": "length in tokens",
    "surprise": "how unusual the words are (nats per token)",
    "score": "probability of the watched label",
    "confidence": "confidence of the model",
}
LEAST = 200
"""Fewest latest posts for a comparison."""


@dataclass(frozen=True)
class Drift:
    """Change of one measure between the reference and the latest posts."""

    measure: str
    psi: float
    before: float
    """Median in the reference."""
    now: float
    """Median of the latest posts."""
    shares: tuple[tuple[float, float], ...]
    """(share of the reference, share of the latest posts) of each bin."""

    def sentence(self) -> str:
        """Return the change as a sentence."""
        return (
            f"{MEASURES[self.measure]}: median {self.now:.3g}, in the training data {self.before:.3g} "
            f"(PSI {self.psi:.2f})"
        )


def token_shares(rows: Iterable[Sequence[int]], vocabulary: int) -> np.ndarray:
    """Return the (vocabulary,) shares of the tokens in encoded texts, with one added to each count."""
    counts = np.ones(vocabulary)
    for row in rows:
        np.add.at(counts, np.asarray(row, dtype=int), 1)
    return counts / counts.sum()


def measure(rows: Sequence[Sequence[int]], shares: np.ndarray, probabilities: np.ndarray, watched: int) -> pd.DataFrame:
    """Return the four `MEASURES` of each text, from its ids and its (N, classes) probabilities."""
    cost = -np.log(shares)
    return pd.DataFrame(
        {
            "tokens": [float(len(row)) for row in rows],
            "surprise": [float(cost[np.asarray(row, dtype=int)].mean()) if len(row) else 0.0 for row in rows],
            "score": probabilities[:, watched],
            "confidence": probabilities.max(1),
        }
    )


def psi(reference: np.ndarray, latest: np.ndarray) -> tuple[float, tuple[tuple[float, float], ...]]:
    """Return (population stability index, shares of each bin).

    Bins are the reference's deciles, equal ones joined, with half a post added to each count.
    """
    edges = np.unique(np.quantile(reference, np.linspace(0.1, 0.9, 9)))
    counts = [
        np.bincount(np.searchsorted(edges, v, side="right"), minlength=len(edges) + 1) for v in (reference, latest)
    ]
    p, q = ((c + 0.5) / (c.sum() + 0.5 * len(c)) for c in counts)
    return float(((q - p) * np.log(q / p)).sum()), tuple(zip(p.tolist(), q.tolist(), strict=True))


def compare(reference: Mapping[str, np.ndarray] | pd.DataFrame, latest: pd.DataFrame) -> list[Drift]:
    """Return the drift of each measure from the reference, the largest first; [] with fewer than `LEAST` posts."""
    if len(latest) < LEAST:
        return []
    drifts = []
    for name in MEASURES:
        before, now = np.asarray(reference[name], float), latest[name].to_numpy(float)
        index, shares = psi(before, now)
        drifts.append(Drift(name, index, float(np.median(before)), float(np.median(now)), shares))
    return sorted(drifts, key=lambda d: -d.psi)


PER_YEAR = {"hour": 8760, "day": 365}
HISTORY = {"hour": 28 * 24, "day": 56}
"""Length of the history (windows)."""
MIN_HISTORY = {"hour": 48, "day": 14}
"""Fewest earlier windows with posts for a judgement."""


@dataclass(frozen=True)
class Rule:
    """Parameters of the rule for surges (see the module's docstring)."""

    window: str = "hour"
    false_alarms: float = 1.0
    """Upper bound of the expected number of alerts per topic and year by chance alone (union bound)."""
    min_posts: int = 30
    min_ratio: float = 1.25

    @property
    def level(self) -> float:
        """Return the largest p-value of a surge."""
        return self.false_alarms / (2 * PER_YEAR[self.window])


@dataclass(frozen=True)
class Judged:
    """Judgement of each window, (windows,) arrays; NaN if a window was not judged."""

    expected: np.ndarray
    """Share expected from the history."""
    p_value: np.ndarray
    surge: np.ndarray
    """bool"""

    def starts(self) -> np.ndarray:
        """Return the indices of the windows with which an alert begins."""
        return np.flatnonzero(self.surge & ~np.r_[False, self.surge[:-1]])


def judge(negative: np.ndarray, posts: np.ndarray, rule: Rule, usable: np.ndarray | None = None) -> Judged:
    """Judge each window of one topic by the windows before it.

    `negative` and `posts` are (windows,) counts without gaps in the calendar. `usable` marks the windows that may be
    judged or be history: those scored by the same model. Raises `ValueError` for impossible counts.
    """
    k, n = np.asarray(negative, float), np.asarray(posts, float)
    if k.shape != n.shape or k.ndim != 1 or (k < 0).any() or (k > n).any():
        raise ValueError(
            "negative and posts: need equal lengths and 0 <= negative <= posts; pass counts of each window"
        )
    if usable is not None:
        k, n = k * usable, n * usable
    past = History(k, n, HISTORY[rule.window], MIN_HISTORY[rule.window])
    alone = past.p_values(k, n, rule.min_posts)
    both_k, both_n = k + np.r_[0, k[:-1]], n + np.r_[0, n[:-1]]
    both = past.p_values(both_k, both_n, rule.min_posts)
    both = np.where(n > 0, both, np.nan)  # a window without posts is not judged
    p = np.fmin(alone, both)
    ratio = np.where(alone <= np.where(np.isnan(both), 2, both), k / np.maximum(n, 1), both_k / np.maximum(both_n, 1))
    surge = (np.nan_to_num(p, nan=1.0) < rule.level) & (ratio >= rule.min_ratio * past.share)
    return Judged(np.where(past.enough, past.share, np.nan), p, surge)


class History:
    """History of each window: the share before it, and the beta distribution of the share to expect."""

    def __init__(self, k: np.ndarray, n: np.ndarray, length: int, least: int):
        def before(values: np.ndarray) -> np.ndarray:
            """Return the sums over the `length` windows that end before the one just before."""
            total = np.r_[0.0, np.cumsum(values)]
            ends = np.maximum(np.arange(len(values)) - 1, 0)
            return total[ends] - total[np.maximum(ends - length, 0)]

        m, total, hits = before(n > 0), before(n), before(k)
        self.enough = m >= least
        self.share = (hits + 0.5) / (total + 1)
        p, safe = self.share, np.maximum(total, 1)
        spread = before(k * k / np.maximum(n, 1)) - 2 * p * hits + p * p * total  # sum of (k - n p)^2 / n
        excess = spread / (p * (1 - p)) - (m - 1) + np.sqrt(2 * np.maximum(m - 1, 0))
        correlation = np.clip(excess / np.maximum(total - m, 1), 0, 0.5)
        uncertain = (1 / (safe + 1)) + correlation * before(n * n) / safe**2
        both = np.minimum(correlation + uncertain, 0.9)
        self.a, self.b = p * (1 / both - 1), (1 - p) * (1 / both - 1)

    def p_values(self, k: np.ndarray, n: np.ndarray, least: int) -> np.ndarray:
        """Return the (windows,) probabilities of k or more of n; NaN with too few posts or too little history."""
        out = np.full(len(k), np.nan)
        judged = self.enough & (n >= least)
        out[judged] = upper_tail(k[judged], n[judged], self.a[judged], self.b[judged])
        return out


def upper_tail(k: np.ndarray, n: np.ndarray, a: np.ndarray, b: np.ndarray, cells: int = 2_000_000) -> np.ndarray:
    """Return (N,) P(X >= k) for X beta-binomial(n, a, b), summed term by term.

    `scipy.stats.betabinom.sf` is 1 - cdf: at 1e-9 its third digit is wrong, and below 1e-15 all digits are.
    """
    out = np.ones(len(k))
    if not len(k):
        return out
    width = int((n - k).max()) + 1
    rows = max(1, cells // width)
    for start in range(0, len(k), rows):
        part = slice(start, start + rows)
        kk, nn, aa, bb = (v[part, None] for v in (k, n, a, b))
        x = kk + np.arange(width)
        inside = x <= nn
        x = np.where(inside, x, kk)
        log = (
            gammaln(nn + 1) - gammaln(x + 1) - gammaln(nn - x + 1)
            + gammaln(x + aa) + gammaln(nn - x + bb) - gammaln(nn + aa + bb)
            + gammaln(aa + bb) - gammaln(aa) - gammaln(bb)
        )  # fmt: skip
        out[part] = np.minimum((np.exp(log) * inside).sum(1), 1)
    return out
