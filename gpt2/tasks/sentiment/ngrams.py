"""A linear classifier of hashed word and character n-grams, whose logits are added to the network's.

In scripts without spaces all n-grams are of 1 to 3 characters; which ones was chosen by cross-validation on 9,050
Chinese reviews.

Words, word pairs and character n-grams predict much of a label, and a linear model learns that in seconds. The network
learns the rest (Wide & Deep, Cheng et al. 2016). On its own training texts the linear model is overconfident. So the
network gets there the logits of models that were not trained on the text (stacked generalisation, Wolpert 1992).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.data.text import grams, has_characters
from gpt2.evaluation.confidence import fit_temperature

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FILE, CHARACTERS = "ngrams.safetensors", "characters"
BUCKETS = 2**17
"""Number of hash buckets for words and word pairs, and the same number for 2 to 5 characters within a word. Collisions
cost little."""
FOLDS = 4
"""Number of folds of the training texts; each is predicted by a model trained on the others."""
PER_NGRAM = 0.01
"""Inverse strength of the L2 penalty, per n-gram of the mean text. A longer text has smaller features, since each row
has length 1, and needs larger coefficients."""
EVEN = 0.2
"""Scale of an n-gram that is equally frequent with and without a label."""


class Ngrams:
    """A linear model that maps l2-normalised tf-idf features of a text to (classes,) logits."""

    def __init__(self, idf: np.ndarray, weights: np.ndarray, bias: np.ndarray, characters: bool = True):
        """`idf` (features,), `weights` (features, classes), `bias` (classes,), float32; `characters` as in `counts`."""
        self.idf, self.weights, self.bias, self.characters = idf, weights, bias, characters

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Return (N, classes) float32 logits."""
        return np.asarray(
            weighted(counts(texts, self.characters), self.idf) @ self.weights + self.bias, dtype=np.float32
        )

    def save(self, directory: Path) -> None:
        """Write `ngrams.safetensors` to a directory."""
        from safetensors.numpy import save_file

        parts, metadata = {"idf": self.idf, "weights": self.weights, "bias": self.bias}, {CHARACTERS: "true"}
        save_file(parts, directory / FILE, metadata if self.characters else None)

    @classmethod
    def load(cls, directory: Path, classes: int) -> Ngrams | None:
        """Return the linear model in a directory, or None; raise `ValueError` if its shapes don't fit."""
        import torch
        from safetensors import safe_open

        from gpt2.weights import tensors

        path = directory / FILE
        if not path.exists():
            return None
        loaded = tensors.read(path)
        shapes = {"idf": (2 * BUCKETS,), "weights": (2 * BUCKETS, classes), "bias": (classes,)}
        expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        tensors.check(path, loaded, expected, f"is it of {classes} labels, or from another version?")
        with safe_open(path, "np") as file:
            characters = CHARACTERS in (file.metadata() or {})
        return cls(**{name: tensor.numpy() for name, tensor in loaded.items()}, characters=characters)


def fit(
    texts: Sequence[str], labels: np.ndarray, classes: int, weights: np.ndarray | None = None
) -> tuple[Ngrams, np.ndarray]:
    """Return (the linear model, (N, classes) out-of-fold logits of the training texts).

    The model is the mean of the `FOLDS` models, calibrated on the returned logits. `weights` are the (N,) weights of
    the texts. It is deterministic: a text's place decides its fold.
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
    model = Ngrams(idf, (matrix / temperature).astype(np.float32), (bias / temperature).astype(np.float32))
    return model, (held_out / temperature).astype(np.float32)


def one_against_rest(
    features: csr_matrix, labels: np.ndarray, classes: int, counted: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return (features, classes) weights and (classes,) intercepts of one-against-rest logistic regressions.

    A label without examples, or without counter-examples, has an intercept alone. With two labels one is fitted and the
    other is its mirror image. Discriminative n-grams are penalised less: each is scaled by the root of its log-count
    ratio (after Wang and Manning 2012).
    """
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
    """Return (features,) logs of the ratio of each feature's frequency in the `mine` texts (N,) to that in the others.

    A feature counts once per text, plus one.
    """
    inside, outside = (1 + np.asarray(present[rows].sum(0), dtype=float).ravel() for rows in (mine, ~mine))
    return (np.log(inside / inside.sum()) - np.log(outside / outside.sum())).astype(np.float32)


def counts(texts: Sequence[str], characters: bool = True) -> csr_matrix:
    """Return (N, features) counts of each text's hashed n-grams.

    Without `characters` scripts without spaces are read like others, as older models do.
    """
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer

    plain: dict[str, Any] = {"n_features": BUCKETS, "alternate_sign": False, "norm": None, "dtype": np.float32}
    words = HashingVectorizer(ngram_range=(1, 2), **plain)
    spellings = HashingVectorizer(ngram_range=(2, 5), analyzer="char_wb", **plain)
    if characters:
        inside = spellings.build_analyzer()
        through = HashingVectorizer(ngram_range=(1, 3), analyzer="char").build_analyzer()
        words.analyzer, spellings.analyzer = grams, lambda text: (through if has_characters(text) else inside)(text)
    return hstack([words.transform(texts), spellings.transform(texts)], format="csr")


def weighted(counted: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """Return (N, features) sublinear tf-idf, each row of length 1 (or 0), as scikit-learn's TfidfTransformer does."""
    from sklearn.preprocessing import normalize

    out = counted.copy()
    out.data = (1 + np.log(out.data)) * idf[out.indices]
    return normalize(out)
