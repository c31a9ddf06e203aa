"""Baselines: probabilities, and item-kNN beside brute force."""

import numpy as np
import pytest

from gpt2 import baselines


def test_majority_is_the_shares():
    probabilities = baselines.majority(np.array([0, 0, 0, 1]), 5, 3)
    assert probabilities.shape == (5, 3)
    assert probabilities[4].tolist() == [0.75, 0.25, 0]


def test_tfidf_learns_and_gives_probabilities():
    texts = [f"{'good fine' if i % 2 else 'bad awful'} film {i % 7}" for i in range(200)]
    labels = np.array([2 * (i % 2) for i in range(200)])  # class 1 is never seen
    probabilities = baselines.tfidf_logistic_regression(texts, labels, ["a good film", "an awful film"], 3)
    assert probabilities.argmax(1).tolist() == [2, 0]
    assert probabilities.sum(1) == pytest.approx(1)
    assert (probabilities[:, 1] == 0).all()


def test_popularity_counts():
    assert baselines.popularity([np.array([0, 2]), np.array([2])], 4).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("neighbours", [3, 50])
def test_item_knn_is_brute_force(neighbours):
    generator = np.random.default_rng(0)
    n_users, n_items = 400, 20  # so many that no two similarities tie at the cut
    histories = [generator.choice(n_items, generator.integers(2, 8), replace=False) for _ in range(n_users)]
    seen = np.zeros((n_users, n_items))
    for user, items in enumerate(histories):
        seen[user, items] = 1
    similarity = np.zeros((n_items, n_items))
    for a in range(n_items):
        for b in range(n_items):
            norm = np.linalg.norm(seen[:, a]) * np.linalg.norm(seen[:, b])
            similarity[a, b] = seen[:, a] @ seen[:, b] / norm if a != b and norm else 0
    for row in similarity:
        row[row < np.sort(row)[-min(neighbours, n_items)]] = 0
    expected = np.array([[sum(similarity[item, i] for i in h) for item in range(n_items)] for h in histories])
    assert baselines.item_knn(histories, n_items, neighbours) == pytest.approx(expected, abs=1e-5)
