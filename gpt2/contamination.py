"""How much of an evaluation set the training text gives away: n-grams that both have, and near-duplicates.

As GPT-3 was examined (Brown et al. 2020, appendix C): a text is contaminated where 13 of its words, in a row, are in
the training text; of one with 8 to 12 words, all of them. Besides, a text is contaminated where a whole training
text is nearly the same. Words are those of `gpt2.duplicates`: case, links, names, numbers and punctuation don't count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from gpt2.duplicates import LIKE, bands, jaccard, minhash, words

WORDS, LEAST = 13, 8
"""Words in a row that both have; a shorter text is looked for as a whole, down to the least."""
SAME_WORDS = 0.8
"""Jaccard similarity of two texts' words, whatever their order, from which they are nearly the same."""
FEW = 20
"""Words of a text that is compared by words; a longer one is by pairs of words, of which fewer are alike by chance."""
GRAM, NEAR = "n-gram", "near-duplicate"
EXCERPT = 200
FACTORS = np.random.default_rng(1).integers(2**63, 2**64, WORDS, dtype=np.uint64) | np.uint64(1)
SHIFT = np.uint64(42)


class Hit(NamedTuple):
    """A text of the evaluation set that the training text has."""

    unit: int
    """Its number in the set."""
    how: str
    """`GRAM` or `NEAR`."""
    found: str
    """The words that both have, or the beginning of the training text that is nearly the same."""


class Index:
    """The texts of an evaluation set, to be looked for in training text that passes by: memory is the set's."""

    def __init__(self, texts: Sequence[str]):
        rows = [words(text) for text in texts]
        self.ids = {w: i for i, w in enumerate(dict.fromkeys(w for row in rows for w in row), start=1)}
        self.values = np.random.default_rng(0).integers(1, 2**64, len(self.ids) + 1, dtype=np.uint64)
        self.values[0] = 0  # a word that the set does not have
        flat = Flat(rows, self.ids, self.values)
        length = np.array([len(row) for row in rows], dtype=int)
        self.grams: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for n, at, marks in flat.windows():
            unit = np.searchsorted(flat.starts, at, side="right") - 1
            mine = length[unit] >= n if n == WORDS else length[unit] == n
            if mine.any():
                order = np.argsort(marks[mine], kind="stable")
                maybe = np.zeros(2**22, dtype=bool)  # most of the others are told apart by 22 bits
                maybe[marks[mine] >> SHIFT] = True
                self.grams[n] = marks[mine][order], unit[mine][order], maybe
        few = [0 < n <= FEW for n in length]
        many = [n > FEW for n in length]
        self.kinds = [Kind(flat, np.flatnonzero(few), 1, SAME_WORDS), Kind(flat, np.flatnonzero(many), 2, LIKE)]

    def search(self, texts: Sequence[str]) -> list[Hit]:
        """What the training texts have of the set: of each unit one hit of each kind at most."""
        flat = Flat([words(text) for text in texts], self.ids, self.values)
        found: dict[tuple[int, str], Hit] = {}
        for hit in self._same_words_in_a_row(flat):
            found.setdefault(hit[:2], hit)
        for unit, i in (pair for kind in self.kinds for pair in kind.nearly_same(flat)):
            found.setdefault((unit, NEAR), Hit(unit, NEAR, texts[i][:EXCERPT]))
        return list(found.values())

    def _same_words_in_a_row(self, flat: Flat) -> Iterator[Hit]:
        for n, at, marks in flat.windows():
            if n not in self.grams:
                continue
            mine, unit, maybe = self.grams[n]
            inside = maybe[marks >> SHIFT]
            marks, first = np.unique(marks[inside], return_index=True)
            low, high = (np.searchsorted(mine, marks, side) for side in ("left", "right"))
            for k in np.flatnonzero(high > low):
                told = flat.told(int(at[inside][first[k]]), n)
                for i in np.unique(unit[low[k] : high[k]]):
                    yield Hit(int(i), GRAM, told)


class Flat:
    """Texts' words, one text after another, as values: random ones for the words of a set, 0 for others."""

    def __init__(self, rows: Sequence[Sequence[str]], ids: Mapping[str, int], values: np.ndarray):
        self.rows = rows
        numbers: list[int] = []
        for row in rows:
            numbers.extend(map(ids.get, row, repeat(0)))  # type: ignore[arg-type]
            numbers.append(0)
        self.values = values[np.array(numbers, dtype=np.int64)]
        self.starts = np.cumsum([0, *(len(row) + 1 for row in rows)])[:-1]

    def windows(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(n, where n words of the set in a row start, the hash of these) for each n from `LEAST` to `WORDS`.

        Hashes are sums of random 64-bit values with random factors: that two of 10 million and 1 million are equal by
        chance is one in two million.
        """
        values = self.values
        gaps, places = np.flatnonzero(values == 0), np.arange(len(values))
        run = gaps[np.searchsorted(gaps, places)] - places if len(values) else places
        marks = np.zeros(len(values), dtype=np.uint64)
        for i, factor in enumerate(FACTORS):
            marks[: max(0, len(values) - i)] += values[i:] * factor
            if i + 1 >= LEAST:
                at = np.flatnonzero(run > i)
                yield i + 1, at, marks[at]

    def told(self, place: int, n: int) -> str:
        """The n words at a place."""
        row = int(np.searchsorted(self.starts, place, side="right")) - 1
        return " ".join(self.rows[row][place - self.starts[row] :][:n])

    def signatures(self, rows: Sequence[int], n: int) -> np.ndarray:
        """MinHash of rows' words (n = 1) or pairs of words (n = 2)."""
        found = []
        for i in rows:
            own = self.values[self.starts[i] : self.starts[i] + len(self.rows[i])]
            if n == 2:
                own = np.where((own[:-1] > 0) & (own[1:] > 0), own[:-1] * FACTORS[0] + own[1:] * FACTORS[1], 0)
            found.append(own[own > 0])
        return minhash(found)


class Kind:
    """Texts of a set that are compared by their n-grams: its words, or pairs of them."""

    def __init__(self, flat: Flat, units: np.ndarray, n: int, least: float):
        self.n, self.least = n, least
        lengths = [len(flat.rows[i]) for i in units] or [0]
        self.shortest, self.longest = min(lengths) / 2, max(lengths) * 2
        """Words of a text that may be nearly the same: one with more is the same words again and again."""
        self.sets = {int(i): grams(flat.rows[i], n) for i in units}
        self.buckets: list[dict[bytes, list[int]]] = []
        for part in bands(flat.signatures(units, n)):
            bucket: dict[bytes, list[int]] = defaultdict(list)
            for i, row in zip(units, part, strict=True):
                bucket[row.tobytes()].append(int(i))
            self.buckets.append(bucket)

    def nearly_same(self, flat: Flat) -> Iterator[tuple[int, int]]:
        """(text of the set, row) with a Jaccard similarity of `least` or more."""
        chosen = [i for i, row in enumerate(flat.rows) if self.shortest <= len(row) <= self.longest]
        near: dict[int, set[int]] = defaultdict(set)
        for bucket, part in zip(self.buckets, bands(flat.signatures(chosen, self.n)), strict=True):
            for i, row in zip(chosen, part, strict=True):
                near[i].update(bucket.get(row.tobytes(), ()))
        for i, units in near.items():
            own = grams(flat.rows[i], self.n)
            yield from ((unit, i) for unit in sorted(units) if jaccard(self.sets[unit], own) >= self.least)


def grams(row: Sequence[str], n: int) -> frozenset:
    return frozenset(zip(*(row[i:] for i in range(n)), strict=False))
