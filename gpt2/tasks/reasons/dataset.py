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
from gpt2.data.tables import missing, read_table
from gpt2.data.text import words
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.heads import pad
from gpt2.tasks.reasons.checks import LEAST, MOST, names, place_of, repeats, said, well_formed
from gpt2.tasks.recommendation.catalogue import Attributes, attributes, named_in, plural

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.data.tokenizer import Tokenizer

TAG, END = re.compile(r"<[^>]{1,20}>"), re.compile(r"(?<=[.!?])\s+")
SEEN = 20
"""A word that fewer texts have says nothing."""
WORSE = 2.0
"""A word speaks against an item where it is so many times as frequent in texts that do as in others."""


def read(source: Path, text: str, label: str | None, good: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """(text, each once, and whether it is `good`; counts). `ValueError` where the file has no such columns or texts."""
    table = read_table(source)
    if fault := missing(table, {"texts_field": text, "label_field": label}):
        raise ValueError(f"{source} has {fault}")
    found = pd.DataFrame({"text": table[text]})
    found["good"] = True if label is None else table[label].astype(str) == good
    found = found[found["text"].notna()]
    found["text"] = [normalise(str(value)) for value in found["text"]]
    found = found[found["text"] != ""].drop_duplicates("text").reset_index(drop=True)
    if not found["good"].any():
        raise ValueError(f"{source}: no row has {label}={good!r}; set label_field and good_label, or label_field: null")
    return found, {"rows": len(table), "texts": len(found), "good_texts": int(found["good"].sum())}


def frequencies(texts: Sequence[str]) -> Counter[str]:
    """How many of the texts have a word."""
    return Counter(word for text in texts for word in set(words(text)))


def common_words(texts: pd.DataFrame, share: float) -> set[str]:
    """Words that such a share of the good texts has."""
    good = texts["text"][texts["good"]].tolist()
    return {word for word, count in frequencies(good).items() if count >= share * len(good)}


def words_of(of: Sequence[Attributes]) -> set[str]:
    """The words of attributes, in singular and plural."""
    return {form for each in of for name in each for word in name for form in (word, plural(word))}


def speaking_against(texts: pd.DataFrame) -> set[str]:
    """Words that `WORSE` times as many texts that are not good have as others; none without such texts."""
    good, bad = (frequencies(texts["text"][texts["good"] == is_good].tolist()) for is_good in (True, False))
    totals = int((~texts["good"]).sum()), int(texts["good"].sum())
    ratio = {w: (n + 1) / (totals[0] + 2) * (totals[1] + 2) / (good[w] + 1) for w, n in bad.items()}
    return {w for w, r in ratio.items() if r >= WORSE and bad[w] + good[w] >= SEEN}


def usable(text: str, standing: re.Pattern[str]) -> list[str]:
    """The sentences of a text on an item that have the form of a reason: see `gpt2.tasks.reasons.checks.Checks`."""
    found = []
    for sentence in END.split(TAG.sub(" ", text)):
        sentence = " ".join(sentence.split())
        if not standing.match(sentence) or not well_formed(sentence) or re.search(r"\d", sentence):
            continue
        have = words(sentence)
        if LEAST <= len(have) <= MOST and not names(sentence) and not repeats(have):
            found.append(sentence)
    return found


def collected(
    texts: pd.DataFrame, standing: Sequence[str], allowed: Set[str], shares: tuple[float, float]
) -> pd.DataFrame:
    """text, split: sentences of the good texts; those to learn from have allowed words alone, the test's are as people
    write them. One that several texts have is in no more than one split, the training's where it can be."""
    good = texts[texts["good"]]
    pattern, rows = place_of(standing), dict[str, str]()
    for text, split in zip(good["text"], splits(good["text"].tolist(), *shares), strict=True):
        for sentence in usable(text, pattern):
            if split == "test" or set(words(sentence)) <= allowed:
                rows[sentence] = split if rows.get(sentence, split) == split else "train"
    return pd.DataFrame({"text": list(rows), "split": list(rows.values())})


class Audience:
    """Who chose which item: to whom a sentence could be told."""

    def __init__(self, histories: Sequence[Sequence[int]], of: Sequence[Attributes], liked: int):
        """`histories`: items in order of time. `liked`: how many of them are told with an item."""
        self.histories, self.of, self.liked = histories, of, liked
        self.user = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
        self.item = np.array([i for h in histories for i in h], dtype=np.int64)
        self.known = {name for each in of for name in each}
        self.fitting: dict[frozenset[tuple[str, ...]], np.ndarray] = {}

    def draw(self, sentence: str, generator: np.random.Generator) -> tuple[int, list[int]] | None:
        """(item, what else was liked): a choice of an item that is all that the sentence says; None without any."""
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
    """Of a history in order of time those items that have most in common with an item, of equals the latest first."""
    order = sorted(range(len(history)), key=lambda i: (-len(of[history[i]].keys() & of[item].keys()), -i))
    return [int(history[i]) for i in order[:count]]


def told(sentences: pd.DataFrame, readers: Audience, draws: Mapping[bool, int]) -> pd.DataFrame:
    """text, split, item, liked: each sentence told of drawn items, so many times by whether it says what an item is."""
    generator, rows = np.random.default_rng(0), []
    for text, split in zip(sentences["text"], sentences["split"], strict=True):
        says = bool(named_in(text, readers.known))
        for _ in range(draws[says] if split == "train" else 1):
            if (found := readers.draw(text, generator)) is not None:
                rows.append((text, split, *found))
    return pd.DataFrame(rows, columns=["text", "split", "item", "liked"])


def reader_of(examples: Path, tokenizer: Tokenizer, context: int) -> PromptEncoder:
    import pandas as pd

    items = pd.read_parquet(examples / "items.parquet")
    return PromptEncoder(tokenizer, context, items["title"].tolist(), attributes(items["text"].tolist()))


def told_of(table: pd.DataFrame, reader: PromptEncoder) -> PromptedSentences:

    return PromptedSentences(
        reader, table["text"].tolist(), table["item"].tolist(), [list(each) for each in table["liked"]]
    )


TITLE_TOKENS, SHOWN = 12, 4
"""Of a title so many tokens are told, and so many attributes of an item."""


class PromptEncoder:
    """Prompts and sentences as ids: half of the context for each."""

    def __init__(self, tokenizer: Tokenizer, context: int, titles: Sequence[str], of: Sequence[Attributes]):
        self.tokenizer, self.room, self.of = tokenizer, context // 2, of
        short = [ids[:TITLE_TOKENS] for ids in tokenizer.encode_batch([f" {said(title)}" for title in titles])]
        told = [f" ({', '.join(list(each.values())[:SHOWN])})" if each else "" for each in of]
        self.items = [a + b for a, b in zip(short, tokenizer.encode_batch(told), strict=True)]
        marks = ("Liked:", ";", ". Next:", ". Both:", ".\n")
        self.liked, self.also, self.next, self.both, self.end = tokenizer.encode_batch(marks)

    def prompt(self, item: int, liked: Sequence[int]) -> list[int]:
        """The `whole` prompt; of what is too long the end."""
        return self.whole(item, liked)[-self.room :]

    def whole(self, item: int, liked: Sequence[int]) -> list[int]:
        """What was liked, the item, and what of it they have in common."""
        ids = [*self.liked]
        for place, one in enumerate(liked):
            ids += [*(self.also if place else ()), *self.items[one]]
        common = [part for name, part in self.of[item].items() if any(name in self.of[i] for i in liked)]
        ids += [*self.next, *self.items[item]]
        if common:
            ids += [*self.both, *self.tokenizer.encode(f" {', '.join(common[:SHOWN])}")]
        return [*ids, *self.end]

    def sentences(self, texts: Sequence[str]) -> list[list[int]]:
        """Each up to its end, where it is not cut before."""
        end = self.tokenizer.end_of_text
        return [[*ids, end][: self.room] for ids in self.tokenizer.encode_batch(list(texts))]


class PromptedSentences:
    """Sentences, each after the prompt of an item. A batch is `ids` (B, T), prompt and sentence, their `lengths` (B,),
    and `sentence_lengths` (B,)."""

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
        """Of what is cut how much, as `gpt2.evaluation.unit_results.counted`."""

    def __len__(self) -> int:
        return len(self.sentences)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        return joined([self.prompts[i] for i in indices], [self.sentences[i] for i in indices])


def joined(prompts: Sequence[list[int]], sentences: Sequence[list[int]]) -> dict[str, Tensor]:
    """A batch of `PromptedSentences`."""
    ids, lengths = pad([p + s for p, s in zip(prompts, sentences, strict=True)])
    return {"ids": ids, "lengths": lengths, "sentence_lengths": torch.tensor([len(s) for s in sentences])}
