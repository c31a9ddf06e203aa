"""The checks that a written reason must pass to be shown; copied runs of words.

A sentence begins with "this film", or what else stands for an item; the item's title takes that place when it is shown
(Wen et al. 2015 call it delexicalised). So a sentence says of an item what was written of others like it. What would be
true of one item alone, such as names, numbers and rare words, is withheld.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gpt2.data.text import unfinished, words
from gpt2.tasks.recommendation.catalogue import Attributes, named_in

OTHER = -1
"""Stands between two known texts."""


class KnownTexts:
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


LEAST, MOST = 5, 30
"""Words of a sentence."""
REPEATED = 3
"""So many words in a row that come again are a repetition."""
YEAR = re.compile(r"\s*\((?:\d{4}|V|TV)\)\s*$")
ARTICLE = re.compile(r"(.+), (The|A|An|Il|La|Le|Les|Das|Der|Die|El|Los|L')(?= \(|$)")


class Written(NamedTuple):
    """A sentence of the model."""

    text: str
    ended: bool
    """Whether the model ended it."""
    perplexity: float
    """Of its tokens, the end among them, after its prompt."""


def said(title: str) -> str:
    """A title as one says it: `Godfather, The (1972)` is The Godfather."""
    title = YEAR.sub("", title.strip())
    found = ARTICLE.match(title)
    return (
        (f"{found[2]}{'' if found[2].endswith(chr(39)) else ' '}{found[1]}" + title[found.end() :]) if found else title
    )


def place_of(standing: Sequence[str]) -> re.Pattern[str]:
    """Finds what stands for an item at the beginning of a sentence, as `this film`; `this|is` is `this` before `is`."""
    found = []
    for each in standing:
        what, _, after = each.partition("|")
        found.append(re.escape(what) + (rf"(?=\s{re.escape(after)}(?![\w-]))" if after else r"(?![\w-])"))
    return re.compile(f"(?:{'|'.join(found)})", re.IGNORECASE)


def repeats(said: Sequence[str]) -> bool:
    """Whether a word comes twice in a row, or `REPEATED` words in a row come again."""
    runs = [tuple(said[i : i + REPEATED]) for i in range(len(said) - REPEATED + 1)]
    return len(set(runs)) < len(runs) or any(a == b for a, b in pairwise(said))


@dataclass(frozen=True)
class Checks:
    """What a sentence must pass to be shown."""

    titles: Sequence[str]
    """All titles of the catalogue."""
    attributes: Sequence[Attributes]
    """Of each item."""
    known: KnownTexts
    """What the model has learned from."""
    unwanted: Set[str]
    """Words that speak against an item, or of who wrote the text."""
    common: Set[str]
    """Words that may be said of many items; a sentence has no others, but what items are."""
    standing: re.Pattern[str]
    """Finds what stands for an item, with which a sentence begins."""
    most_copied: int
    """Words in a row that a sentence may share with what the model has learned from."""
    most_perplexity: float
    """A less likely sentence is not shown."""

    def sentence(self, text: str, item: int) -> str:
        """The text with the item's title in place of what stands for it."""
        found = self.standing.match(text)
        return said(self.titles[item]) + text[found.end() :] if found else text

    def withheld(self, found: Written, item: int, liked: Sequence[int]) -> str:
        """Why a sentence on an item is not shown to somebody who liked others, "" where it is."""
        text, have = found.text, words(found.text)
        if reason := unfinished(have, found.ended, LEAST):
            return reason
        if len(have) > MOST or not well_formed(text):
            return "it is no sentence"
        if not self.standing.match(text):
            return "it does not name the item"
        if repeats(have):
            return "it repeats itself"
        if names(text) or re.search(r"\d", text) or self.others(text, item):
            return "it names somebody, something else or a number"
        if any(word in self.unwanted for word in have):
            return "it has an unwanted word"
        if any(word not in self.common for word in have):
            return "it has a rare word"
        named = named_in(text, self.known_attributes)
        if named - self.attributes[item].keys():
            return "it says what the item is not"
        if not any(named & self.attributes[i].keys() for i in liked):
            return "it does not say why"
        if int(self.known.longest([text])[0]) > self.most_copied:
            return "it is copied"
        return "it is unlikely" if not found.perplexity <= self.most_perplexity else ""

    @cached_property
    def known_attributes(self) -> set[tuple[str, ...]]:
        """Those of all items."""
        return {name for each in self.attributes for name in each}

    @cached_property
    def spoken(self) -> dict[tuple[str, ...], str]:
        """Titles of two words or more by their words."""
        found = {tuple(words(said(title))): title for title in self.titles}
        return {name: title for name, title in found.items() if len(name) > 1}

    def others(self, text: str, item: int) -> list[str]:
        """Titles of other items, of two words or more, that a text has, whatever their case."""
        mine, have = tuple(words(said(self.titles[item]))), words(text)
        longest = max(map(len, self.spoken), default=0)
        runs = {tuple(have[i : i + n]) for n in range(2, longest + 1) for i in range(len(have) - n + 1)}
        return sorted(self.spoken[run] for run in runs if run in self.spoken and run != mine)


def names(text: str) -> list[str]:
    """Words with a capital inside a sentence: names, of whom nothing is known here."""
    found = re.findall(r"\w+(?:'\w+)?", text)
    return [word for word in found[1:] if any(c.isupper() for c in word) and word.partition("'")[0] != "I"]


def well_formed(text: str) -> bool:
    """One sentence: it begins with a capital, ends with a full stop or an exclamation mark, and has no other; brackets
    and quotation marks, which may be half, and characters that are none don't occur."""
    return (
        text[:1].isupper()
        and re.search(r"[^.!?][.!]$", text) is not None
        and not re.search(r"[.!?…]\s|\.\.|[\[\](){}<>\"“”*_\\/\ufffd\n]", text)
        and text == text.strip()
    )
