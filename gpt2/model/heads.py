"""Heads on the model: next-token prediction and classification, with their losses; padding and packing of batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.transformer import GPT2, Packed


def pad(rows: list[list[int]], value: int = 0, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return rows of ids as (B, T) int64, padded on the right, and their lengths (B,), both on the device."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), max(1, int(lengths.max()))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids.to(device), lengths.to(device)


def pack(padded: Tensor, lengths: Tensor) -> tuple[Tensor, Packed]:
    """Return the (N, ...) entries of (B, T, ...) that are not padding, and their places; `lengths` is (B,)."""
    inside = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return padded[inside], Packed(lengths)


def pooled(hidden: Tensor, lengths: Tensor) -> Tensor:
    """Return the mean over each row's first `lengths` positions, (B, C), of (B, T, C)."""
    inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden * inside[:, :, None]).sum(1) / lengths[:, None].to(hidden.dtype)


def label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean cross-entropy (nats, scalar) of logits (B, classes) and labels (B,), times the weights (B,).

    The sum is divided by B, not by the sum of weights. So weights with mean 1 over the data give the same weighted
    mean, however the data are split into batches.
    """
    if weights is None:
        return F.cross_entropy(logits, labels)
    return (weights * F.cross_entropy(logits, labels, reduction="none")).mean()


class LanguageModel(nn.Module):
    """Next-token prediction: the mean cross-entropy of (B, T) ids against (B, T) targets."""

    def __init__(self, model: GPT2):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(ids, targets)


class Classifier(nn.Module):
    """A linear classifier on the mean and the last hidden state and the normalised mean of the token embeddings.

    The last feature is fastText's classifier (Joulin et al. 2017): the effect of single words is learned at once, and
    the blocks learn the rest.
    """

    def __init__(self, model: GPT2, n_classes: int, dropout: float = 0.1, features: int = 3, ngrams: bool = True):
        """Add a head of `n_classes`. Two `features` leave out the embeddings, as in older models.

        `ngrams`: as a teacher, the classifier adds the n-grams' logits if there are any.
        """
        super().__init__()
        self.model, self.dropout, self.ngrams = model, dropout, ngrams
        self.head = nn.Linear(features * model.config.n_embd, n_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def logits(self, ids: Tensor, lengths: Tensor, ngrams: Tensor | None = None) -> Tensor:
        """Return the logits, (B, classes), of (B, T) ids padded on the right, plus `ngrams` (B, classes) if given.

        `gpt2.tasks.sentiment.ngrams` computes the latter.
        """
        tokens, packed = pack(ids, lengths)
        hidden, size = self.model.hidden(tokens, packed=packed), self.model.config.n_embd
        features = [packed.means(hidden), hidden[packed.last]]
        if self.head.in_features > 2 * size:
            features.append(F.layer_norm(packed.means(self.model.wte(tokens)), (size,)))
        logits = self.head(F.dropout(torch.cat(features, dim=-1), self.dropout, self.training))
        return logits if ngrams is None else logits.float() + ngrams.float()

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        ngrams: Tensor | None = None,
    ) -> Tensor:
        """Return the `label_loss` of (B,) class indices."""
        return label_loss(self.logits(ids, lengths, ngrams).float(), labels, weights)
