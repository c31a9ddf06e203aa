"""A linear classifier of hashed word and character n-grams, for the network to add to.

Single words, pairs and spellings say much of a label, and a linear model learns that from all examples in seconds. Its
logits are added to the network's, which learns the rest (Wide & Deep, Cheng et al. 2016). What it says of its own
training texts is too good to be true, so the network sees there what models say that did not learn from the text
(stacked generalisation, Wolpert 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.evaluation.confidence import fit_temperature

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FILE = "ngrams.safetensors"
BUCKETS = 2**17
"""Of words and pairs of words, and as many of 2 to 5 characters within a word; collisions cost little."""
FOLDS = 4
"""Parts of the training texts, each judged by a model that learned from the others."""
PER_NGRAM = 0.01
"""Inverse strength of the L2 penalty, for each n-gram of the mean text: a longer text's weights are smaller, being of
length 1 together, and need larger coefficients."""
EVEN = 0.2
"""How much an n-gram counts that is as frequent with a label as without it."""


class Ngrams:
    """(classes,) logits of a text: its l2-normalised tf-idf weights times a matrix."""

    def __init__(self, idf: np.ndarray, weights: np.ndarray, bias: np.ndarray):
        """`idf` (features,), `weights` (features, classes), `bias` (classes,), float32."""
        self.idf, self.weights, self.bias = idf, weights, bias

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """(N, classes) float32."""
        return np.asarray(weighted(counts(texts), self.idf) @ self.weights + self.bias, dtype=np.float32)

    def save(self, directory: Path) -> None:
        """Write `ngrams.safetensors`."""
        from safetensors.numpy import save_file

        save_file({"idf": self.idf, "weights": self.weights, "bias": self.bias}, directory / FILE)

    @classmethod
    def load(cls, directory: Path, classes: int) -> Ngrams | None:
        """Of a saved model; None where it has none. `ValueError` where the file does not fit."""
        import torch

        from gpt2.weights import tensors

        path = directory / FILE
        if not path.exists():
            return None
        found = tensors.read(path)
        shapes = {"idf": (2 * BUCKETS,), "weights": (2 * BUCKETS, classes), "bias": (classes,)}
        expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        tensors.check(path, found, expected, f"is it of {classes} labels, or from another version?")
        return cls(**{name: tensor.numpy() for name, tensor in found.items()})


def fit(
    texts: Sequence[str], labels: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> tuple[Ngrams, np.ndarray]:
    """(the model, what it says of its training texts: (N, classes) logits by models that did not see the text).

    The model is the mean of the `FOLDS` models; its logits are calibrated on those that it returns. `weights` (N,)
    say how much a text counts. Deterministic: a text's place decides its fold.
    """
    raw = counts(texts)
    n, seen = raw.shape[0], np.bincount(raw.indices, minlength=raw.shape[1])
    idf = (np.log((1 + n) / (1 + seen)) + 1).astype(np.float32)
    features, fold = weighted(raw, idf), np.arange(n) % FOLDS
    held_out = np.zeros((n, classes))
    matrix, bias = np.zeros((features.shape[1], classes)), np.zeros(classes)
    for k in range(FOLDS):
        others = fold != k
        w, b = one_against_rest(
            features[others], labels[others], classes, weights if weights is None else weights[others]
        )
        held_out[~others] = features[~others] @ w + b
        matrix, bias = matrix + w / FOLDS, bias + b / FOLDS
    temperature = fit_temperature(held_out, labels)
    found = Ngrams(idf, (matrix / temperature).astype(np.float32), (bias / temperature).astype(np.float32))
    return found, (held_out / temperature).astype(np.float32)


def one_against_rest(
    features: csr_matrix, labels: np.ndarray, classes: int, counted: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """(features, classes) weights and (classes,) intercepts; of a label without examples, or without any other, the
    intercept alone. Of two labels one is fitted: the other is its mirror image. N-grams that tell a label from the
    others are penalised less: each is scaled by the root of its log-count ratio (after Wang and Manning 2012)."""
    from scipy.sparse import diags
    from sklearn.linear_model import LogisticRegression

    inverse_penalty = max(1.0, PER_NGRAM * features.nnz / max(1, features.shape[0]))
    present = features.sign()
    weights, bias = np.zeros((features.shape[1], classes)), np.zeros(classes)
    for label in range(1 if classes == 2 else 0, classes):
        mine = labels == label
        if mine.all() or not mine.any():
            bias[label] = math.log((mine.sum() + 0.5) / ((~mine).sum() + 0.5))
            continue
        scale = np.sqrt(np.abs(log_count_ratio(present, mine))) + EVEN
        model = LogisticRegression(C=inverse_penalty, solver="liblinear", tol=1e-2)
        model.fit(features @ diags(scale), mine, counted)
        weights[:, label], bias[label] = model.coef_[0] * scale, model.intercept_[0]
    if classes == 2:
        weights[:, 0], bias[0] = -weights[:, 1], -bias[1]
    return weights, bias


def log_count_ratio(present: csr_matrix, mine: np.ndarray) -> np.ndarray:
    """(features,): the log of how much more frequent each is among `mine` (N,) texts than among the others, counted
    once for each text and once more."""
    inside, outside = (1 + np.asarray(present[rows].sum(0), dtype=float).ravel() for rows in (mine, ~mine))
    return (np.log(inside / inside.sum()) - np.log(outside / outside.sum())).astype(np.float32)


def counts(texts: Sequence[str]) -> csr_matrix:
    """(N, features): how often a text has each n-gram, by the n-gram's hash."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    plain: dict[str, Any] = {"n_features": BUCKETS, "alternate_sign": False, "norm": None, "dtype": np.float32}
    words = HashingVectorizer(ngram_range=(1, 2), **plain)
    spellings = HashingVectorizer(ngram_range=(2, 5), analyzer="char_wb", **plain)
    return hstack([words.transform(texts), spellings.transform(texts)], format="csr")


def weighted(found: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """(N, features) sublinear tf-idf, each row of length 1 (or 0), as scikit-learn's TfidfTransformer has it."""
    from sklearn.preprocessing import normalize

    out = found.copy()
    out.data = (1 + np.log(out.data)) * idf[out.indices]
    return normalize(out)
