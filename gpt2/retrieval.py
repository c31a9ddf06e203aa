"""Retrieval by embeddings: how texts are read, and what a training puts on the model to find and write answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.heads import pack, pad
from gpt2.model import GPT2
from gpt2.tokenizer import Tokenizer

if TYPE_CHECKING:
    import pandas as pd

KNOWN, REPLY = "\nKnown answer:", "\nReply:"
"""What stands between question, known answer and reply."""


class Reader:
    """Texts as the model reads them: a quarter of the context for the question, and three eighths each for the known
    answer and the reply."""

    def __init__(self, tokenizer: Tokenizer, context: int):
        """`ValueError` where so short a context leaves no room."""
        self.tokenizer, self.context = tokenizer, context
        self.marks = [tokenizer.encode(KNOWN), tokenizer.encode(REPLY)]
        self.room = 3 * context // 8 - max(map(len, self.marks)) - 1
        """Tokens of a known answer, and of a reply to learn from."""
        if self.room < 1:
            raise ValueError(f"context={context} leaves no room for an answer; set 64 or more")

    def plain(self, texts: Sequence[str], limit: int) -> list[list[int]]:
        """Ids of texts of which an embedding is made: in small letters, each word as in the middle of a text."""
        encoded = self.tokenizer.encode_batch([" " + " ".join(text.lower().split()) for text in texts])
        return [ids[:limit] or [self.tokenizer.end_of_text] for ids in encoded]

    def questions(self, texts: Sequence[str]) -> list[list[int]]:
        return self.plain(texts, max(1, self.context // 4))

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        return self.plain(texts, self.context // 2)

    def known(self, texts: Sequence[str]) -> list[list[int]]:
        """What a reply is written from."""
        return [ids[: self.room] for ids in self.tokenizer.encode_batch([" " + text for text in texts])]

    def replies(self, texts: Sequence[str]) -> list[list[int]]:
        """What a reply should say, up to its end where it is not cut before."""
        end = self.tokenizer.end_of_text
        return [[*ids, end][: self.room + 1] for ids in self.tokenizer.encode_batch([" " + text for text in texts])]

    def prompt(self, question: list[int], known: list[int]) -> list[int]:
        """Question and known answer: what follows is the reply."""
        return [*question, *self.marks[0], *known, *self.marks[1]]


class PairDataset:
    """Questions of a split, each with its right answer and wrong ones.

    A batch is `ids` (B, T), question, known answer and reply; their `lengths` (B,); `question_lengths` (B,) and
    `reply_lengths` (B,); `answers` (A, S) and `answer_lengths` (A,); `right` (B,), a row of the answers; `candidates`
    (B, A), what it competes with: the wrong answers that the seed draws, the same on all ranks at a step. So a
    question's loss does not depend on the rest of its batch, as it would with the batch's own answers for wrong ones.
    """

    def __init__(self, pairs: pd.DataFrame, split: str, reader: Reader, negatives: int):
        """`pairs`: columns question, answer, group, split; the wrong answers are drawn from all of them."""
        texts = pairs["answer"].unique().tolist()
        index = {text: i for i, text in enumerate(texts)}
        own = pairs[pairs["split"] == split]
        alike = pairs.groupby("group")["answer"].agg(lambda found: {index[a] for a in found})
        self.right = [index[a] for a in own["answer"]]
        self.also_right: list[set[int]] = [alike[g] for g in own["group"]]
        self.answers, self.known, self.replies = reader.answers(texts), reader.known(texts), reader.replies(texts)
        self.questions, self.reader, self.negatives = reader.questions(own["question"].tolist()), reader, negatives

    def __len__(self) -> int:
        return len(self.questions)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        count = min(self.negatives, len(self.answers))
        drawn = np.random.default_rng(seed).choice(len(self.answers), count, replace=False).tolist()
        pool = [*drawn, *sorted({self.right[i] for i in indices} - set(drawn))]
        place = {answer: row for row, answer in enumerate(pool)}
        candidates = torch.zeros(len(indices), len(pool), dtype=torch.bool)
        replies, rows = [self.replies[self.right[i]] for i in indices], []
        for row, i in enumerate(indices):
            candidates[row, : len(drawn)] = torch.tensor([a not in self.also_right[i] for a in drawn])
            candidates[row, place[self.right[i]]] = True
            rows.append([*self.reader.prompt(self.questions[i], self.known[self.right[i]]), *replies[row]])
        ids, lengths = pad(rows)
        answers, answer_lengths = pad([self.answers[a] for a in pool])
        return {
            "ids": ids, "lengths": lengths, "question_lengths": torch.tensor([len(self.questions[i]) for i in indices]),
            "reply_lengths": torch.tensor([len(reply) for reply in replies]),
            "answers": answers, "answer_lengths": answer_lengths,
            "right": torch.tensor([place[self.right[i]] for i in indices]), "candidates": candidates,
        }  # fmt: skip


class Retriever(nn.Module):
    """Questions and answers as unit vectors, by one encoder, and replies by the language model.

    A vector has two parts: the mean hidden state, projected, and the mean of the token embeddings weighted by how
    rare they are among the answers (Arora et al. 2017), which finds shared words before anything is learned. The
    loss is that of the right answer among wrong ones (DPR, Karpukhin et al. 2020), by scaled cosine, and that of
    the reply's tokens.
    """

    rarity: Tensor

    def __init__(self, model: GPT2, rarity: Tensor, reply_weight: float, width: int = 128):
        super().__init__()
        self.model, self.reply_weight = model, reply_weight
        self.project = nn.Linear(model.config.n_embd, width)
        self.centre = nn.Parameter(model.wte.weight.detach().mean(0))
        self.words = nn.Parameter(torch.ones(1))
        self.log_scale = nn.Parameter(torch.full((1,), 3.0))
        self.register_buffer("rarity", rarity, persistent=False)

    def joined(self, hidden: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, C) hidden states of (B, T) tokens, of which `lengths` count, to (B, C + width) unit vectors."""
        inside = (torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]).to(hidden.dtype)
        mean = (hidden * inside[..., None]).sum(1) / lengths[:, None].to(hidden.dtype)
        weights = self.rarity.to(hidden.dtype)[tokens] * inside
        words = ((self.model.wte(tokens) - self.centre) * weights[..., None]).sum(1)
        share, parts = torch.sigmoid(self.words), (words, self.project(mean))
        found, read = (F.normalize(part, dim=-1) for part in parts)
        return torch.cat([share.sqrt() * found, (1 - share).sqrt() * read], dim=-1)

    def hidden(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) ids to (B, T, C) hidden states, zeros where there is padding."""
        tokens, packed = pack(ids, lengths)
        states = self.model.hidden(tokens, packed=packed)
        inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        return states.new_zeros(*ids.shape, states.shape[-1]).masked_scatter(inside[..., None], states)

    def embed(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) ids, padded on the right, to (B, C + width) unit vectors."""
        return self.joined(self.hidden(ids, lengths), ids, lengths)

    def forward(
        self, ids: Tensor, lengths: Tensor, question_lengths: Tensor, reply_lengths: Tensor, answers: Tensor,
        answer_lengths: Tensor, right: Tensor, candidates: Tensor,
    ) -> Tensor:  # fmt: skip
        """The mean over a `PairDataset` batch's questions."""
        hidden = self.hidden(ids, lengths)  # causal: the question's states know nothing of what follows
        asked = self.joined(hidden, ids, question_lengths)
        scores = (self.log_scale.exp() * asked @ self.embed(answers, answer_lengths).T).float()
        loss = F.cross_entropy(scores.masked_fill(~candidates, float("-inf")), right)
        if not self.reply_weight:
            return loss
        at = torch.arange(1, ids.shape[1], device=ids.device)
        reply = (at >= (lengths - reply_lengths)[:, None]) & (at < lengths[:, None])
        logits = self.model.logits(hidden[:, :-1][reply]).float()
        each = F.cross_entropy(logits, ids[:, 1:][reply], reduction="none")
        per_token = (reply / reply_lengths[:, None])[reply]
        return loss + self.reply_weight * (each * per_token).sum() / len(ids)


def rarity(answers: Sequence[str], tokenizer: Tokenizer, vocabulary: int) -> Tensor:
    """(vocabulary,) weight of each token: a / (a + its share of the answers' tokens), a = 0.001 (Arora et al. 2017)."""
    rows = Reader(tokenizer, 10**6).plain(answers, 10**6)
    counts = np.bincount(np.concatenate(rows), minlength=vocabulary)
    return torch.tensor(1e-3 / (1e-3 + counts / counts.sum()), dtype=torch.float32)
