"""What a model must be measured against: the simple methods that people would use instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CELLS = 8_000_000
"""Scores or similarities computed at a time, which bounds the memory."""
READ = 64
"""Users whose items are scored at a time; fewer where the catalogue has more than `CELLS` items for so many."""
EASE_ITEMS = 4000
"""Items between which EASE learns weights: 128 MB for each table of them."""
Scorer = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Histories to (users, items) scores."""


def majority(train_labels: np.ndarray, n_test: int, n_classes: int) -> np.ndarray:
    """(n_test, classes) probabilities: the classes' shares in training."""
    shares = np.bincount(train_labels, minlength=n_classes) / max(1, len(train_labels))
    return np.tile(shares, (n_test, 1))


def tfidf_logistic_regression(
    train_texts: Sequence[str],
    train_labels: np.ndarray,
    test_texts: Sequence[str],
    n_classes: int,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """(n_test, classes) probabilities of logistic regression (C=4) on sublinear TF-IDF of 1- and 2-grams (min_df 2).

    Iterated to a tolerance of 1e-4, scikit-learn's own: with 1e-3 it stops after 5 iterations on long texts, and has
    an accuracy of 0.872 on film reviews instead of 0.899.

    `weights` (n_train,) are those of the examples in its loss, as the model has them.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2 if len(train_texts) > 100 else 1, sublinear_tf=True)
    try:
        train = vectorizer.fit_transform(train_texts)
    except ValueError:  # no word is there twice, as in scripts without spaces: by characters
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        train = vectorizer.fit_transform(train_texts)
    model = LogisticRegression(C=4, max_iter=1000, tol=1e-4).fit(train, train_labels, weights)
    out = np.zeros((len(test_texts), n_classes))
    out[:, model.classes_] = model.predict_proba(vectorizer.transform(test_texts))
    return out


def popularity(histories: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """(items,) counts of the items in all histories."""
    return np.bincount(np.concatenate(histories), minlength=n_items).astype(float)


def chosen(
    histories: Sequence[Sequence[int] | np.ndarray], n_items: int, decay: float = 1.0, last: int | None = None
) -> csr_matrix:
    """(users, items), sparse: decay^k for what was chosen k items before the latest, of the `last` ones alone."""
    from scipy.sparse import csr_matrix

    rows = [np.asarray(h, dtype=int)[::-1][:last] for h in histories]
    lengths = [len(row) for row in rows]
    weights = np.concatenate([decay ** np.arange(n) for n in lengths]).astype(np.float32)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((weights, np.concatenate(rows), indptr), shape=(len(rows), n_items))


def parts(users: int, n_items: int) -> Iterator[slice]:
    """The users in order, so few at a time that no table of their scores has more than `CELLS`, or one user's."""
    step = max(1, min(READ, CELLS // n_items))
    for start in range(0, users, step):
        yield slice(start, start + step)


def cosines(histories: Sequence[np.ndarray], n_items: int, neighbours: int = 200) -> csr_matrix:
    """(items, items), sparse: to each item, in its row, the cosine similarities of the nearest others by who chose
    them. Sarwar et al. 2001, on implicit feedback."""
    from scipy.sparse import csr_matrix, vstack

    seen = chosen(histories, n_items)
    norms = np.sqrt(np.maximum(np.asarray(seen.sum(0)).ravel(), 1e-9)).astype(np.float32)
    by_item, step, parts = seen.T.tocsr(), max(1, CELLS // n_items), []
    for start in range(0, n_items, step):  # never all pairs at once: a large catalogue has too many
        part = (by_item[start : start + step] @ seen).toarray()
        part /= norms[start : start + step, None] * norms[None, :]
        part[np.arange(len(part)), np.arange(start, start + len(part))] = 0
        if neighbours < n_items:
            part[part < np.partition(part, -neighbours, axis=1)[:, -neighbours][:, None]] = 0
        parts.append(csr_matrix(part))
    return vstack(parts, format="csr")


def item_knn(similar: csr_matrix, decay: float = 1.0, last: int | None = None) -> Scorer:
    """The sum of the similarities (`cosines`) to the user's items, of the `last` ones alone, decay^k for the one k
    before the latest."""
    n_items, others = similar.shape[0], similar.T.tocsr()
    return lambda histories: (chosen(histories, n_items, decay, last) @ others).toarray()


def recent_item_knn(similar: csr_matrix) -> Scorer:
    """The same over the user's last ten items, with weights 0.8^k."""
    return item_knn(similar, 0.8, last=10)


def ease_weights(histories: Sequence[np.ndarray], n_items: int, strength: float = 100.0) -> tuple[np.ndarray, ...]:
    """(items' indices (n,), weights (n, n) from a chosen item, the row, to another) of EASE (Steck 2019).

    Of the `EASE_ITEMS` most chosen items, as it inverts a dense matrix: beyond them there is hardly a pair to learn
    from.
    """
    seen = chosen(histories, n_items)
    places = np.sort(np.argsort(-np.asarray(seen.sum(0)).ravel(), kind="stable")[:EASE_ITEMS])
    kept = seen[:, places]
    gram = (kept.T @ kept).toarray().astype(float)
    gram[np.diag_indices(len(gram))] += strength
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return places, weights


def ease(histories: Sequence[np.ndarray], n_items: int, strength: float = 100.0) -> Scorer:
    """EASE, of what was chosen in the histories."""
    places, weights = ease_weights(histories, n_items, strength)

    def score(asked: Sequence[np.ndarray]) -> np.ndarray:
        scores = np.zeros((len(asked), n_items), np.float32)
        scores[:, places] = chosen(asked, n_items)[:, places] @ weights
        return scores

    return score
