"""What a task puts on the model: a classifier, and a recommender that reads histories as text."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model import GPT2


def pad(rows: list[list[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids as (B, T) int64, padded on the right, and their lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), max(1, int(lengths.max()))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids, lengths


def pooled(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C) to (B, C): the mean over each row's first `lengths` positions."""
    inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden * inside[:, :, None]).sum(1) / lengths[:, None].to(hidden.dtype)


class Classifier(nn.Module):
    """A linear layer on the mean and the last of the hidden states."""

    def __init__(self, model: GPT2, n_classes: int, dropout: float = 0.1):
        super().__init__()
        self.model, self.dropout = model, dropout
        self.head = nn.Linear(2 * model.config.n_embd, n_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def logits(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(B, T) ids, padded on the right, to (B, classes)."""
        hidden = self.model.hidden(ids)
        last = hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        features = torch.cat([pooled(hidden, lengths), last], dim=-1)
        return self.head(F.dropout(features, self.dropout, self.training))

    def forward(self, ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of (B,) class indices."""
        return F.cross_entropy(self.logits(ids, lengths).float(), labels)


class Recommender(nn.Module):
    """Next-item prediction over text: a history is its items' texts in order, read once by the causal model.

    At each item's last token the hidden state, projected, is the taste so far; an item's embedding is the projected
    mean of the model's reading of its text. Score = scaled cosine + learned weight x log popularity, so that an item
    nobody has seen still has its text. Trained with a sampled softmax: a position's own next item against negatives
    that the whole step shares, weighted by how often they are drawn (Bengio and Senecal 2008), so that the scores
    estimate the full softmax and do not depend on how a batch is split over workers.
    """

    log_popularity: Tensor

    def __init__(self, model: GPT2, log_popularity: Tensor, width: int = 128):
        """`log_popularity`: (items,) log of each item's smoothed share of the training interactions."""
        super().__init__()
        self.model = model
        self.taste = nn.Linear(model.config.n_embd, width)
        self.item = nn.Linear(model.config.n_embd, width)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(10.0)))
        self.popularity_weight = nn.Parameter(torch.ones(1))
        self.register_buffer("log_popularity", log_popularity, persistent=False)

    def embed_items(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(N, T) ids of item texts to (N, width) unit vectors."""
        return F.normalize(self.item(pooled(self.model.hidden(ids), lengths)), dim=-1)

    def tastes(self, ids: Tensor, ends: Tensor) -> Tensor:
        """(B, T) ids of histories and (B, P) positions of items' last tokens to (B, P, width) unit vectors."""
        hidden = self.model.hidden(ids)
        at = ends.clamp_min(0)[:, :, None].expand(-1, -1, hidden.shape[-1])
        return F.normalize(self.taste(hidden.gather(1, at)), dim=-1)

    def scores(self, tastes: Tensor, items: Tensor, log_popularity: Tensor) -> Tensor:
        """(..., width) tastes against (N, width) items: (..., N)."""
        return self.log_scale.exp() * tastes @ items.T + self.popularity_weight * log_popularity

    def forward(
        self,
        ids: Tensor,
        ends: Tensor,
        following: Tensor,
        item_ids: Tensor,
        item_lengths: Tensor,
        items: Tensor,
        log_expected: Tensor,
    ) -> Tensor:
        """Mean over samples of the mean loss over their positions.

        `ids` (B, T), `ends` (B, P) positions of items' last tokens, `following` (B, P) index of the next item in the
        step's `items` (N,), -1 where there is none. `item_ids` (N, T') are the items' texts; `log_expected` (N,) is
        the log of how often an item is drawn as a negative, -inf for an item that is only somebody's next.
        """
        embedded = self.embed_items(item_ids, item_lengths)
        logits = self.scores(self.tastes(ids, ends), embedded, self.log_popularity[items]).float()
        own = F.one_hot(following.clamp_min(0), len(items)).bool()
        logits = torch.where(own, logits, logits - log_expected.clamp_min(-80).float())
        logits = logits.masked_fill(~own & log_expected.isinf(), float("-inf"))
        losses = F.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=-1, reduction="none")
        losses = losses.view(following.shape)
        return (losses.sum(1) / (following >= 0).sum(1).clamp_min(1)).mean()
