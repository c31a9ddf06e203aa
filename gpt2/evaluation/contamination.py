"""Contamination of an evaluation set by the training text: the search for it, and its part of a report.

As GPT-3 was examined (Brown et al. 2020, appendix C): a text is contaminated if 13 of its words, in a row, are in
the training text; a text of 8 to 12 words, if all of them are. A text is also contaminated if a whole training text is
nearly the same. Words are those of `gpt2.data.near_duplicates`: case, links, names, numbers and punctuation don't
count.
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
from gpt2.evaluation.significance import wilson

WORDS, LEAST = 13, 8
"""Words in a row that both have; a shorter text is looked for as a whole, down to the least."""
FEW = 20
"""A text of so many words is compared by words and their order, for a swap changes three pairs of them; a longer one by
pairs of words, as in `gpt2.data.near_duplicates`."""
SAME_WORDS = 0.8
"""The least similarity of short texts: Jaccard's of their words, and Ratcliff's and Obershelp's of their order."""
GRAM, NEAR = "n-gram", "near-duplicate"
EXCERPT = 200
FACTORS = np.random.default_rng(1).integers(2**63, 2**64, WORDS, dtype=np.uint64) | np.uint64(1)
SHIFT = np.uint64(42)
FILE = "contamination.json"
METRIC = "contamination"
CORPUS, OTHERS = "the pretraining text", "the task's other examples"
HOW = {GRAM: "13 words in a row (of 8 to 12, all)", NEAR: "nearly the same text"}
SHOWN = 10


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
        self.grams: dict[int, Lookup] = {}
        for n, at, marks in flat.windows():
            unit = flat.row(at)
            mine = length[unit] >= n if n == WORDS else length[unit] == n
            if mine.any():
                self.grams[n] = Lookup(marks[mine], unit[mine])
        few, many = (length > 0) & (length <= FEW), length > FEW
        self.kinds = [Kind(flat, np.flatnonzero(few), 1), Kind(flat, np.flatnonzero(many), 2)]

    def search(self, texts: Sequence[str]) -> list[Hit]:
        """What the training texts have of the set: of each unit one hit of each kind at most."""
        flat = Flat([words(text) for text in texts], self.ids, self.values)
        found: dict[tuple[int, str], Hit] = {}
        for n, at, marks in flat.windows():
            if n in self.grams:
                for k, unit in self.grams[n].find(marks):
                    if (unit, GRAM) not in found:
                        found[unit, GRAM] = Hit(unit, GRAM, flat.told(at[k], n))
        for unit, i in (pair for kind in self.kinds for pair in kind.nearly_same(flat)):
            found.setdefault((unit, NEAR), Hit(unit, NEAR, texts[i][:EXCERPT]))
        return list(found.values())


class Lookup:
    """Which units have a mark (uint64)."""

    def __init__(self, marks: np.ndarray, units: np.ndarray):
        order = np.argsort(marks, kind="stable")
        self.marks, self.units = marks[order], units[order]
        self.maybe = np.zeros(2**22, dtype=bool)  # 22 bits tell most of the others
        self.maybe[marks >> SHIFT] = True

    def find(self, marks: np.ndarray) -> Iterator[tuple[int, int]]:
        """(number of a mark, unit that has it)."""
        inside = np.flatnonzero(self.maybe[marks >> SHIFT])
        low, high = (np.searchsorted(self.marks, marks[inside], side) for side in ("left", "right"))
        for k in np.flatnonzero(high > low):
            yield from ((int(inside[k]), int(unit)) for unit in self.units[low[k] : high[k]])


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

    def row(self, places: Any) -> Any:
        """Which texts places are in."""
        return np.searchsorted(self.starts, places, side="right") - 1

    def told(self, place: int, n: int) -> str:
        """The n words at a place."""
        row = int(self.row(place))
        return " ".join(self.rows[row][place - self.starts[row] :][:n])

    def bands(self, rows: Sequence[int] | np.ndarray, n: int) -> list[np.ndarray]:
        """(rows,) hash of each band of the MinHash of rows' words (n = 1) or pairs of words (n = 2)."""
        found = []
        for i in rows:
            own = self.values[self.starts[i] : self.starts[i] + len(self.rows[i])]
            if n == 2:
                own = np.where((own[:-1] > 0) & (own[1:] > 0), own[:-1] * FACTORS[0] + own[1:] * FACTORS[1], 0)
            found.append(own[own > 0])
        return [(part * FACTORS[: part.shape[1]]).sum(1) for part in bands(minhash(found))]


class Kind:
    """Texts of a set that are compared by their n-grams: its words, or pairs of them."""

    def __init__(self, flat: Flat, units: np.ndarray, n: int):
        self.n, self.rows = n, flat.rows
        lengths = [len(flat.rows[i]) for i in units] or [0]
        self.shortest, self.longest = min(lengths) / 2, max(lengths) * 2
        """Words of a text that may be nearly the same: one with more is the same words again and again."""
        self.bands = [Lookup(marks, units) for marks in flat.bands(units, n)]

    def nearly_same(self, flat: Flat) -> Iterator[tuple[int, int]]:
        """(text of the set, row) that are nearly the same."""
        chosen = [i for i, row in enumerate(flat.rows) if self.shortest <= len(row) <= self.longest]
        marks = flat.bands(chosen, self.n)
        pairs = {(chosen[k], unit) for own, part in zip(self.bands, marks, strict=True) for k, unit in own.find(part)}
        for i, unit in sorted(pairs):
            if (alike_in_words if self.n == 1 else alike_in_pairs)(self.rows[unit], flat.rows[i]):
                yield unit, i


def alike_in_words(one: Sequence[str], other: Sequence[str]) -> bool:
    same = jaccard(frozenset(one), frozenset(other)) >= SAME_WORDS
    return same and SequenceMatcher(None, one, other, autojunk=False).ratio() >= SAME_WORDS


def alike_in_pairs(one: Sequence[str], other: Sequence[str]) -> bool:
    return jaccard(frozenset(pairwise(one)), frozenset(pairwise(other))) >= LIKE


def summary(
    ids: Sequence[str | int], texts: Sequence[str], hits: Iterable[tuple[str, Hit]], unit: str, total: int
) -> dict[str, Any]:
    """Of the texts that were looked for, out of `total`: the `share` that was found, with ids as `contaminated`, counts
    as `by`, and `examples`. Each hit has its source before it; their order does not matter."""
    found = {(hit.unit, source, hit.how): hit for source, hit in sorted(hits, reverse=True)}
    contaminated = sorted({number for number, *_ in found})
    by = [
        {"source": source, "how": how, "units": sum(key[1:] == (source, how) for key in found)}
        for source in (CORPUS, OTHERS)
        for how in (GRAM, NEAR)
    ]
    first = {number: (source, hit) for (number, source, _), hit in sorted(found.items(), reverse=True)}
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
    }


def write(facts: Mapping[str, Any], out: Path) -> None:
    (out / FILE).write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / FILE).read_text("utf-8"))


def told(facts: Mapping[str, Any]) -> str:
    """A sentence for people."""
    if not facts["units"]:
        return "Contamination: what is held out are choices, not texts; there is nothing to look for in training text."
    of = f" (of {facts['total']:,}, chosen by hash)" if facts["total"] > facts["units"] else ""
    by = ", ".join(f"{row['units']:,} by {HOW[row['how']]} in {row['source']}" for row in facts["by"])
    count = len(facts["contaminated"])
    return (
        f"Contamination: of {facts['units']:,} held-out {facts['unit']}s{of} the training text has {count:,} "
        f"({facts['share']:.2%}){': ' * bool(by)}{by}."
    )


def attached(content: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """A report's content with the metric (where there are intervals, with one), the sentence, examples and ids."""
    complete = {**content, "remarks": [*content.get("remarks", []), told(facts)], "contamination": dict(facts)}
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
    return str(text) if len(str(text)) <= limit else f"{str(text)[:limit]}…"
