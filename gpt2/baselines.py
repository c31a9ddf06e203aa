"""What a model must be measured against: the simple methods that people would use instead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
    model = LogisticRegression(C=4, max_iter=300, tol=1e-3).fit(train, train_labels, weights)
    out = np.zeros((len(test_texts), n_classes))
    out[:, model.classes_] = model.predict_proba(vectorizer.transform(test_texts))
    return out


def popularity(histories: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """(items,) counts of the items in all histories."""
    return np.bincount(np.concatenate(histories), minlength=n_items).astype(float)


def item_knn(histories: Sequence[np.ndarray], n_items: int, neighbours: int = 200) -> np.ndarray:
    """(users, items) scores: the sum of cosine similarities to the user's items, each item's 200 nearest kept.

    Sarwar et al. 2001, on implicit feedback.
    """
    from scipy.sparse import csr_matrix

    rows = np.repeat(np.arange(len(histories)), [len(h) for h in histories])
    columns = np.concatenate(histories)
    seen = csr_matrix((np.ones(len(columns), np.float32), (rows, columns)), shape=(len(histories), n_items))
    seen.data[:] = 1
    similarity = (seen.T @ seen).toarray().astype(np.float32)
    norms = np.sqrt(np.maximum(np.diag(similarity), 1e-9))
    similarity /= norms[:, None] * norms[None, :]
    np.fill_diagonal(similarity, 0)
    if neighbours < n_items:
        cut = np.partition(similarity, -neighbours, axis=1)[:, -neighbours][:, None]
        similarity[similarity < cut] = 0
    return seen @ similarity.T
