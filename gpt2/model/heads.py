"""What a training puts on the model: a next-token loss or a classifier; padding and packing of batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.model.transformer import GPT2, Packed


def pad(rows: list[list[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids as (B, T) int64, padded on the right, and their lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), max(1, int(lengths.max()))), value, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return ids, lengths


def pack(padded: Tensor, lengths: Tensor) -> tuple[Tensor, Packed]:
    """(B, T, ...) and (B,) lengths to the (N, ...) that are no padding, and where they are."""
    inside = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return padded[inside], Packed(lengths)


def pooled(hidden: Tensor, lengths: Tensor) -> Tensor:
    """(B, T, C) to (B, C): the mean over each row's first `lengths` positions."""
    inside = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
    return (hidden * inside[:, :, None]).sum(1) / lengths[:, None].to(hidden.dtype)


def label_loss(logits: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Mean cross-entropy (nats, scalar) of (B, classes) logits and (B,) class indices, each multiplied by its weight
    (B,).

    It is divided by B, not by the weights' sum: weights with mean 1 over the data give the weighted mean of all of it,
    however it is cut into batches.
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
    """A linear layer on the mean and the last of the hidden states and the mean of the token embeddings, normalised.

    The last of these is fastText's classifier (Joulin et al. 2017): what single words say is learned at once, and the
    blocks learn the rest.
    """

    def __init__(self, model: GPT2, n_classes: int, dropout: float = 0.1, features: int = 3, ngrams: bool = True):
        """With two `features` the embeddings are left out, as in models of before there were three. `ngrams`: as a
        teacher it adds the n-grams' logits, where there are any."""
        super().__init__()
        self.model, self.dropout, self.ngrams = model, dropout, ngrams
        self.head = nn.Linear(features * model.config.n_embd, n_classes)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def logits(self, ids: Tensor, lengths: Tensor, ngrams: Tensor | None = None) -> Tensor:
        """(B, T) ids, padded on the right, to (B, classes); `ngrams` (B, classes) are added
        (`gpt2.tasks.sentiment.ngrams`)."""
        tokens, packed = pack(ids, lengths)
        hidden, size = self.model.hidden(tokens, packed=packed), self.model.config.n_embd
        features = [packed.means(hidden), hidden[packed.last]]
        if self.head.in_features > 2 * size:
            features.append(F.layer_norm(packed.means(self.model.wte(tokens)), (size,)))
        found = self.head(F.dropout(torch.cat(features, dim=-1), self.dropout, self.training))
        return found if ngrams is None else found.float() + ngrams.float()

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        ngrams: Tensor | None = None,
    ) -> Tensor:
        """The `label_loss` of (B,) class indices."""
        return label_loss(self.logits(ids, lengths, ngrams).float(), labels, weights)
