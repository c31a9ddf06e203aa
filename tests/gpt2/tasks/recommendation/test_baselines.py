"""Baselines: probabilities, and those of rankings beside brute force."""

import numpy as np
import pytest

from gpt2.tasks.recommendation import hybrid
from gpt2.tasks.sentiment import report

ITEMS = 20


def test_majority_is_the_shares():
    probabilities = report.majority(np.array([0, 0, 0, 1]), 5, 3)
    assert probabilities.shape == (5, 3)
    assert probabilities[4].tolist() == [0.75, 0.25, 0]


def test_tfidf_learns_and_gives_probabilities():
    texts = [f"{'good fine' if i % 2 else 'bad awful'} film {i % 7}" for i in range(200)]
    labels = np.array([2 * (i % 2) for i in range(200)])  # class 1 is never seen
    probabilities = report.tfidf_logistic_regression(texts, labels, ["a good film", "an awful film"], 3)
    assert probabilities.argmax(1).tolist() == [2, 0]
    assert probabilities.sum(1) == pytest.approx(1)
    assert (probabilities[:, 1] == 0).all()


def test_popularity_counts():
    assert hybrid.popularity([np.array([0, 2]), np.array([2])], 4).tolist() == [1, 0, 2, 0]


@pytest.fixture
def histories():
    """So many that no two similarities tie at the cut."""
    generator = np.random.default_rng(0)
    return [generator.choice(ITEMS, generator.integers(2, 15), replace=False) for _ in range(400)]


def seen_by(histories):
    seen = np.zeros((len(histories), ITEMS))
    for user, items in enumerate(histories):
        seen[user, items] = 1
    return seen


def brute_force_cosines(histories, neighbours):
    seen, similarity = seen_by(histories), np.zeros((ITEMS, ITEMS))
    for a in range(ITEMS):
        for b in range(ITEMS):
            norm = np.linalg.norm(seen[:, a]) * np.linalg.norm(seen[:, b])
            similarity[a, b] = seen[:, a] @ seen[:, b] / norm if a != b and norm else 0
    for row in similarity:
        row[row < np.sort(row)[-min(neighbours, ITEMS)]] = 0
    return similarity


@pytest.mark.parametrize("cells", [7, 1000])
@pytest.mark.parametrize("neighbours", [3, 50])
def test_item_knn_is_brute_force(histories, neighbours, cells, monkeypatch):
    monkeypatch.setattr(hybrid, "CELLS", cells * ITEMS)
    similarity = brute_force_cosines(histories, neighbours)
    expected = np.array([[sum(similarity[item, i] for i in h) for item in range(ITEMS)] for h in histories])
    similar = hybrid.cosines(histories, ITEMS, neighbours)
    assert hybrid.item_knn(similar)(histories) == pytest.approx(expected, abs=1e-5)
    last = np.array([
        [sum(0.8**k * similarity[item, i] for k, i in enumerate(h[::-1][:10])) for item in range(ITEMS)]
        for h in histories
    ])  # fmt: skip
    assert hybrid.recent_item_knn(similar)(histories) == pytest.approx(last, abs=1e-5)


def test_ease_solves_each_items_regression_without_itself(histories):
    """B minimises |X - XB|² + λ|B|² with a diagonal of zeros (Steck 2019): column by column a ridge regression on the
    other items."""
    seen = seen_by(histories)
    expected = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = [i for i in range(ITEMS) if i != item]
        x = seen[:, others]
        expected[others, item] = np.linalg.solve(x.T @ x + 100 * np.eye(len(others)), x.T @ seen[:, item])
    assert hybrid.ease(histories, ITEMS)(histories) == pytest.approx(seen @ expected, abs=1e-6)


def test_ease_of_a_large_catalogue_knows_the_most_chosen(histories, monkeypatch):
    monkeypatch.setattr(hybrid, "EASE_ITEMS", 8)
    counts = seen_by(histories).sum(0)
    known = set(np.argsort(-counts, kind="stable")[:8].tolist())
    kept = [np.array([i for i in h if i in known], dtype=int) for h in histories]
    scores = hybrid.ease(histories, ITEMS)(histories)
    assert {i for i in range(ITEMS) if scores[:, i].any()} == known
    monkeypatch.setattr(hybrid, "EASE_ITEMS", ITEMS)
    alone = hybrid.ease(kept, ITEMS)(kept)
    assert scores[:, sorted(known)] == pytest.approx(alone[:, sorted(known)], abs=1e-9)
