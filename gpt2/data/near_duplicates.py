"""Near-duplicates: texts that differ only in links, names, numbers and a few words."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import pairwise

import numpy as np

from gpt2.data.text import MARKS, is_plain, spaced

NOISE = re.compile(r"https?://\S+|www\.\S+|@\w+|\brt\b|&\w+;")
PLAIN, WORD = re.compile(r"[^\W\d_]+"), re.compile(rf"[^\W\d_]+(?:[{MARKS}]+[^\W\d_]*)*")
SIGNS = ("http", "www.", "@", "&")
SPACES = {c: " " for c in range(128) if not chr(c).isalpha()}
PERMUTATIONS, BANDS = 64, 16
LIKE = 0.7


def words(text: str) -> list[str]:
    """Return the lower-case words of a text (`gpt2.data.text`), without links, handles, punctuation and digits."""
    text = text.lower()
    if text.isascii() and not any(mark in text for mark in SIGNS):  # the same result, three times as fast
        tokens = text.translate(SPACES).split()
        if "rt" not in tokens:
            return tokens
    text = NOISE.sub(" ", text)
    return PLAIN.findall(text) if is_plain(text) else WORD.findall(spaced(text))


def shingles(text: str) -> frozenset[int]:
    """Return hashes of the text's word pairs, or of its words if there are fewer than three."""
    w = words(text)
    grams = [" ".join(pair) for pair in pairwise(w)] if len(w) > 2 else w
    return frozenset(int.from_bytes(blake2b(g.encode(), digest_size=8).digest(), "little") for g in grams)


def groups(texts: Sequence[str]) -> np.ndarray:
    """Return the group of each text, (N,): the index of the group's first member.

    Texts whose word pairs have a Jaccard similarity of at least 0.7 are joined, transitively. Candidate pairs come from
    MinHash with banding (Broder 1997; Leskovec et al., chapter 3). With 16 bands of 4 rows a pair at 0.7 is missed with
    probability 0.01.
    """
    sets = [shingles(t) for t in texts]
    signatures = minhash([np.fromiter(s, dtype=np.uint64) for s in sets])
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for part in bands(signatures):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for i, row in enumerate(part):
            if sets[i]:
                buckets[row.tobytes()].append(i)
        for members in buckets.values():
            seen: list[int] = []  # compare with one of each distinct text: a member may be similar to any
            for other in members:
                like = [k for k in seen if root(k) != root(other) and jaccard(sets[k], sets[other]) >= LIKE]
                for k in like:
                    a, b = root(k), root(other)
                    parent[max(a, b)] = min(a, b)
                if not any(sets[k] == sets[other] for k in seen):
                    seen.append(other)
    return np.array([root(i) for i in range(len(texts))])


def bands(signatures: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the bands of signatures, each (N, PERMUTATIONS / BANDS): similar texts agree in at least one."""
    rows = PERMUTATIONS // BANDS
    for band in range(BANDS):
        yield np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])


def minhash(sets: Sequence[np.ndarray]) -> np.ndarray:
    """Return the MinHash signatures, (N, PERMUTATIONS), of sets of uint64; repeated values do no harm.

    Rows of empty sets are all ones.
    """
    generator = np.random.default_rng(0)
    a = generator.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    b = generator.integers(0, 2**63, PERMUTATIONS, dtype=np.uint64)
    out = np.full((len(sets), PERMUTATIONS), np.iinfo(np.uint64).max, dtype=np.uint64)
    for i, values in enumerate(sets):
        if len(values):
            out[i] = (values[:, None] * a + b).min(0)
    return out


def jaccard(a: frozenset, b: frozenset) -> float:
    """Return the Jaccard similarity, |a & b| / |a or b|; 0 for two empty sets."""
    both = len(a & b)
    return both / (len(a) + len(b) - both) if both else 0.0
