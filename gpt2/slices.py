"""Parts of a test set that a mean may hide: by length, by class, by topic, by how much is known of a user or item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from gpt2.topics import topics_of

Slices = dict[str, np.ndarray]

WORDS, TOPICS = (5, 10, 20, 40), 8
RARE, RARE_GIVEN = 50, 10
"""Topics of fewer texts are no part: of those that texts name, and of those in a column, where somebody asked for them.
"""


def of_texts(
    texts: Sequence[str], classes: np.ndarray, labels: Sequence[str], topics: Sequence[str | None] | None = None
) -> Slices:
    """By true class, by length in words, and by the most frequent topics: those given, or those that texts name."""
    found: Slices = {f"class: {label}": classes == i for i, label in enumerate(labels)}
    found |= bins("words", np.array([len(text.split()) for text in texts]), WORDS)
    if topics is None:
        each, least = [topics_of(text) for text in texts], RARE
    else:
        each, least = [[topic] if topic else [] for topic in topics], RARE_GIVEN
    counts = Counter(topic for row in each for topic in row)
    frequent = [topic for topic, count in counts.most_common(TOPICS) if count >= least]
    return found | {f"topic: {topic}": np.array([topic in row for row in each]) for topic in frequent}


def bins(name: str, values: np.ndarray, edges: Sequence[int]) -> Slices:
    """The (n,) whole numbers in bins that end at each edge; those that hold none are left out."""
    lower = [None, *edges]
    upper = [*edges, None]
    found: Slices = {}
    for low, high in zip(lower, upper, strict=True):
        inside = np.ones(len(values), dtype=bool)
        if low is not None:
            inside &= values > low
        if high is not None:
            inside &= values <= high
        told = f"over {low:,}" if high is None else f"up to {high:,}" if low is None else f"{low + 1:,} to {high:,}"
        found[f"{name}: {told}"] = inside
    return {name: inside for name, inside in found.items() if inside.any()}


def of_choices(history_lengths: np.ndarray, popularity: np.ndarray) -> Slices:
    """Of users who chose an item: by how many items they had before, and how often the item was chosen in training."""
    cold: Slices = {"item: never seen in training": popularity == 0}
    warm: Mapping[str, np.ndarray] = bins("item chosen", np.where(popularity == 0, 1, popularity), (10, 50, 200))
    known = {name: inside & (popularity > 0) for name, inside in warm.items()}
    return cold | known | bins("history", history_lengths, (20, 50, 100, 200))
