"""Contamination of an evaluation set by the training text: the search for it, and its part of a report.

The criterion is that of GPT-3 (Brown et al. 2020, appendix C): 13 consecutive words also occur in the training text.
A text of 8 to 12 words must occur as a whole. A text is also contaminated if a whole training text is a near-duplicate.
Words are those of `gpt2.data.near_duplicates`: case, links, names, numbers and punctuation don't count. In scripts
without spaces three characters are as long as two words: 20 in a row must occur, or all of a text of 12 to 19.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import pairwise, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2.data.near_duplicates import LIKE, bands, jaccard, minhash, words
from gpt2.data.text import is_character, joined, mostly_characters
from gpt2.evaluation.significance import wilson

WORDS, LEAST = 13, 8
"""Length of a shared n-gram in words. A shorter text is searched for as a whole, down to `LEAST` words."""
WORD, CHARACTER = 3, 2
"""Lengths of a word, and of a character of a script without spaces. On Chinese hotel reviews 13 characters in a row are
mostly phrases that many people use; 20 are copies."""
MOST = -(-WORDS * WORD // CHARACTER)
FEW = 20
"""Texts of at most this many words are compared by words and word order, since one swap changes three word pairs.
Longer texts are compared by word pairs, as in `gpt2.data.near_duplicates`."""
SAME_WORDS = 0.8
"""Threshold for near-duplicate short texts: Jaccard similarity of words and Ratcliff-Obershelp similarity of order."""
GRAM, NEAR = "n-gram", "near-duplicate"
EXCERPT = 200
FACTORS = np.random.default_rng(1).integers(2**63, 2**64, MOST, dtype=np.uint64) | np.uint64(1)
SHIFT = np.uint64(42)
FILE = "contamination.json"
METRIC = "contamination"
CORPUS, OTHERS = "the pretraining text", "the task's other examples"
HOW = {GRAM: "13 words in a row (of 8 to 12, all)", NEAR: "nearly the same text"}
UNSPACED = "Where words are not separated, it is 20 characters in a row (of 12 to 19, all)."
SHOWN = 10


class Hit(NamedTuple):
    """A text of the evaluation set that occurs in the training text."""

    unit: int
    """Index of the text in the evaluation set."""
    how: str
    """`GRAM` or `NEAR`."""
    found: str
    """The shared words, or the beginning of the near-duplicate training text."""


class Index:
    """Search index of an evaluation set for streamed training text; memory grows with the evaluation set alone."""

    def __init__(self, texts: Sequence[str]):
        rows = [words(text) for text in texts]
        self.ids = {w: i for i, w in enumerate(dict.fromkeys(w for row in rows for w in row), start=1)}
        self.values = np.random.default_rng(0).integers(1, 2**64, len(self.ids) + 1, dtype=np.uint64)
        self.values[0] = 0  # words outside the evaluation set
        flat = Flat(rows, self.ids, self.values)
        length = np.array([len(row) for row in rows], dtype=int)
        size = np.array([0, *(CHARACTER if is_character(word) else WORD for word in self.ids)])
        before = np.cumsum([0, *size[flat.numbers]])
        enough = np.searchsorted(before, before[:-1] + WORDS * WORD) - np.arange(len(flat.numbers))
        own = before[flat.starts + length] - before[flat.starts]
        whole = (own >= LEAST * WORD) & (own < WORDS * WORD)
        self.grams: dict[int, Lookup] = {}
        for n, at, marks in flat.windows(MOST):
            unit = flat.row(at)
            mine = (enough[at] == n) | (whole[unit] & (length[unit] == n))
            if mine.any():
                self.grams[n] = Lookup(marks[mine], unit[mine])
        few, many = (length > 0) & (length <= FEW), length > FEW
        self.kinds = [Kind(flat, np.flatnonzero(few), 1), Kind(flat, np.flatnonzero(many), 2)]

    def search(self, texts: Sequence[str]) -> list[Hit]:
        """Return the hits of the evaluation set in these training texts, at most one per text and kind."""
        flat = Flat([words(text) for text in texts], self.ids, self.values)
        hits: dict[tuple[int, str], Hit] = {}
        for n, at, marks in flat.windows(max(self.grams, default=0)):
            if n in self.grams:
                for k, unit in self.grams[n].find(marks):
                    if (unit, GRAM) not in hits:
                        hits[unit, GRAM] = Hit(unit, GRAM, flat.words_at(at[k], n))
        for unit, i in (pair for kind in self.kinds for pair in kind.nearly_same(flat)):
            hits.setdefault((unit, NEAR), Hit(unit, NEAR, texts[i][:EXCERPT]))
        return list(hits.values())


class Lookup:
    """Looks up the units that have a given hash (uint64)."""

    def __init__(self, marks: np.ndarray, units: np.ndarray):
        order = np.argsort(marks, kind="stable")
        self.marks, self.units = marks[order], units[order]
        self.maybe = np.zeros(2**22, dtype=bool)  # 22 bits rule out most other hashes
        self.maybe[marks >> SHIFT] = True

    def find(self, marks: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (index into `marks`, unit that has this hash)."""
        inside = np.flatnonzero(self.maybe[marks >> SHIFT])
        low, high = (np.searchsorted(self.marks, marks[inside], side) for side in ("left", "right"))
        for k in np.flatnonzero(high > low):
            yield from ((int(inside[k]), int(unit)) for unit in self.units[low[k] : high[k]])


class Flat:
    """The words of concatenated texts as random 64-bit values; words outside the evaluation set are 0."""

    def __init__(self, rows: Sequence[Sequence[str]], ids: Mapping[str, int], values: np.ndarray):
        self.rows = rows
        numbers: list[int] = []
        for row in rows:
            numbers.extend(map(ids.get, row, repeat(0)))  # type: ignore[arg-type]
            numbers.append(0)
        self.numbers = np.array(numbers, dtype=np.int64)
        self.values = values[self.numbers]
        self.starts = np.cumsum([0, *(len(row) + 1 for row in rows)])[:-1]

    def windows(self, most: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield (n, starts of runs of n words of the set, their hashes) for each n from `LEAST` to `most`.

        A hash is a sum of random 64-bit values with random factors. Between 10 million and 1 million hashes a chance
        collision has a probability of one in two million.
        """
        values = self.values
        gaps, places = np.flatnonzero(values == 0), np.arange(len(values))
        run = gaps[np.searchsorted(gaps, places)] - places if len(values) else places
        marks = np.zeros(len(values), dtype=np.uint64)
        for i, factor in enumerate(FACTORS[:most]):
            marks[: max(0, len(values) - i)] += values[i:] * factor
            if i + 1 >= LEAST:
                at = np.flatnonzero(run > i)
                yield i + 1, at, marks[at]

    def row(self, places: Any) -> Any:
        """Return the index of the text that each place belongs to."""
        return np.searchsorted(self.starts, places, side="right") - 1

    def words_at(self, place: int, n: int) -> str:
        """Return the n words that start at a place."""
        row = int(self.row(place))
        return joined(self.rows[row][place - self.starts[row] :][:n])

    def bands(self, rows: Sequence[int] | np.ndarray, n: int) -> list[np.ndarray]:
        """Return (rows,) hashes of each MinHash band of the rows' words (n = 1) or word pairs (n = 2)."""
        shingles = []
        for i in rows:
            own = self.values[self.starts[i] : self.starts[i] + len(self.rows[i])]
            if n == 2:
                own = np.where((own[:-1] > 0) & (own[1:] > 0), own[:-1] * FACTORS[0] + own[1:] * FACTORS[1], 0)
            shingles.append(own[own > 0])
        return [(part * FACTORS[: part.shape[1]]).sum(1) for part in bands(minhash(shingles))]


class Kind:
    """Texts of the evaluation set that are compared by words (n = 1) or by word pairs (n = 2)."""

    def __init__(self, flat: Flat, units: np.ndarray, n: int):
        self.n, self.rows = n, flat.rows
        lengths = [len(flat.rows[i]) for i in units] or [0]
        self.shortest, self.longest = min(lengths) / 2, max(lengths) * 2
        """Length limits (words) of a near-duplicate: a longer one would only repeat the same words."""
        self.bands = [Lookup(marks, units) for marks in flat.bands(units, n)]

    def nearly_same(self, flat: Flat) -> Iterator[tuple[int, int]]:
        """Yield (text of the set, row of `flat`) for each pair of near-duplicates."""
        chosen = [i for i, row in enumerate(flat.rows) if self.shortest <= len(row) <= self.longest]
        marks = flat.bands(chosen, self.n)
        pairs = {(chosen[k], unit) for own, part in zip(self.bands, marks, strict=True) for k, unit in own.find(part)}
        for i, unit in sorted(pairs):
            if (alike_in_words if self.n == 1 else alike_in_pairs)(self.rows[unit], flat.rows[i]):
                yield unit, i


def alike_in_words(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two short texts are near-duplicates by their words and their order."""
    same = jaccard(frozenset(one), frozenset(other)) >= SAME_WORDS
    return same and SequenceMatcher(None, one, other, autojunk=False).ratio() >= SAME_WORDS


def alike_in_pairs(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two long texts are near-duplicates by their word pairs."""
    return jaccard(frozenset(pairwise(one)), frozenset(pairwise(other))) >= LIKE


def summary(
    ids: Sequence[str | int], texts: Sequence[str], hits: Iterable[tuple[str, Hit]], unit: str, total: int
) -> dict[str, Any]:
    """Return the contamination figures of the texts that were searched for, out of `total`.

    They are the contaminated `share`, the ids of these texts as `contaminated`, counts as `by`, and `examples`; and
    `characters`, if most are in scripts without spaces. `hits` are (source, hit) pairs in any order.
    """
    hits_by_key = {(hit.unit, source, hit.how): hit for source, hit in sorted(hits, reverse=True)}
    contaminated = sorted({number for number, *_ in hits_by_key})
    by = [
        {"source": source, "how": how, "units": sum(key[1:] == (source, how) for key in hits_by_key)}
        for source in (CORPUS, OTHERS)
        for how in (GRAM, NEAR)
    ]
    first = {number: (source, hit) for (number, source, _), hit in sorted(hits_by_key.items(), reverse=True)}
    examples = [
        {"id": ids[i], "text": texts[i], "source": source, "how": hit.how, "found": hit.found}
        for i, (source, hit) in sorted(first.items())[:SHOWN]
    ]
    return {
        "unit": unit,
        "total": total,
        "units": len(ids),
        "share": len(contaminated) / len(ids) if ids else 0.0,
        "contaminated": [ids[i] for i in contaminated],
        "by": [row for row in by if row["units"]],
        "examples": examples,
        **({"characters": True} if mostly_characters(texts) else {}),
    }


def write(facts: Mapping[str, Any], out: Path) -> None:
    """Write contamination figures to the folder `out` as JSON."""
    (out / FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(folder: Path) -> dict[str, Any]:
    """Return the contamination figures that `write` wrote to a folder."""
    return json.loads((folder / FILE).read_text("utf-8"))


def as_sentence(facts: Mapping[str, Any]) -> str:
    """Return the contamination figures as a sentence."""
    if not facts["units"]:
        return "Contamination: the held-out examples are choices, not texts; none can occur in the training text."
    sample = f" (of {facts['total']:,}, chosen by hash)" if facts["total"] > facts["units"] else ""
    by = ", ".join(f"{row['units']:,} by {HOW[row['how']]} in {row['source']}" for row in facts["by"])
    count = len(facts["contaminated"])
    return (
        f"Contamination: of {facts['units']:,} held-out {facts['unit']}s{sample} the training text has {count:,} "
        f"({facts['share']:.2%}){': ' * bool(by)}{by}.{f' {UNSPACED}' if facts.get('characters') else ''}"
    )


def attached(content: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report's content with the contamination metric, its interval, a remark, examples and ids added.

    The interval is added only if the report has intervals.
    """
    complete = {**content, "remarks": [*content.get("remarks", []), as_sentence(facts)], "contamination": dict(facts)}
    if facts["units"]:
        complete |= {"metrics": {**content["metrics"], METRIC: facts["share"]}}
        if "intervals" in content:
            low, high = wilson(np.array(len(facts["contaminated"])), np.array(facts["units"]))
            mine = {**content["intervals"]["model"], METRIC: [float(low), float(high)]}
            complete["intervals"] = {**content["intervals"], "model": mine}
    if facts["examples"]:
        header = [facts["unit"], "held-out text", "found in", "as", "training text"]
        rows = [
            [short(e["id"], 8), short(e["text"]), e["source"], HOW[e["how"]], short(e["found"])]
            for e in facts["examples"]
        ]
        table = {"header": header, "rows": rows}
        complete["tables"] = {**content.get("tables", {}), "Held-out texts that the training text has": table}
    return complete


def short(text: Any, limit: int = 160) -> str:
    """Return a text cut to `limit` characters."""
    return str(text) if len(str(text)) <= limit else f"{str(text)[:limit]}…"
