"""Confidence: temperature scaling, and accuracy against coverage when the model abstains.

Calibration fits one temperature on held-out examples (Guo et al. 2017). Selective prediction (El-Yaniv and Wiener 2010)
leaves the least sure answers to people: coverage is the share of the texts that keep a label; risk is one minus the
accuracy of those labels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from gpt2.evaluation.metrics import classification
from gpt2.evaluation.significance import wilson

LOWEST, HIGHEST = 0.05, 20.0
PRIOR = 4.0
"""Strength of the prior at temperature 1: 1 / temperature is Gamma distributed with its mode at 1. The standard
deviation of its logarithm is about 1 / sqrt(PRIOR). A few dozen examples outweigh it, ten do not."""


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the (N, classes) probabilities of logits, divided by the temperature first."""
    return special.softmax(logits / temperature, axis=1)


def log_loss(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """Return the mean cross-entropy (nats) of the (N, classes) target probabilities."""
    return float(-(targets * special.log_softmax(logits / temperature, axis=1)).sum(1).mean())


def smoothed(truth: np.ndarray, classes: int) -> np.ndarray:
    """Return (N, classes) smoothed targets: one extra example is added to each class (Platt 1999).

    So a few examples that are all correct do not demand certainty.
    """
    targets = np.full((len(truth), classes), 1.0)
    targets[np.arange(len(truth)), truth] += len(truth)
    return targets / (len(truth) + classes)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """Return the most likely temperature (0.05 to 20) for (N, classes) logits of the (N,) true classes.

    The prior keeps it near 1 if there are few examples. Loss and prior are convex in 1 / temperature, so golden-section
    search finds it. The result is rounded to three digits. `scipy.optimize.minimize_scalar` differs in the third digit
    where float32 logits make the loss uneven.
    """
    if not len(truth):
        return 1.0

    def loss(inverse: float) -> float:
        return log_loss(logits, targets, 1 / inverse) + PRIOR / len(truth) * (inverse - math.log(inverse))

    targets = smoothed(truth, logits.shape[1])
    ratio, low, high = (math.sqrt(5) - 1) / 2, 1 / HIGHEST, 1 / LOWEST
    for _ in range(60):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return round(2 / (low + high), 3)


COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
DIGITS = 3
"""Decimal places of a threshold that people type."""
TYPICAL_COVERAGE = 0.8
"""The coverage that the report's remark describes."""
FEW = 20
"""The fewest texts that a point of the accuracy-coverage curve stands for."""
HEADING = "Where to abstain: what the labels of the surest texts are worth"


def threshold(confidence: np.ndarray, coverage: float) -> float:
    """Return the largest `abstain_below` of `DIGITS` digits that leaves at least this share of the texts labelled.

    `confidence` is (N,), one value per text.
    """
    if coverage >= 1:
        return 0.0
    kept = max(1, math.ceil(coverage * len(confidence) - 1e-9))
    last, step = float(np.sort(confidence)[-kept]), 10**-DIGITS
    least = round(math.floor(last / step) * step, DIGITS)
    return least if least <= last else round(least - step, DIGITS)  # a quotient may be rounded up to a whole number


def rows(truth: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return one point of the accuracy-coverage curve for each of `COVERAGES`; equal thresholds appear once.

    A point holds the threshold `abstain_below`, the number of `texts` that keep a label and their share `coverage`.
    For these texts it gives `accuracy`, its 95 % Wilson `interval` and `macro_f1`. `left_out` is the share of each
    label's texts without an answer. `truth` is (N,) class indices, `probabilities` (N, classes).
    """
    confidence, points = probabilities.max(1), []
    for least in dict.fromkeys(threshold(confidence, coverage) for coverage in COVERAGES):
        sure = confidence >= least
        measured = classification(truth[sure], probabilities[sure], labels)
        count = int(sure.sum())
        low, high = wilson(np.array([measured["accuracy"] * count]), np.array([count]))
        left = {label: float((~sure[truth == i]).mean()) for i, label in enumerate(labels) if (truth == i).any()}
        points.append(
            {
                "abstain_below": least, "texts": count, "coverage": count / len(truth),
                "accuracy": measured["accuracy"], "interval": [float(low[0]), float(high[0])],
                "macro_f1": measured["macro_f1"], "left_out": left,
            }
        )  # fmt: skip
    return points


def table(points: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the report's table of the points of `rows`, {heading: {header, rows}}."""
    header = ["abstain_below", "texts with a label", "of all", "accuracy, 95 % interval", "macro f1", "most left out"]
    lines = []
    for row in points:
        label, share = max(row["left_out"].items(), key=lambda item: item[1])
        low, high = row["interval"]
        accuracy = f"{row['accuracy']:.4f} [{low:.3f}, {high:.3f}]"
        most = f"{label} ({share:.0%})" if share else ""
        lines.append(
            [
                f"{row['abstain_below']:g}", f"{row['texts']:,}", f"{row['coverage']:.0%}", accuracy,
                f"{row['macro_f1']:.4f}", most,
            ]
        )  # fmt: skip
    return {HEADING: {"header": header, "rows": lines}}


def remark(points: Sequence[dict[str, Any]]) -> str:
    """Return a sentence on the accuracy that abstaining would give at about `TYPICAL_COVERAGE`."""
    whole, row = points[0], min(points, key=lambda row: abs(row["coverage"] - TYPICAL_COVERAGE))
    if row is whole:
        return (
            "The model is equally confident of nearly all texts: abstaining (abstain_below) would leave out none, or "
            "most of them."
        )
    return (
        f"With abstain_below={row['abstain_below']:g} the model labels {row['coverage']:.0%} of these texts, with an "
        f"accuracy of {row['accuracy']:.0%} instead of {whole['accuracy']:.0%} on all."
    )


def curve(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (texts kept, correct ones among them), both (n,), for each distinct confidence, highest first.

    Texts of equal confidence are kept or left out together. The curve begins at `FEW` texts.
    """
    order = np.argsort(-confidence, kind="stable")
    kept, hits = np.arange(1, len(order) + 1), np.cumsum(right[order])
    last = np.append(np.diff(confidence[order]) != 0, True) & (kept >= min(FEW, len(order)))
    return kept[last], hits[last]
