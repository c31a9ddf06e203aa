"""Metrics of classification, ranking and language modelling, on arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """(classes, classes) counts; rows are the truth."""
    return np.bincount(truth * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def classification(truth: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1, expected calibration error, and precision, recall, F1 and support per class.

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
    """(N, labels) of a model's (N, own) probabilities: of a label that it does not have next to nothing."""
    if list(own) == list(labels):
        return probabilities
    out = np.full((len(probabilities), len(labels)), 1e-12)
    for i, label in enumerate(labels):
        if label in own:
            out[:, i] = probabilities[:, own.index(label)]
    return out


def f1_scores(matrix: np.ndarray) -> np.ndarray:
    """(..., classes, classes) counts to (..., classes); 0 for a class that is neither there nor predicted."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    return 2 * hits / np.maximum(matrix.sum(-1) + matrix.sum(-2), 1)


def bin_of(confidence: np.ndarray, bins: int = 15) -> np.ndarray:
    """(N,) the bin of equal width that each confidence falls into."""
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def reliability(truth: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, count) of each bin of confidence that holds a prediction; equal widths."""
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == truth
    which = bin_of(confidence, bins)
    rows = []
    for b in range(bins):
        here = which == b
        if here.any():
            rows.append((float(confidence[here].mean()), float(hit[here].mean()), int(here.sum())))
    return rows


def calibration_error(truth: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): mean gap of confidence and accuracy over the bins."""
    return sum(n * abs(c - a) for c, a, n in reliability(truth, probabilities, bins)) / max(1, len(truth))


def ranking(ranks: np.ndarray, k: int = 10) -> dict[str, float]:
    """NDCG@k, recall@k and MRR where each query has one relevant item at `ranks` (N,), from 1."""
    inside = ranks <= k
    return {
        f"ndcg_at_{k}": float(np.mean(np.where(inside, 1 / np.log2(ranks + 1.0), 0.0))),
        f"recall_at_{k}": float(np.mean(inside)),
        "mrr": float(np.mean(1 / ranks)),
    }


def rank_of(scores: np.ndarray, item: int, excluded: np.ndarray) -> int:
    """Rank, from 1, of `item` among (items,) scores without the excluded; ties count half of those tied."""
    allowed = np.ones(len(scores), dtype=bool)
    allowed[excluded] = False
    allowed[item] = False
    rest = scores[allowed]
    return 1 + int((rest > scores[item]).sum()) + int((rest == scores[item]).sum()) // 2


def language_model(nll: float, tokens: int, utf8_bytes: float) -> dict[str, float]:
    """Loss per token (nats), perplexity and bits per byte from a sum of negative log-likelihoods in nats."""
    loss = nll / tokens
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "bits_per_byte": nll / math.log(2) / utf8_bytes}
