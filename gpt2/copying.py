"""How much of a text is copied: the longest run of its words that a known text has too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2.search import words

OTHER = -1
"""Stands between two known texts."""


class Known:
    """Texts in which runs of words are looked for. Memory is 8 bytes per word."""

    def __init__(self, texts: Sequence[str]):
        self.ids: dict[str, int] = {}
        flat: list[int] = []
        for text in texts:
            flat.extend(self.ids.setdefault(word, len(self.ids)) for word in words(text))
            flat.append(OTHER)
        self.flat = np.array(flat, dtype=np.int64)

    def longest(self, texts: Sequence[str]) -> np.ndarray:
        """(texts,) int64: of each, how many words in a row are in one of the known texts, at most. Exact.

        Runs grow by a word at a time, in all texts at once: known places whose run no text has are left behind.
        """
        rows = [[self.ids.get(word, OTHER) for word in words(text)] for text in texts]
        found = np.zeros(len(rows), dtype=np.int64)
        asked = np.array([i for row in rows for i in (*row, OTHER)], dtype=np.int64)
        owner = np.repeat(np.arange(len(rows)), [len(row) + 1 for row in rows])
        at = np.flatnonzero(asked != OTHER)  # where a run of the texts begins
        run = np.zeros(len(at), dtype=np.int64)  # which run it is, of those of its length
        places, same = np.flatnonzero(self.flat != OTHER), None  # where a known run begins, and which run it is
        size = len(self.ids) + 1
        for length in range(len(asked)):
            end = at + length
            inside = end < len(asked)
            inside[inside] = asked[end[inside]] != OTHER
            at, run = at[inside], run[inside]
            runs, run = np.unique(run * size + asked[at + length], return_inverse=True)
            ahead = places + length
            places = places[ahead < len(self.flat)]
            same = np.zeros(len(places), dtype=np.int64) if same is None else same[ahead < len(self.flat)]
            words_ahead = self.flat[places + length]
            wanted = np.where(words_ahead == OTHER, -1, same * size + words_ahead)
            same = np.searchsorted(runs, wanted)
            both = (same < len(runs)) & (wanted >= 0)
            both[both] = runs[same[both]] == wanted[both]
            places, same = places[both], same[both]
            shared = np.zeros(len(runs), dtype=bool)
            shared[same] = True
            at, run = at[shared[run]], run[shared[run]]
            if not len(at):
                break
            found[owner[at]] = length + 1
        return found
