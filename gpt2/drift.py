"""Whether what arrives is still like what the model has learned from.

Of each post four numbers: its length in tokens; its surprise, the mean of -log of its tokens' shares in the training
texts (nats); the score, the probability of the watched label; the confidence, the largest probability. Each number's
distribution among the latest posts is compared with that among reference texts by the population stability index
(Siddiqi 2006): sum over bins of (p - q) log(p / q), with the deciles of the reference as bins. Between two samples of n
and m of the same distribution it is about 9 (1/n + 1/m).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

MEASURES = {
    "tokens": "length in tokens",
    "surprise": "how unusual the words are (nats per token)",
    "score": "probability of the watched label",
    "confidence": "confidence of the model",
}
LEAST = 200
"""Posts without which nothing is compared."""


@dataclass(frozen=True)
class Drift:
    """One measure's change."""

    measure: str
    psi: float
    before: float
    """Median in the reference."""
    now: float
    """Median among the latest posts."""
    shares: tuple[tuple[float, float], ...]
    """Of each bin: the reference's share and the latest posts'."""

    def sentence(self) -> str:
        """For people."""
        return (
            f"{MEASURES[self.measure]}: median {self.now:.3g}, in the training data {self.before:.3g} "
            f"(PSI {self.psi:.2f})"
        )


def token_shares(rows: Iterable[Sequence[int]], vocabulary: int) -> np.ndarray:
    """(vocabulary,) shares of the tokens in texts, one added to each count."""
    counts = np.ones(vocabulary)
    for row in rows:
        np.add.at(counts, np.asarray(row, dtype=int), 1)
    return counts / counts.sum()


def measure(rows: Sequence[Sequence[int]], shares: np.ndarray, probabilities: np.ndarray, watched: int) -> pd.DataFrame:
    """The four numbers of each text, from its ids and its (N, classes) probabilities."""
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
    """(index, shares of each bin); bins are the reference's deciles, equal ones joined, half a post added to each."""
    edges = np.unique(np.quantile(reference, np.linspace(0.1, 0.9, 9)))
    counts = [
        np.bincount(np.searchsorted(edges, v, side="right"), minlength=len(edges) + 1) for v in (reference, latest)
    ]
    p, q = ((c + 0.5) / (c.sum() + 0.5 * len(c)) for c in counts)
    return float(((q - p) * np.log(q / p)).sum()), tuple(zip(p.tolist(), q.tolist(), strict=True))


def compare(reference: Mapping[str, np.ndarray] | pd.DataFrame, latest: pd.DataFrame) -> list[Drift]:
    """Each measure of the latest posts beside the reference, the most changed first; [] where there are too few."""
    if len(latest) < LEAST:
        return []
    found = []
    for name in MEASURES:
        before, now = np.asarray(reference[name], float), latest[name].to_numpy(float)
        index, shares = psi(before, now)
        found.append(Drift(name, index, float(np.median(before)), float(np.median(now)), shares))
    return sorted(found, key=lambda d: -d.psi)
