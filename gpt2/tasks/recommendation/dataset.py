"""Histories to batches, and `Recommender`: the module that is trained, with the model as the reader of histories."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.heads import pack, pad, pooled
from gpt2.model.layers import LayerNorm, take
from gpt2.model.transformer import GPT2, Packed
from gpt2.tasks.recommendation.catalogue import sentence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.model.transformer import GPT2

ITEM_TOKENS = 32
"""Length of an item's description (tokens) in older models, which did not store it."""


class HistoryDataset:
    """Windows of histories as training samples.

    A batch is `history` (B, P), item indices, and `following` (B, P), the item after each, or -1.
    """

    def __init__(self, histories: Sequence[np.ndarray], context: int, last_only: bool = False):
        """Each step of a history is in exactly one window; with `last_only` only its last step counts."""
        self.windows: list[np.ndarray] = []  # up to context + 1 items; the next window begins with the last of one
        for items in histories:
            ends = [len(items)] if last_only else range(len(items), 1, -context)
            self.windows += [items[max(0, end - context - 1) : end] for end in ends]
        self.last_only = last_only

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        import torch

        chosen = [self.windows[i] for i in indices]
        shape = (len(chosen), max(len(w) for w in chosen) - 1)
        history, following = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
        for row, window in enumerate(chosen):
            items = torch.from_numpy(window.copy())
            history[row, : len(items) - 1] = items[:-1]
            first = len(items) - 2 if self.last_only else 0
            following[row, first : len(items) - 1] = items[first + 1 :]
        return {"history": history, "following": following}


def load_examples(examples: Path) -> tuple[list[np.ndarray], pd.DataFrame]:
    """Return (histories as item indices in order, items)."""
    import pandas as pd

    histories = pd.read_parquet(examples / "histories.parquet")["items"].tolist()
    return histories, pd.read_parquet(examples / "items.parquet")


def log_popularity(items: pd.DataFrame) -> Tensor:
    """Return (items,) log of each item's share of the training interactions, with one added to each count."""
    import torch

    counts = torch.tensor(items["popularity"].to_numpy(), dtype=torch.float32) + 1
    return (counts / counts.sum()).log()


def load_disliked(examples: Path) -> list[np.ndarray] | None:
    """Return for each history the items that the user saw but did not like; None if all seen items are in it."""
    import pandas as pd

    table = pd.read_parquet(examples / "histories.parquet")
    return [each.astype(int) for each in table["disliked"]] if "disliked" in table else None


def facts_of(examples: Path) -> dict[str, Any]:
    """Return the settings of the catalogue that a model stores: `item_tokens` and `interactions` (columns, like)."""
    return json.loads((examples / "catalogue.json").read_text())


def texts(
    items: pd.DataFrame, tokenizer: Tokenizer, length: int = ITEM_TOKENS, change: Callable[[str], str] = str
) -> list[list[int]]:
    """Return the ids of each item's description, cut to `length`; `change` may rewrite the description first."""
    descriptions = [change(sentence(title, text)) for title, text in zip(items["title"], items["text"], strict=True)]
    return [ids[:length] or [tokenizer.end_of_text] for ids in tokenizer.encode_batch(descriptions)]


class Recommender(nn.Module):
    """Next-item prediction by text: the language model reads histories of items.

    An item is the mean of its text's token embeddings, so new items are represented by their words. A history is the
    sequence of its items, one position each, read by the causal model. That is SASRec (Kang and McAuley 2018) with
    words instead of ids. At each position the projected hidden state is the user's taste. The score is the scaled
    cosine of taste and item, plus a learned weight times log popularity. The loss is the full softmax over the
    catalogue, so a sample's loss does not depend on the rest of its batch.
    """

    text_ids: Tensor
    text_lengths: Tensor
    log_popularity: Tensor

    def __init__(self, model: GPT2, texts: list[list[int]], log_popularity: Tensor, width: int = 128):
        """`texts` are the ids of each item's text, `log_popularity` (items,) logs of smoothed shares."""
        super().__init__()
        self.model = model
        width_in = model.config.n_embd
        self.norm = LayerNorm(width_in)
        self.enter = nn.Linear(width_in, width_in)
        self.taste = nn.Linear(width_in, width)
        self.item = nn.Linear(width_in, width)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(10.0)))
        self.popularity_weight = nn.Parameter(torch.ones(1))
        ids, lengths = pad(texts)
        self.register_buffer("text_ids", ids, persistent=False)
        self.register_buffer("text_lengths", lengths, persistent=False)
        self.register_buffer("log_popularity", log_popularity, persistent=False)

    def features(self) -> Tensor:
        """Return (items, C) features: each item's mean token embedding, normalised."""
        return self.norm(pooled(self.model.wte(self.text_ids), self.text_lengths))

    def tastes(self, items: Tensor, packed: Packed, features: Tensor) -> Tensor:
        """Return (N, width) taste vectors of unit length for (N,) item indices of packed histories."""
        hidden = self.model.read(take(self.enter(features), items), packed=packed)
        return F.normalize(self.taste(hidden), dim=-1)

    def embeddings(self, features: Tensor) -> Tensor:
        """Return (items, width) item vectors of unit length."""
        return F.normalize(self.item(features), dim=-1)

    def scores(self, tastes: Tensor, embeddings: Tensor) -> Tensor:
        """Return (..., items) scores of (..., width) tastes against (items, width) embeddings."""
        return self.log_scale.exp() * tastes @ embeddings.T + self.popularity_weight * self.log_popularity

    def forward(self, history: Tensor, following: Tensor) -> Tensor:
        """Return the mean over samples of the mean loss (nats) over positions.

        `history` (B, P) are the items read, `following` (B, P) the items next, or -1.
        """
        known = following >= 0
        places = torch.arange(1, history.shape[1] + 1, device=history.device)
        items, packed = pack(history, (known * places).amax(1).clamp_min(1))
        counted, features = pack(known, packed.lengths)[0], self.features()
        tastes = self.tastes(items, packed, features)[counted]
        logits = self.scores(tastes, self.embeddings(features)).float()
        losses = F.cross_entropy(logits, following[known], reduction="none")
        return (losses / known.sum(1)[packed.text[counted]]).sum() / len(history)
