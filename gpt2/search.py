"""Search by words: what people would use instead of embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gpt2.metrics import rank_of


class BM25:
    """Texts ranked by the words of a query (Robertson and Zaragoza 2009, section 3), with Lucene's idf."""

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75):
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import CountVectorizer

        self.vectorizer = CountVectorizer(tokenizer=words, lowercase=False, token_pattern=None)
        counts = csr_matrix(self.vectorizer.fit_transform(texts), dtype=float)
        length, having = np.asarray(counts.sum(1))[:, 0], np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log(1 + (len(texts) - having + 0.5) / (having + 0.5))
        norm = k1 * (1 - b + b * length / length.mean())
        row = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        counts.data = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + norm[row])
        self.weights = counts

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """(queries, texts)."""
        return (self.vectorizer.transform(queries) @ self.weights.T).toarray()


def tf_idf(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """(queries, texts) cosines of sublinear TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(tokenizer=words, lowercase=False, token_pattern=None, sublinear_tf=True)
    found = vectorizer.fit_transform(texts)
    return (vectorizer.transform(queries) @ found.T).toarray()


def words(text: str) -> list[str]:
    """In small letters."""
    return re.findall(r"\w+", text.lower())


def best_rank(scores: np.ndarray, right: Sequence[int]) -> int:
    """The rank, from 1, of the best of the right answers among (answers,) scores; the other right ones don't count.
    Where none of them is there, it comes after all."""
    if not len(right):
        return len(scores) + 1
    best = max(right, key=lambda i: scores[i])
    return rank_of(scores, best, np.array([i for i in right if i != best], dtype=int))


def fit(parts: Sequence[np.ndarray], right: Sequence[Sequence[int]]) -> list[float]:
    """The weights, none below 0, of (queries, texts) scores whose weighted sum gives the right texts the highest
    likelihood, by a softmax over all texts: convex for one right text each."""
    from scipy.optimize import minimize
    from scipy.special import logsumexp

    stacked = np.stack(parts)

    def loss(weights: np.ndarray) -> float:
        scores = np.tensordot(weights, stacked, axes=1)
        found = [logsumexp(row[items]) for row, items in zip(scores, right, strict=True)]
        return float(np.mean(logsumexp(scores, axis=1) - found))

    bounds = [(0.0, 100.0)] * len(parts)
    return [round(float(w), 6) for w in minimize(loss, np.ones(len(parts)), bounds=bounds).x]
