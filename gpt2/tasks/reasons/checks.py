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
"""Separator of two known texts."""


class KnownTexts:
    """Search index of known texts for shared runs of words. Memory is 8 bytes per word."""

    def __init__(self, texts: Sequence[str]):
        self.ids: dict[str, int] = {}
        flat: list[int] = []
        for text in texts:
            flat.extend(self.ids.setdefault(word, len(self.ids)) for word in words(text))
            flat.append(OTHER)
        self.flat = np.array(flat, dtype=np.int64)

    def longest(self, texts: Sequence[str]) -> np.ndarray:
        """Return the (texts,) lengths (words, int64) of the longest run that each text shares with a known text.

        The result is exact. Runs grow by one word at a time, in all texts at once; known places whose run no text
        shares are dropped.
        """
        rows = [[self.ids.get(word, OTHER) for word in words(text)] for text in texts]
        longest = np.zeros(len(rows), dtype=np.int64)
        flat = np.array([i for row in rows for i in (*row, OTHER)], dtype=np.int64)
        owner = np.repeat(np.arange(len(rows)), [len(row) + 1 for row in rows])
        at = np.flatnonzero(flat != OTHER)  # starts of the texts' runs
        run = np.zeros(len(at), dtype=np.int64)  # index of each run among those of its length
        places, same = np.flatnonzero(self.flat != OTHER), None  # starts of the known runs, and the index of each
        size = len(self.ids) + 1
        for length in range(len(flat)):
            end = at + length
            inside = end < len(flat)
            inside[inside] = flat[end[inside]] != OTHER
            at, run = at[inside], run[inside]
            runs, run = np.unique(run * size + flat[at + length], return_inverse=True)
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
            longest[owner[at]] = length + 1
        return longest


LEAST, MOST = 5, 30
"""Fewest and most words of a sentence."""
REPEATED = 3
"""Length (words) of a run whose recurrence is a repetition."""
YEAR = re.compile(r"\s*\((?:\d{4}|V|TV)\)\s*$")
ARTICLE = re.compile(r"(.+), (The|A|An|Il|La|Le|Les|Das|Der|Die|El|Los|L')(?= \(|$)")


class Written(NamedTuple):
    """A sentence sampled from the model."""

    text: str
    ended: bool
    """True if the model ended it by end-of-text."""
    perplexity: float
    """Perplexity of its tokens after the prompt, including end-of-text."""


def spoken_title(title: str) -> str:
    """Return a title in spoken form: `Godfather, The (1972)` is The Godfather."""
    title = YEAR.sub("", title.strip())
    article = ARTICLE.match(title)
    return (
        (f"{article[2]}{'' if article[2].endswith(chr(39)) else ' '}{article[1]}" + title[article.end() :])
        if article
        else title
    )


def place_of(standing: Sequence[str]) -> re.Pattern[str]:
    """Return the pattern of placeholders at the beginning of a sentence, as `this film`; `this|is` is `this` before
    `is`."""
    patterns = []
    for each in standing:
        what, _, after = each.partition("|")
        patterns.append(re.escape(what) + (rf"(?=\s{re.escape(after)}(?![\w-]))" if after else r"(?![\w-])"))
    return re.compile(f"(?:{'|'.join(patterns)})", re.IGNORECASE)


def repeats(sentence: Sequence[str]) -> bool:
    """Return whether a word occurs twice in a row, or a run of `REPEATED` words recurs."""
    runs = [tuple(sentence[i : i + REPEATED]) for i in range(len(sentence) - REPEATED + 1)]
    return len(set(runs)) < len(runs) or any(a == b for a, b in pairwise(sentence))


@dataclass(frozen=True)
class Checks:
    """The checks that a sentence must pass to be shown."""

    titles: Sequence[str]
    """All titles of the catalogue."""
    attributes: Sequence[Attributes]
    """Attributes of each item."""
    known: KnownTexts
    """The training sentences."""
    unwanted: Set[str]
    """Words that speak against an item, or of the reviewer."""
    common: Set[str]
    """Words that apply to many items; a sentence may have no others."""
    standing: re.Pattern[str]
    """Pattern of the placeholder with which a sentence begins."""
    most_copied: int
    """Longest run of words that a sentence may share with a training sentence."""
    most_perplexity: float
    """Largest perplexity of a shown sentence."""

    def sentence(self, text: str, item: int) -> str:
        """Return the text with the item's title in place of the placeholder."""
        placeholder = self.standing.match(text)
        return spoken_title(self.titles[item]) + text[placeholder.end() :] if placeholder else text

    def withheld(self, written: Written, item: int, liked: Sequence[int]) -> str:
        """Return why a sentence on an item is withheld from a user who liked other items; "" if it is shown."""
        text, have = written.text, words(written.text)
        if reason := unfinished(have, written.ended, LEAST):
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
        return "it is unlikely" if not written.perplexity <= self.most_perplexity else ""

    @cached_property
    def known_attributes(self) -> set[tuple[str, ...]]:
        """Return the attributes of all items."""
        return {name for each in self.attributes for name in each}

    @cached_property
    def spoken(self) -> dict[tuple[str, ...], str]:
        """Return the titles of two words or more by their words."""
        titles = {tuple(words(spoken_title(title))): title for title in self.titles}
        return {name: title for name, title in titles.items() if len(name) > 1}

    def others(self, text: str, item: int) -> list[str]:
        """Return the titles of other items, of two words or more, that a text has in any case."""
        mine, have = tuple(words(spoken_title(self.titles[item]))), words(text)
        longest = max(map(len, self.spoken), default=0)
        runs = {tuple(have[i : i + n]) for n in range(2, longest + 1) for i in range(len(have) - n + 1)}
        return sorted(self.spoken[run] for run in runs if run in self.spoken and run != mine)


def names(text: str) -> list[str]:
    """Return the capitalised words inside a sentence, which are probably names."""
    tokens = re.findall(r"\w+(?:'\w+)?", text)
    return [word for word in tokens[1:] if any(c.isupper() for c in word) and word.partition("'")[0] != "I"]


def well_formed(text: str) -> bool:
    """Return whether a text is one sentence: a capital first, one full stop or exclamation mark, at the end.

    Brackets and quotation marks, which may be unpaired, and invalid characters are not allowed.
    """
    return (
        text[:1].isupper()
        and re.search(r"[^.!?][.!]$", text) is not None
        and not re.search(r"[.!?…]\s|\.\.|[\[\](){}<>\"“”*_\\/\ufffd\n]", text)
        and text == text.strip()
    )
