"""The linear model beside the network: like scikit-learn's own, honest of its training texts, whole on disk."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from gpt2.tasks.sentiment import ngrams
from gpt2.tasks.sentiment.ngrams import BUCKETS, FOLDS, Ngrams, fit
from gpt2.tasks.sentiment.report import tfidf_logistic_regression

WORDS = {0: ["awful", "rude", "late"], 1: ["a", "seat", "by"], 2: ["lovely", "kind", "quick"]}


def examples(n: int, seed: int = 0, noise: float = 0.2) -> tuple[list[str], np.ndarray]:
    """Texts whose words tell the label, and labels of which some are wrong."""
    drawn = np.random.default_rng(seed)
    labels = drawn.integers(0, 3, n)
    texts = [f"{drawn.choice(WORDS[label])} flight {i} {drawn.choice(WORDS[1])}" for i, label in enumerate(labels)]
    wrong = drawn.random(n) < noise
    labels[wrong] = drawn.integers(0, 3, wrong.sum())
    return texts, labels


def reference(features, mine, counted=None):
    """(coefficients, intercept) of scikit-learn on features that say by how much they tell `mine` from the others."""
    present = np.asarray(features.todense()) > 0
    inside, outside = 1.0 + present[mine].sum(0), 1.0 + present[~mine].sum(0)
    scale = 0.2 + np.sqrt(np.abs(np.log(inside / inside.sum() / (outside / outside.sum()))))
    inverse_penalty = max(1, present.sum() / len(present) / 100)
    model = LogisticRegression(C=inverse_penalty, solver="liblinear", tol=1e-2)
    model.fit(csr_matrix(features.multiply(scale)), mine, counted)
    return model.coef_[0] * scale, model.intercept_[0]


def test_it_is_the_mean_of_what_scikit_learn_fits_to_each_part():
    texts, labels = examples(60)
    found, held_out = fit(texts, labels, 3)
    plain = {"n_features": BUCKETS, "alternate_sign": False, "norm": None}
    reader = make_pipeline(
        make_union(
            HashingVectorizer(ngram_range=(1, 2), **plain),
            HashingVectorizer(ngram_range=(2, 5), analyzer="char_wb", **plain),
        ),
        TfidfTransformer(sublinear_tf=True),
    )
    features, new = reader.fit_transform(texts), reader.transform(["a rude seat", "", "lovely"])
    expected = np.zeros((3, 3))
    theirs = np.zeros((60, 3))
    for k in range(FOLDS):
        mine = np.arange(60) % FOLDS == k
        for label in range(3):
            weights, bias = reference(features[~mine], labels[~mine] == label)
            theirs[mine, label] = features[mine] @ weights + bias
            expected[:, label] += (new @ weights + bias) / FOLDS
    temperature = np.median(theirs / held_out)
    np.testing.assert_allclose(held_out * temperature, theirs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        found.logits(["a rude seat", "", "lovely"]) * temperature, expected, rtol=1e-3, atol=1e-4
    )


def test_of_two_labels_each_is_what_scikit_learn_fits_to_it():
    texts, labels = examples(200)
    features = ngrams.weighted(ngrams.counts(texts), np.ones(2 * BUCKETS, np.float32))
    drawn, both = np.random.default_rng(0).random(200), labels > 0
    for counted in (None, drawn):
        weights, bias = ngrams.one_against_rest(features, both.astype(int), 2, counted)
        for label in (0, 1):
            theirs, intercept = reference(features, both == label, counted)
            np.testing.assert_allclose(weights[:, label], theirs, rtol=1e-3, atol=1e-4)
            assert bias[label] == pytest.approx(intercept, rel=1e-3, abs=1e-4)
    for only in (0, 1):
        weights, bias = ngrams.one_against_rest(features, np.full(200, only), 2, None)
        assert not weights.any() and bias[only] == -bias[1 - only] > 5


def test_longer_texts_are_penalised_less(monkeypatch):
    texts = [" ".join(f"w{i * j % 997}" for j in range(250)) for i in range(1, 41)]
    labels = np.arange(40) % 2
    features = ngrams.weighted(ngrams.counts(texts), np.ones(2 * BUCKETS, np.float32))
    assert features.nnz / 40 > 500
    weights, _ = ngrams.one_against_rest(features, labels, 2, None)
    np.testing.assert_allclose(weights[:, 1], reference(features, labels == 1)[0], rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(ngrams, "PER_NGRAM", 0.0)
    assert np.abs(ngrams.one_against_rest(features, labels, 2, None)[0]).max() < 0.8 * np.abs(weights).max()


def test_of_its_training_texts_it_says_what_it_would_say_of_new_ones():
    """Labels by chance: who learned from a text knows its label by heart, who did not can't."""
    drawn = np.random.default_rng(1)
    texts = [f"word{i} other{i}" for i in range(400)]
    labels = drawn.integers(0, 2, 400)
    found, held_out = fit(texts, labels, 2)
    assert (found.logits(texts).argmax(1) == labels).mean() > 0.9
    assert 0.4 < (held_out.argmax(1) == labels).mean() < 0.6


def test_weights_decide_and_a_label_without_examples_is_unlikely():
    texts, labels = ["same words"] * 40, np.array([0, 0, 0, 0, 1, 1, 1, 1] * 5)
    for heavy in (0, 1):
        weights = np.where(labels == heavy, 10.0, 0.1)
        assert fit(texts, labels, 3, weights)[0].logits(["same words"])[0].argmax() == heavy
    assert fit(texts, labels, 3)[0].logits(["same words"])[0].argmin() == 2


def test_it_is_read_again_as_it_was_and_refused_where_it_does_not_fit(tmp_path):
    assert Ngrams.load(tmp_path, 3) is None
    texts, labels = examples(40)
    found, _ = fit(texts, labels, 3)
    found.save(tmp_path)
    again = Ngrams.load(tmp_path, 3)
    assert again is not None and again.characters and (again.logits(texts) == found.logits(texts)).all()
    found_again, _ = fit(texts, labels, 3)
    assert (found_again.weights == found.weights).all()
    with pytest.raises(ValueError, match="is it of 2 labels, or from another version"):
        Ngrams.load(tmp_path, 2)


def test_collisions_apart_the_buckets_hold_what_the_texts_have():
    found = ngrams.counts(["good good day"])
    assert found.shape == (1, 2 * BUCKETS)
    words = found[0, :BUCKETS]
    assert words.sum() == 5  # good, good, day, good good, good day


def test_an_older_model_reads_scripts_without_spaces_as_it_learned_them(tmp_path):
    texts, labels = examples(40)
    found, _ = fit(texts, labels, 3)
    older = Ngrams(found.idf, found.weights, found.bias, characters=False)
    older.save(tmp_path)
    again, chinese = Ngrams.load(tmp_path, 3), ["房间不错，服务也好"]
    assert again is not None and not again.characters and (again.logits(texts) == found.logits(texts)).all()
    plain = {"n_features": BUCKETS, "alternate_sign": False, "norm": None}
    old = HashingVectorizer(ngram_range=(1, 2), **plain).transform(chinese)
    assert (
        (ngrams.counts(chinese, False)[:, :BUCKETS] != old).nnz == 0 < (ngrams.counts(chinese)[:, :BUCKETS] != old).nnz
    )


def test_in_scripts_without_spaces_it_and_the_baseline_reach_character_ngrams_in_a_linear_svm():
    """Two characters, glued into clauses, tell the label; the labels share these characters."""
    drawn = np.random.default_rng(0)
    plain = [chr(c) for c in range(ord("一"), ord("一") + 300)]
    telling = {0: ["很差", "不好", "失望"], 1: ["很好", "不差", "望失"]}
    labels = drawn.integers(0, 2, 800)
    texts = []
    for label in labels:
        row = drawn.choice(plain, 30).tolist()
        row.insert(int(drawn.integers(30)), drawn.choice(telling[label if drawn.random() < 0.95 else 1 - label]))
        texts.append("".join(row) + "。")
    train, test, known, truth = texts[:600], texts[600:], labels[:600], labels[600:]
    svm = make_pipeline(TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True), LinearSVC())
    reached = (svm.fit(train, known).predict(test) == truth).mean()
    baseline = tfidf_logistic_regression(train, known, test, 2).argmax(1)
    linear = fit(train, known, 2)[0].logits(test).argmax(1)
    assert reached > 0.8 and (baseline == truth).mean() > reached - 0.02 and (linear == truth).mean() > reached - 0.02
