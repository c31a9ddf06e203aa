"""Metrics beside scikit-learn and brute force."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from gpt2.evaluation import metrics

LABELS = ["negative", "neutral", "positive"]


@pytest.fixture
def predictions():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 3, 400)
    logits = generator.normal(size=(400, 3)) + 1.5 * np.eye(3)[truth]
    return truth, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_classification_is_scikit_learns(predictions):
    truth, probabilities = predictions
    predicted, ours = probabilities.argmax(1), metrics.classification(truth, probabilities, LABELS)
    assert ours["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted))
    assert ours["macro_f1"] == pytest.approx(reference.f1_score(truth, predicted, average="macro"))
    theirs = reference.precision_recall_fscore_support(truth, predicted)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert [ours[f"{name}_{label}"] for label in LABELS] == pytest.approx(list(values))
    matrix = metrics.confusion_matrix(truth, predicted, 3)
    assert (matrix == reference.confusion_matrix(truth, predicted)).all()


def test_a_class_that_is_never_predicted_counts_as_zero():
    truth, probabilities = np.array([0, 1, 2]), np.tile([0.8, 0.1, 0.1], (3, 1))
    ours = metrics.classification(truth, probabilities, LABELS)
    assert ours["macro_f1"] == pytest.approx(
        reference.f1_score(truth, probabilities.argmax(1), average="macro", zero_division=0)
    )
    assert ours["precision_positive"] == 0


def test_calibration_error_is_brute_force(predictions):
    truth, probabilities = predictions
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == truth
    expected = 0.0
    for b in range(15):
        here = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if here.any():
            expected += here.mean() * abs(confidence[here].mean() - hit[here].mean())
    assert metrics.calibration_error(truth, probabilities) == pytest.approx(expected)
    assert sum(n for _, _, n in metrics.reliability(truth, probabilities)) == len(truth)


def test_certain_and_right_is_calibrated():
    assert metrics.calibration_error(np.array([0, 1]), np.eye(2)) == 0


def test_ranking_is_scikit_learns():
    generator = np.random.default_rng(1)
    scores, relevant = generator.normal(size=(50, 40)), generator.integers(0, 40, 50)
    ranks = np.array([metrics.rank_of(s, r, np.array([], int)) for s, r in zip(scores, relevant, strict=True)])
    ours, truth = metrics.ranking(ranks), np.eye(40)[relevant]
    assert ours["ndcg_at_10"] == pytest.approx(reference.ndcg_score(truth, scores, k=10))
    assert ours["recall_at_10"] == pytest.approx(
        reference.top_k_accuracy_score(relevant, scores, k=10, labels=range(40))
    )
    assert ours["mrr"] == pytest.approx(reference.label_ranking_average_precision_score(truth, scores))


def test_rank_leaves_out_what_was_seen_and_shares_ties():
    scores = np.array([5.0, 4.0, 3.0, 2.0])
    assert metrics.rank_of(scores, 2, np.array([0])) == 2
    assert metrics.rank_of(scores, 2, np.array([0, 2])) == 2  # the item itself stays in
    assert metrics.rank_of(np.zeros(5), 3, np.array([], int)) == 3  # neither the best nor the worst of the tied


def test_language_model_figures():
    figures = metrics.language_model(nll=200 * math.log(8), tokens=200, utf8_bytes=300)
    assert figures["loss"] == pytest.approx(math.log(8))
    assert figures["perplexity"] == pytest.approx(8)
    assert figures["bits_per_byte"] == pytest.approx(2)  # 3 bits a token, 1.5 bytes a token
