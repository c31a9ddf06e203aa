"""Reviews to sentences about items; prompts (liked items, recommended item) and sentences to batches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gpt2.data.corpus import normalise
from gpt2.data.splits import splits
from gpt2.data.tables import cell, missing, read_table
from gpt2.data.text import words
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.heads import pad
from gpt2.tasks.reasons.checks import LEAST, MOST, names, place_of, repeats, spoken_title, well_formed
from gpt2.tasks.reasons.config import ReasonsSettings
from gpt2.tasks.recommendation.catalogue import Attributes, attributes, named_in, plural

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.data.tokenizer import Tokenizer

TAG, END = re.compile(r"<[^>]{1,20}>"), re.compile(r"(?<=[.!?])\s+")
SEEN = 20
"""Fewest texts with a word for which its frequencies are compared."""
WORSE = 2.0
"""Ratio of a word's frequency in negative reviews to that in positive ones from which it speaks against an item."""


def read(source: str | Path, settings: ReasonsSettings) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return (reviews: text, each once, and `good`; counts).

    Raises `ValueError` if the file lacks the columns or has no good reviews.
    """
    text, label, good = settings.texts_field, settings.label_field, settings.good_label
    table = read_table(source, settings.form, {text, label or text})
    if fault := missing(table, {"texts_field": text, "label_field": label}):
        raise ValueError(f"{source} has {fault}")
    reviews = pd.DataFrame({"text": table[text]})
    reviews["good"] = True if label is None else table[label].map(cell) == good
    reviews["text"] = [normalise(cell(value) or "") for value in reviews["text"]]
    reviews = reviews[reviews["text"] != ""].drop_duplicates("text").reset_index(drop=True)
    if not reviews["good"].any():
        raise ValueError(f"{source}: no row has {label}={good!r}; set label_field and good_label, or label_field: null")
    return reviews, {"rows": len(table), "texts": len(reviews), "good_texts": int(reviews["good"].sum())}


def frequencies(texts: Sequence[str]) -> Counter[str]:
    """Return the number of texts that contain each word."""
    return Counter(word for text in texts for word in set(words(text)))


def common_words(texts: pd.DataFrame, share: float) -> set[str]:
    """Return the words that at least this share of the good texts contains."""
    good = texts["text"][texts["good"]].tolist()
    return {word for word, count in frequencies(good).items() if count >= share * len(good)}


def words_of(of: Sequence[Attributes]) -> set[str]:
    """Return the words of attributes, in singular and plural."""
    return {form for each in of for name in each for word in name for form in (word, plural(word))}


def speaking_against(texts: pd.DataFrame) -> set[str]:
    """Return the words at least `WORSE` times as frequent in bad texts as in good ones; none without bad texts."""
    good, bad = (frequencies(texts["text"][texts["good"] == is_good].tolist()) for is_good in (True, False))
    totals = int((~texts["good"]).sum()), int(texts["good"].sum())
    ratio = {w: (n + 1) / (totals[0] + 2) * (totals[1] + 2) / (good[w] + 1) for w, n in bad.items()}
    return {w for w, r in ratio.items() if r >= WORSE and bad[w] + good[w] >= SEEN}


def usable(text: str, standing: re.Pattern[str]) -> list[str]:
    """Return the sentences of a text that have the form of a reason (see `gpt2.tasks.reasons.checks.Checks`)."""
    sentences = []
    for sentence in END.split(TAG.sub(" ", text)):
        sentence = " ".join(sentence.split())
        if not standing.match(sentence) or not well_formed(sentence) or re.search(r"\d", sentence):
            continue
        have = words(sentence)
        if LEAST <= len(have) <= MOST and not names(sentence) and not repeats(have):
            sentences.append(sentence)
    return sentences


def collected(
    texts: pd.DataFrame, standing: Sequence[str], allowed: Set[str], shares: tuple[float, float]
) -> pd.DataFrame:
    """Return (text, split) of the sentences in the good texts.

    Training and validation sentences have allowed words only; test sentences are as people wrote them. A sentence of
    several texts is in one split, the training split if its texts are in different ones.
    """
    good = texts[texts["good"]]
    pattern, rows = place_of(standing), dict[str, str]()
    for text, split in zip(good["text"], splits(good["text"].tolist(), *shares), strict=True):
        for sentence in usable(text, pattern):
            if split == "test" or set(words(sentence)) <= allowed:
                rows[sentence] = split if rows.get(sentence, split) == split else "train"
    return pd.DataFrame({"text": list(rows), "split": list(rows.values())})


class Audience:
    """The users' choices, from which items and histories are drawn that fit a sentence."""

    def __init__(self, histories: Sequence[Sequence[int]], of: Sequence[Attributes], liked: int):
        """`histories` are items in order of time, `of` the items' attributes, `liked` the choices per prompt."""
        self.histories, self.of, self.liked = histories, of, liked
        self.user = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
        self.item = np.array([i for h in histories for i in h], dtype=np.int64)
        self.known = {name for each in of for name in each}
        self.fitting: dict[frozenset[tuple[str, ...]], np.ndarray] = {}

    def draw(self, sentence: str, generator: np.random.Generator) -> tuple[int, list[int]] | None:
        """Draw (item, other liked items) from the choices of items with all attributes that the sentence names.

        Returns None if there is no such choice.
        """
        named = frozenset(named_in(sentence, self.known))
        if named not in self.fitting:
            inside = np.array([named <= each.keys() for each in self.of])
            self.fitting[named] = np.flatnonzero(inside[self.item])
        if not len(fitting := self.fitting[named]):
            return None
        one = int(generator.choice(fitting))
        item, history = int(self.item[one]), self.histories[int(self.user[one])]
        return item, related([i for i in history if i != item], item, self.of, self.liked)


def related(history: Sequence[int], item: int, of: Sequence[Attributes], count: int) -> list[int]:
    """Return the `count` items of a history that share most attributes with an item; latest first among equals."""
    order = sorted(range(len(history)), key=lambda i: (-len(of[history[i]].keys() & of[item].keys()), -i))
    return [int(history[i]) for i in order[:count]]


def pair_with_items(sentences: pd.DataFrame, readers: Audience, draws: Mapping[bool, int]) -> pd.DataFrame:
    """Return (text, split, item, liked): each sentence paired with drawn items and histories.

    A training sentence is paired `draws[True]` times if it names an attribute, else `draws[False]` times.
    """
    generator, rows = np.random.default_rng(0), []
    for text, split in zip(sentences["text"], sentences["split"], strict=True):
        says = bool(named_in(text, readers.known))
        for _ in range(draws[says] if split == "train" else 1):
            if (pair := readers.draw(text, generator)) is not None:
                rows.append((text, split, *pair))
    return pd.DataFrame(rows, columns=["text", "split", "item", "liked"])


def reader_of(examples: Path, tokenizer: Tokenizer, context: int) -> PromptEncoder:
    """Return the encoder of prompts on the items of the examples."""
    import pandas as pd

    items = pd.read_parquet(examples / "items.parquet")
    return PromptEncoder(tokenizer, context, items["title"].tolist(), attributes(items["text"].tolist()))


def sentence_dataset(table: pd.DataFrame, reader: PromptEncoder) -> PromptedSentences:
    """Return the dataset of a table (text, item, liked)."""
    return PromptedSentences(
        reader, table["text"].tolist(), table["item"].tolist(), [list(each) for each in table["liked"]]
    )


TITLE_TOKENS, SHOWN = 12, 4
"""Most tokens of a title and most attributes of an item in a prompt."""


class PromptEncoder:
    """Encodes prompts and sentences as ids, with half of the context for each."""

    def __init__(self, tokenizer: Tokenizer, context: int, titles: Sequence[str], of: Sequence[Attributes]):
        self.tokenizer, self.room, self.of = tokenizer, context // 2, of
        short = [ids[:TITLE_TOKENS] for ids in tokenizer.encode_batch([f" {spoken_title(title)}" for title in titles])]
        described = [f" ({', '.join(list(each.values())[:SHOWN])})" if each else "" for each in of]
        self.items = [a + b for a, b in zip(short, tokenizer.encode_batch(described), strict=True)]
        marks = ("Liked:", ";", ". Next:", ". Both:", ".\n")
        self.liked, self.also, self.next, self.both, self.end = tokenizer.encode_batch(marks)

    def prompt(self, item: int, liked: Sequence[int]) -> list[int]:
        """Return the ids of the prompt; a prompt that is too long loses its beginning."""
        return self.whole(item, liked)[-self.room :]

    def whole(self, item: int, liked: Sequence[int]) -> list[int]:
        """Return the ids of the uncut prompt: the liked items, the recommended item, and their common attributes."""
        ids = [*self.liked]
        for place, one in enumerate(liked):
            ids += [*(self.also if place else ()), *self.items[one]]
        common = [part for name, part in self.of[item].items() if any(name in self.of[i] for i in liked)]
        ids += [*self.next, *self.items[item]]
        if common:
            ids += [*self.both, *self.tokenizer.encode(f" {', '.join(common[:SHOWN])}")]
        return [*ids, *self.end]

    def sentences(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each sentence with end-of-text, cut to `room` tokens."""
        end = self.tokenizer.end_of_text
        return [[*ids, end][: self.room] for ids in self.tokenizer.encode_batch(list(texts))]


class PromptedSentences:
    """Sentences, each after the prompt of an item.

    A batch is `ids` (B, T) of prompt and sentence, `lengths` (B,) of both, and `sentence_lengths` (B,).
    """

    def __init__(
        self, reader: PromptEncoder, texts: Sequence[str], items: Sequence[int], liked: Sequence[Sequence[int]]
    ):
        self.sentences = reader.sentences(texts)
        whole = [reader.whole(item, each) for item, each in zip(items, liked, strict=True)]
        self.prompts = [ids[-reader.room :] for ids in whole]
        longer = {
            "prompts": [len(ids) > reader.room for ids in whole],
            "sentences": [ids[-1] != reader.tokenizer.end_of_text for ids in self.sentences],
        }
        self.cut = {
            name: {"texts": len(each), "cut": sum(each), "tokens": reader.room} for name, each in longer.items()
        }
        """Truncation of prompts and sentences, as in `gpt2.evaluation.unit_results.counted`."""

    def __len__(self) -> int:
        return len(self.sentences)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        return joined([self.prompts[i] for i in indices], [self.sentences[i] for i in indices])


def joined(prompts: Sequence[list[int]], sentences: Sequence[list[int]]) -> dict[str, Tensor]:
    """Return the batch of these prompts and sentences."""
    ids, lengths = pad([p + s for p, s in zip(prompts, sentences, strict=True)])
    return {"ids": ids, "lengths": lengths, "sentence_lengths": torch.tensor([len(s) for s in sentences])}
