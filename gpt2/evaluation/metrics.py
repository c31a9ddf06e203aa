"""Metrics of classification, ranking and language modelling, on arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Return (classes, classes) counts; rows are true classes, columns predicted ones."""
    return np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def classification(truth: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Return accuracy, macro-F1, expected calibration error, and precision, recall, F1 and support per class.

    `truth` is (N,) class indices, `probabilities` (N, classes).
    """
    matrix = confusion_matrix(truth, probabilities.argmax(1), len(labels))
    hits, predicted, actual = np.diag(matrix), matrix.sum(0), matrix.sum(1)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(actual, 1)
    f1 = f1_scores(matrix)
    metrics: dict[str, Any] = {
        "macro_f1": float(f1.mean()),
        "accuracy": float(hits.sum() / max(1, matrix.sum())),
        "calibration_error": calibration_error(truth, probabilities),
    }
    for i, label in enumerate(labels):
        metrics |= {
            f"precision_{label}": float(precision[i]),
            f"recall_{label}": float(recall[i]),
            f"f1_{label}": float(f1[i]),
            f"support_{label}": int(actual[i]),
        }
    return metrics


def among(probabilities: np.ndarray, own: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Return a model's (N, own) probabilities as (N, labels); a label unknown to the model gets 1e-12."""
    if list(own) == list(labels):
        return probabilities
    out = np.full((len(probabilities), len(labels)), 1e-12)
    for i, label in enumerate(labels):
        if label in own:
            out[:, i] = probabilities[:, own.index(label)]
    return out


def f1_scores(matrix: np.ndarray) -> np.ndarray:
    """Return (..., classes) F1 scores of (..., classes, classes) counts; 0 for a class neither true nor predicted."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return 2 * hits / np.maximum(matrix.sum(-1) + matrix.sum(-2), 1)


def bin_of(confidence: np.ndarray, bins: int = 15) -> np.ndarray:
    """Return the (N,) indices of the equal-width bins that the confidences fall into."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def reliability(truth: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> list[tuple[float, float, int]]:
    """Return (mean confidence, accuracy, count) of each non-empty equal-width confidence bin."""
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == truth
    which = bin_of(confidence, bins)
    rows = []
    for b in range(bins):
        here = which == b
        if here.any():
            rows.append((float(confidence[here].mean()), float(hit[here].mean()), int(here.sum())))
    return rows


def calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error (Guo et al. 2017): mean gap of confidence and accuracy over the bins."""
    return sum(n * abs(c - a) for c, a, n in reliability(truth, probabilities, bins)) / max(1, len(truth))


def ranking(ranks: np.ndarray, k: int = 10) -> dict[str, float]:
    """Return NDCG@k, recall@k and MRR of queries with one relevant item each, at `ranks` (N,), from 1."""
    inside = ranks <= k
    return {
        f"ndcg_at_{k}": float(np.mean(np.where(inside, 1 / np.log2(ranks + 1.0), 0.0))),
        f"recall_at_{k}": float(np.mean(inside)),
        "mrr": float(np.mean(1 / ranks)),
    }


def rank_of(scores: np.ndarray, item: int, excluded: np.ndarray) -> int:
    """Return the rank, from 1, of `item` by (items,) scores without the excluded items; a tie counts half."""
    allowed = np.ones(len(scores), dtype=bool)
    allowed[excluded] = False
    allowed[item] = False
    rest = scores[allowed]
    return 1 + int((rest > scores[item]).sum()) + int((rest == scores[item]).sum()) // 2


def language_model(nll: float, tokens: int, utf8_bytes: float) -> dict[str, float]:
    """Return loss per token (nats), perplexity and bits per byte of a total negative log-likelihood (nats)."""
    loss = nll / tokens
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_byte": nll / math.log(2) / utf8_bytes}
