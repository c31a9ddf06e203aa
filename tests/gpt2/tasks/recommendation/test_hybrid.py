"""What people chose beside the model's score: features and weights as brute force has them, and what is kept of it."""

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from gpt2.tasks.recommendation import hybrid
from gpt2.tasks.recommendation.hybrid import FILE, Hybrid, fit, following, logit, nearest, normalised, related

ITEMS, USERS = 25, 60


def walks(users=USERS, seed=0):
    """Histories that mostly go to the next item."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(users):
        at, own = int(generator.integers(ITEMS)), []
        while len(own) < 4 + generator.integers(8):
            if at not in own:
                own.append(at)
            at = (at + int(generator.choice([1, 1, 1, 5, 7]))) % ITEMS
        found.append(np.array(own))
    return found


def table(histories):
    counts = np.bincount(np.concatenate(histories), minlength=ITEMS)
    return pd.DataFrame({"popularity": counts, "recent": counts / 2})


def noise(histories, seed=1):
    """Scores of a model that knows nothing; the same for the same history."""
    generator = np.random.default_rng(seed)
    base = generator.normal(size=(ITEMS, ITEMS))
    return np.stack([base[list(h)].sum(0) if len(h) else base[0] for h in histories])


def test_what_follows_is_counted_as_brute_force_counts():
    histories = walks()
    expected = np.zeros((ITEMS, ITEMS))
    for h in histories:
        for a in range(len(h)):
            for b in range(a + 1, min(len(h), a + 5)):
                expected[h[a], h[b]] += 0.7 ** (b - a - 1)
    counts = following(histories, ITEMS, 4, 0.7)
    assert counts.toarray() == pytest.approx(expected, abs=1e-5)
    chosen = np.bincount(np.concatenate(histories), minlength=ITEMS)
    expected /= np.sqrt(np.outer(chosen + 1, chosen + 1))
    assert normalised(counts, histories).toarray() == pytest.approx(expected, abs=1e-6)


def test_of_each_item_the_closest_are_kept(monkeypatch):
    monkeypatch.setattr(hybrid, "NEIGHBOURS", 3)
    matrix = following(walks(), ITEMS, 10, 0.8)
    found, full = nearest(matrix).toarray(), matrix.toarray()
    for item in range(ITEMS):
        best = np.sort(full[:, item])[-3]
        assert (found[:, item] == np.where(full[:, item] >= best, full[:, item], 0)).all()
    kept = related(walks(), ITEMS)["EASE"].toarray()
    assert ((kept != 0).sum(0) == 3).all()


def test_weights_are_those_that_made_the_choices():
    """Choices drawn by known weights: they are found again."""
    generator = np.random.default_rng(0)
    true, features = np.array([1.0, -0.5, 0.8]), generator.normal(size=(3000, ITEMS, 3)).astype(np.float32)
    allowed = generator.random((3000, ITEMS)) < 0.7
    scores = np.where(allowed, features @ true, -np.inf) + generator.gumbel(size=allowed.shape)
    found = logit(features, allowed, scores.argmax(1), np.zeros(3))
    assert found == pytest.approx(true, abs=0.1)
    assert (found == logit(features, allowed, scores.argmax(1), np.zeros(3))).all()


def test_few_choices_leave_the_model_as_it_is():
    generator, start = np.random.default_rng(0), np.array([2.0, 0.0])
    features = generator.normal(size=(1, ITEMS, 2)).astype(np.float32)
    found = logit(features, np.ones((1, ITEMS), bool), np.array([3]), start)
    assert np.abs(found - start).max() < 2 and not (found == start).all()


def test_what_is_fitted_ranks_as_its_features_say_and_better_than_noise(tmp_path):
    histories = walks(300)
    read, wanted = [h[:-1] for h in histories], [h[-1] for h in histories]
    trained = [h[:-2] for h in histories]
    found = fit(noise, read, table(trained))
    scores = found.scores(noise(read), read)
    relations = {name: m.toarray() for name, m in related(trained, ITEMS).items()}
    counts = np.bincount(np.concatenate(trained), minlength=ITEMS)
    w = found.weights
    for user in range(0, 300, 37):
        expected = w["model"] * noise([read[user]])[0]
        expected = expected + w["popularity"] * np.log1p(counts) + w["recent popularity"] * np.log1p(counts / 2)
        for k, item in enumerate(read[user][::-1]):
            for name in ("chosen by the same", "chosen nearby", "chosen before"):
                expected = expected + (w[name] * 0.8**k * relations[name][item] if k < 10 else 0)
            expected = expected + w["EASE"] * relations["EASE"][item]
        assert scores[user] == pytest.approx(expected, abs=1e-3)

    def hits(values):
        ranked = zip(values, read, wanted, strict=True)
        return np.mean([(np.delete(row, own) > row[item]).sum() < 3 for row, own, item in ranked])

    assert hits(scores) > 2 * hits(noise(read))
    found.save(tmp_path)
    again = Hybrid.load(tmp_path, found.weights, ITEMS)
    assert again.scores(noise(read), read) == pytest.approx(scores, abs=1e-4)
    empty = np.array([], dtype=int)
    assert (found.scores(noise([empty]), [empty]) == noise([empty]).astype(np.float32)).all()


def test_what_is_the_same_for_all_items_does_no_harm():
    """As popularity of late where all was at one moment long ago, or a model that says nothing."""
    histories, popular = walks(200), table(walks(200)).assign(recent=1.0)
    found = fit(lambda read: np.full((len(read), ITEMS), 7.3, np.float32), histories, popular)
    values = np.array(list(found.weights.values()))
    assert np.isfinite(values).all() and np.abs(values).max() < 100 and found.recent.nnz and found.whole.nnz
    assert found.weights["recent popularity"] == pytest.approx(0, abs=1e-6)


def test_what_is_held_out_changes_nothing():
    """Of the validation's choice only the weights know: no count and no pair is of it."""
    histories = walks(80)
    popular = table([h[:-1] for h in histories])
    changed = [np.append(h[:-1], next(i for i in range(ITEMS) if i not in h)) for h in histories]
    first, second = fit(noise, histories, popular), fit(noise, changed, popular)
    assert first.weights != second.weights
    kept, same = (each.whole.toarray() / each.weights["EASE"] for each in (first, second))
    assert kept == pytest.approx(same, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("damage", ["none", "missing", "other catalogue", "beyond"])
def test_damaged_files_are_refused_by_name(tmp_path, damage):
    found = fit(noise, walks(), table(walks()))
    found.save(tmp_path)
    tensors = load_file(tmp_path / FILE)
    if damage == "none":
        (tmp_path / FILE).unlink()
    elif damage == "missing":
        del tensors["recent.items"]
    elif damage == "beyond":
        tensors["recent.items"][0] = ITEMS + 3
    if damage != "none":
        save_file(tensors, tmp_path / FILE)
    with pytest.raises(ValueError, match=FILE):
        Hybrid.load(tmp_path, found.weights, ITEMS - 1 if damage == "other catalogue" else ITEMS)
