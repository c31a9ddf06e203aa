"""Few-shot classification with the base model: examples in the prompt, no training (Brown et al. 2020)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.data.tokenizer import Tokenizer
from gpt2.model.transformer import GPT2, KVCache, Prefix

TEMPLATE = "Text: {text}\nSentiment:"
CONTENT_FREE = ("N/A", "", "[MASK]")  # Zhao et al. 2021
AFTER, PADDING = 0, -1  # owner of a token: AFTER is the text, i the i-th label, PADDING nobody


class Labelled(NamedTuple):
    """Predictions for N texts."""

    probabilities: np.ndarray
    """(N, labels): the labels' likelihoods, normalised to sum to 1."""
    shown: np.ndarray
    """(N,): number of examples in the prompt of each text."""


class FewShot:
    """Classifies a text by the label that the model finds most likely after it.

    The prompt is the end-of-text, the examples with their labels, and the text: `Text: ...\\nSentiment: good\\n`. The
    examples are read once for all texts. Each text is read once, and its labels branch from it (tree attention, Miao et
    al. 2024).
    """

    def __init__(
        self,
        model: GPT2,
        tokenizer: Tokenizer,
        labels: Sequence[str],
        examples: Sequence[tuple[str, int]] = (),
        template: str = TEMPLATE,
        calibrated: bool = False,
    ):
        """Read the examples. `labels` are the words to predict; `examples` are texts with the index of their label
        (`choose`).

        `calibrated` divides by the labels' probabilities after content-free texts, which removes the model's preference
        for some labels (contextual calibration, Zhao et al. 2021). `ValueError` for labels that can't be distinguished,
        for a template without `{text}`, and for a tokenizer that does not fit the model.
        """
        tokenizer.check(model.config.vocab_size)
        if "{text}" not in template:
            raise ValueError(f"the template {template!r} has no {{text}}; say where the text goes")
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.labels = [tokenizer.encode(f" {label}") for label in labels]
        for i, a in enumerate(self.labels):
            for j, b in enumerate(self.labels):
                if i != j and b[: len(a)] == a:
                    raise ValueError(f"{labels[j]!r} begins with the label {labels[i]!r}; choose other words")
        if len(labels) < 2:
            raise ValueError(f"labels={list(labels)}; give two or more")
        separator = tokenizer.encode("\n")
        shots = [[*self._encode(text), *self.labels[label], *separator] for text, label in examples]
        self.ends = np.cumsum([1, *map(len, shots)])
        """(k + 1,): number of tokens before the text if the first 0 ... k examples are shown."""
        self.ends = self.ends[self.ends < model.config.n_positions]
        self.k = len(examples)
        prompt = [tokenizer.end_of_text, *(token for shot in shots for token in shot)][: self.ends[-1]]
        self.caches = read_once(model, prompt)
        self.bias = np.ones(len(labels))
        if calibrated:
            with warnings.catch_warnings(action="ignore"):
                self.bias = self.label(CONTENT_FREE).probabilities.mean(0)

    def label(self, texts: Sequence[str], batch_size: int = 32) -> Labelled:
        """Return each text's label probabilities; texts of similar length share a batch.

        If a prompt is longer than the model's positions, its last examples are left out, with a warning. `ValueError`
        for a text that does not fit even without examples.
        """
        encoded = [self._encode(text) for text in texts]
        room = self.model.config.n_positions - max(map(len, self.labels)) + 1
        for i, ids in enumerate(encoded):
            if self.ends[0] + len(ids) > room:
                raise ValueError(
                    f"text {i} has {len(ids)} tokens with the question, more than the {room - self.ends[0]} that the "
                    f"model's {self.model.config.n_positions} positions have room for; shorten it"
                )
        lengths = np.array([len(ids) for ids in encoded], dtype=int)
        shown = np.searchsorted(self.ends, room - lengths, side="right") - 1
        if (short := int((shown < self.k).sum())) > 0:
            warnings.warn(
                f"the prompts of {short} of {len(texts)} texts have no room for {self.k} examples within "
                f"{self.model.config.n_positions} positions; they show {shown.min()} or more",
                stacklevel=2,
            )
        likelihoods = np.zeros((len(texts), len(self.labels)))
        for group in batches(shown, lengths, batch_size):
            likelihoods[group] = self._read([encoded[i] for i in group], int(self.ends[shown[group[0]]]))
        probabilities = np.exp(likelihoods - likelihoods.max(1, keepdims=True, initial=-np.inf))
        probabilities /= probabilities.sum(1, keepdims=True) * self.bias
        return Labelled(probabilities / probabilities.sum(1, keepdims=True), shown)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(self.template.replace("{text}", text.strip()))

    @torch.inference_mode()
    def _read(self, encoded: list[list[int]], before: int) -> np.ndarray:
        """Return the labels' log-likelihoods (nats), (B, labels), after `before` shared tokens and each text."""
        rows: list[list[int]] = []
        owners: list[list[int]] = []
        places: list[list[int]] = []
        for text in encoded:
            rows.append([*text])
            owners.append([AFTER] * len(text))
            places.append([*range(len(text))])
            for i, label in enumerate(self.labels, start=1):  # a label's last token is not read: nothing follows it
                rows[-1] += label[:-1]
                owners[-1] += [i] * (len(label) - 1)
                places[-1] += range(len(text), len(text) + len(label) - 1)
        ids, owner, place = padded(rows, 0), padded(owners, PADDING), padded(places, 0)
        device = self.model.wte.weight.device
        branches = [Branches(cache, before, owner.to(device), before + place.to(device)) for cache in self.caches]
        was_training = self.model.training
        self.model.eval()
        hidden = self.model.hidden(ids.to(device), branches)
        self.model.train(was_training)
        # A label's first token is predicted at the text's last token, and the others at the label's own.
        starts = np.cumsum([0] + [len(label) - 1 for label in self.labels[:-1]])
        total = torch.zeros(len(encoded), len(self.labels), dtype=torch.float64)
        last = torch.tensor([len(text) - 1 for text in encoded], device=device)
        batch = torch.arange(len(encoded), device=device)
        first = self.model.logits(hidden[batch, last]).float().log_softmax(-1)
        for i, (label, start) in enumerate(zip(self.labels, starts, strict=True)):
            total[:, i] = first[:, label[0]].double().cpu()
            if len(label) > 1:
                at = last[:, None] + 1 + int(start) + torch.arange(len(label) - 1, device=device)
                later = self.model.logits(hidden[batch[:, None], at]).float().log_softmax(-1)
                goal = torch.tensor(label[1:], device=device).expand(len(encoded), -1)
                total[:, i] += later.gather(2, goal[..., None]).double().sum((1, 2)).cpu()
        return total.numpy()


class Branches:
    """One layer's attention for texts behind a shared prompt; the branches of a text do not see one another."""

    def __init__(self, shared: KVCache, before: int, owner: Tensor, positions: Tensor):
        """`owner` (B, T) says which part a token belongs to: the text, or the i-th label. `positions` (B, T) are its
        positions."""
        self.keys, self.values, self.positions = shared.keys[:, :, :before], shared.values[:, :, :before], positions
        T = owner.shape[1]
        same = (owner[:, None, :] == owner[:, :, None]) | (owner[:, None, :] == AFTER)
        earlier = torch.ones(T, T, dtype=torch.bool, device=owner.device).tril()
        self.seen = F.pad((same & earlier)[:, None], (before, 0), value=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, prefix: Prefix | None = None) -> Tensor:
        """Return (B, T, heads, d). A token sees the prompt and the earlier tokens of its text and its own branch."""
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        keys, values, seen = [self.keys, k], [self.values, v], self.seen
        if prefix is not None:
            before = [p.to(q.dtype).transpose(0, 1)[None] for p in prefix]
            keys, values = [before[0], *keys], [before[1], *values]
            seen = F.pad(seen, (len(prefix[0]), 0), value=True)
        k, v = (torch.cat([t.expand(len(q), -1, -1, -1) for t in parts], dim=2) for parts in (keys, values))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


@torch.inference_mode()
def read_once(model: GPT2, ids: list[int]) -> list[KVCache]:
    """Return each layer's keys and values of a text."""
    like = model.wte.weight
    caches = [KVCache(1, len(ids), model.config, like) for _ in model.blocks]
    for cache in caches:
        cache.positions = torch.arange(len(ids), device=like.device)[None]
    was_training = model.training
    model.eval()
    model.hidden(torch.tensor([ids], device=like.device), caches)
    model.train(was_training)
    return caches


def choose(labels: Sequence[int], k: int, seed: int = 0) -> list[int]:
    """Return k indices of examples, balanced over the labels, in an order drawn from the seed.

    Any first few of them are balanced, too. `ValueError` if there are fewer than k.
    """
    if k > len(labels):
        raise ValueError(f"k={k} is more than the {len(labels)} examples; lower k")
    draw, truth = np.random.default_rng(seed), np.asarray(labels)
    pools = [draw.permutation(np.flatnonzero(truth == label)).tolist() for label in np.unique(truth)]
    chosen: list[int] = []
    while len(chosen) < k:
        chosen += [pools[i].pop() for i in draw.permutation(len(pools)) if pools[i]]
    return chosen[:k]


def batches(shown: np.ndarray, lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield batches of text indices with equal numbers of examples and similar lengths."""
    order = np.lexsort((lengths, shown))
    for group in np.split(order, np.flatnonzero(np.diff(shown[order])) + 1):
        for start in range(0, len(group), size):
            yield group[start : start + size]


def padded(rows: list[list[int]], value: int) -> Tensor:
    """Return the rows as (B, T) int64, padded with `value` on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
