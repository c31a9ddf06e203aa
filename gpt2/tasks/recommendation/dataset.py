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
from gpt2.model.transformer import GPT2, Packed
from gpt2.tasks.recommendation.catalogue import sentence

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.model.transformer import GPT2

ITEM_TOKENS = 32
"""What is told of an item in models that were saved without saying to how many tokens it is cut."""


class HistoryDataset:
    """Windows of histories: `history` (B, P) item indices and `following` (B, P), the item after each, -1 for none."""

    def __init__(self, histories: Sequence[np.ndarray], context: int, last_only: bool = False):
        """Every step of every history is in one window; with `last_only` only its last step counts."""
        self.windows: list[np.ndarray] = []  # context + 1 items at most, the next window begins with the last of one
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
    """(histories as item indices in order, items)."""
    import pandas as pd

    histories = pd.read_parquet(examples / "histories.parquet")["items"].tolist()
    return histories, pd.read_parquet(examples / "items.parquet")


def log_popularity(items: pd.DataFrame) -> Tensor:
    """(items,) log of each item's share of the training interactions, one added to each count."""
    import torch

    counts = torch.tensor(items["popularity"].to_numpy(), dtype=torch.float32) + 1
    return (counts / counts.sum()).log()


def load_disliked(examples: Path) -> list[np.ndarray] | None:
    """Of each history the items that the user saw but did not like; None where all that was seen is in the history."""
    import pandas as pd

    table = pd.read_parquet(examples / "histories.parquet")
    return [each.astype(int) for each in table["disliked"]] if "disliked" in table else None


def facts_of(examples: Path) -> dict[str, Any]:
    """What a model keeps of how its catalogue was read: `item_tokens`, to how many tokens what is told of an item is
    cut, and `interactions`, the columns and what a like weighs."""
    return json.loads((examples / "catalogue.json").read_text())


def texts(
    items: pd.DataFrame, tokenizer: Tokenizer, length: int = ITEM_TOKENS, change: Callable[[str], str] = str
) -> list[list[int]]:
    """Ids of each item's title and text, perhaps changed, `length` of them at most."""
    told = [change(sentence(title, text)) for title, text in zip(items["title"], items["text"], strict=True)]
    return [ids[:length] or [tokenizer.end_of_text] for ids in tokenizer.encode_batch(told)]


class Recommender(nn.Module):
    """Next-item prediction by text, with the model as the reader of histories.

    An item is the mean of its text's token embeddings, so an item that nobody has seen is known by its words. A
    history is the sequence of its items, one position each, read by the causal model (as in SASRec, Kang and McAuley
    2018, with words for ids); at each position the hidden state, projected, is the taste so far. Score = scaled
    cosine of taste and item + learned weight x log popularity. Trained with the full softmax over the catalogue, so
    the loss of a sample does not depend on the rest of its batch.
    """

    text_ids: Tensor
    text_lengths: Tensor
    log_popularity: Tensor

    def __init__(self, model: GPT2, texts: list[list[int]], log_popularity: Tensor, width: int = 128):
        """`texts`: ids of each item's text; `log_popularity`: (items,) log of its smoothed share of interactions."""
        super().__init__()
        self.model = model
        width_in = model.config.n_embd
        self.norm = nn.LayerNorm(width_in)
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
        """(items, C): each item's words."""
        return self.norm(pooled(self.model.wte(self.text_ids), self.text_lengths))

    def tastes(self, items: Tensor, packed: Packed, features: Tensor) -> Tensor:
        """(N,) item indices of packed histories to (N, width) unit vectors."""
        hidden = self.model.read(self.enter(features)[items], packed=packed)
        return F.normalize(self.taste(hidden), dim=-1)

    def embeddings(self, features: Tensor) -> Tensor:
        """(items, width) unit vectors."""
        return F.normalize(self.item(features), dim=-1)

    def scores(self, tastes: Tensor, embeddings: Tensor) -> Tensor:
        """(..., width) tastes against (items, width): (..., items)."""
        return self.log_scale.exp() * tastes @ embeddings.T + self.popularity_weight * self.log_popularity

    def forward(self, history: Tensor, following: Tensor) -> Tensor:
        """Mean over samples of the mean loss over positions: (B, P) items read, (B, P) items next, -1 for none."""
        known = following >= 0
        places = torch.arange(1, history.shape[1] + 1, device=history.device)
        items, packed = pack(history, (known * places).amax(1).clamp_min(1))
        counted, features = pack(known, packed.lengths)[0], self.features()
        tastes = self.tastes(items, packed, features)[counted]
        logits = self.scores(tastes, self.embeddings(features)).float()
        losses = F.cross_entropy(logits, following[known], reduction="none")
        return (losses / known.sum(1)[packed.text[counted]]).sum() / len(history)
