"""Reasons as a language model reads and writes them: a prompt of what was liked and what is recommended, a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.generate import generate
from gpt2.heads import pack, pad
from gpt2.model import GPT2
from gpt2.reasons import Attributes, Written, said
from gpt2.tokenizer import Tokenizer

TITLE_TOKENS, SHOWN = 12, 4
"""Of a title so many tokens are told, and so many attributes of an item."""
BATCH = 64


class Reader:
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


class Told:
    """Sentences, each after the prompt of an item. A batch is `ids` (B, T), prompt and sentence, their `lengths` (B,),
    and `sentence_lengths` (B,)."""

    def __init__(self, reader: Reader, texts: Sequence[str], items: Sequence[int], liked: Sequence[Sequence[int]]):
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
        """Of what is cut how much, as `gpt2.lengths.counted`."""

    def __len__(self) -> int:
        return len(self.sentences)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        return joined([self.prompts[i] for i in indices], [self.sentences[i] for i in indices])


def joined(prompts: Sequence[list[int]], sentences: Sequence[list[int]]) -> dict[str, Tensor]:
    """A batch of `Told`."""
    ids, lengths = pad([p + s for p, s in zip(prompts, sentences, strict=True)])
    return {"ids": ids, "lengths": lengths, "sentence_lengths": torch.tensor([len(s) for s in sentences])}


class Reasoner(nn.Module):
    """Next-token prediction of sentences after their prompts."""

    def __init__(self, model: GPT2):
        super().__init__()
        self.model = model

    def nll(self, ids: Tensor, lengths: Tensor, sentence_lengths: Tensor) -> Tensor:
        """(B,) negative log-likelihoods (nats) of a `Told` batch's sentences."""
        tokens, packed = pack(ids, lengths)
        places = torch.arange(ids.shape[1], device=ids.device)
        first = (lengths - sentence_lengths)[:, None]
        goal = (places >= first) & (places < lengths[:, None])
        before = goal.roll(-1, dims=1)  # what predicts a token stands before it; no sentence begins a row
        inside = places < lengths[:, None]
        hidden = self.model.hidden(tokens, packed=packed)[before[inside]]
        each = F.cross_entropy(self.model.logits(hidden).float(), ids[goal], reduction="none")
        row = torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)[goal]
        return each.new_zeros(len(ids)).index_add(0, row, each)

    def forward(self, ids: Tensor, lengths: Tensor, sentence_lengths: Tensor) -> Tensor:
        """The mean over sentences of the mean over their tokens."""
        return (self.nll(ids, lengths, sentence_lengths) / sentence_lengths).mean()


def losses(module: Reasoner, data: Told) -> tuple[list[float], list[int]]:
    """(negative log-likelihood in nats, tokens) of each sentence."""
    found: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(data), BATCH):
            batch = data.batch(range(start, min(start + BATCH, len(data))), 0)
            found += module.nll(**batch).double().tolist()
    return found, [len(s) for s in data.sentences]


def write(
    module: Reasoner, reader: Reader, item: int, liked: Sequence[int], samples: int, temperature: float, seed: int
) -> list[Written]:
    """Sentences on an item; what they are depends on nothing else."""
    prompt, end = reader.prompt(item, liked), reader.tokenizer.end_of_text
    drawn = generate(module.model, end, [prompt], reader.room, temperature, seed=seed, samples=samples, top_k=50)
    found: dict[tuple[int, ...], list[int]] = {tuple(ids): ids for ids in drawn}  # each once, in order
    rows = [[*ids, *([end] if len(ids) < reader.room else [])] for ids in found.values()]
    with torch.inference_mode():
        nll = module.nll(**joined([prompt] * len(rows), rows)).double()
    perplexity = (nll / torch.tensor([len(row) for row in rows])).exp().tolist()
    return [
        Written(reader.tokenizer.decode(ids), len(ids) < reader.room, value)
        for ids, value in zip(found.values(), perplexity, strict=True)
    ]
