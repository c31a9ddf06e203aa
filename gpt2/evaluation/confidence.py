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
"""How much a temperature of 1 is believed beforehand: 1 / temperature has a Gamma distribution with its mode at 1; its
logarithm deviates by about 1 / sqrt(PRIOR). A few dozen examples outweigh it, ten do not."""


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the (N, classes) probabilities of logits, divided by the temperature first."""
    return special.softmax(logits / temperature, axis=1)


def log_loss(logits: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """Return the mean cross-entropy (nats) of the (N, classes) target probabilities."""
    return float(-(targets * special.log_softmax(logits / temperature, axis=1)).sum(1).mean())


def smoothed(truth: np.ndarray, classes: int) -> np.ndarray:
    """(N, classes) targets: one more example of each class than there are (Platt 1999), so that few examples, all of
    them right, do not ask for certainty."""
    targets = np.full((len(truth), classes), 1.0)
    targets[np.arange(len(truth)), truth] += len(truth)
    return targets / (len(truth) + classes)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature, between 0.05 and 20, that is likeliest for (N, classes) logits of the (N,) truth; near 1 where
    few examples say otherwise.

    Loss and prior are convex in 1 / temperature, so that a golden-section search finds it; rounded to three digits.
    `scipy.optimize.minimize_scalar` ends elsewhere in the third digit where float32 logits make the loss uneven.
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
"""Of a setting that people type."""
TOLD = 0.8
"""The coverage that a sentence tells."""
FEW = 20
"""Texts without which a curve goes on to none."""
HEADING = "Where to abstain: what the labels of the surest texts are worth"


def threshold(confidence: np.ndarray, coverage: float) -> float:
    """The largest `abstain_below` of `DIGITS` digits that leaves at least this share of the (N,) texts labelled."""
    if coverage >= 1:
        return 0.0
    kept = max(1, math.ceil(coverage * len(confidence) - 1e-9))
    last, step = float(np.sort(confidence)[-kept]), 10**-DIGITS
    least = round(math.floor(last / step) * step, DIGITS)
    return least if least <= last else round(least - step, DIGITS)  # a quotient may be rounded up to a whole number


def rows(truth: np.ndarray, probabilities: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Of each of `COVERAGES`: `abstain_below`, and with that very setting `texts` that keep a label, their share
    `coverage`, `accuracy` with its 95 % `interval` (Wilson), `macro_f1`, and of each label's texts what is `left_out`.

    `truth` is (N,) class indices, `probabilities` (N, classes). Equal settings are told once.
    """
    confidence, found = probabilities.max(1), []
    for least in dict.fromkeys(threshold(confidence, coverage) for coverage in COVERAGES):
        sure = confidence >= least
        measured = classification(truth[sure], probabilities[sure], labels)
        count = int(sure.sum())
        low, high = wilson(np.array([measured["accuracy"] * count]), np.array([count]))
        left = {label: float((~sure[truth == i]).mean()) for i, label in enumerate(labels) if (truth == i).any()}
        found.append(
            {
                "abstain_below": least, "texts": count, "coverage": count / len(truth),
                "accuracy": measured["accuracy"], "interval": [float(low[0]), float(high[0])],
                "macro_f1": measured["macro_f1"], "left_out": left,
            }
        )  # fmt: skip
    return found


def table(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The report's table of `rows`, {heading: {header, rows}}."""
    header = ["abstain_below", "texts with a label", "of all", "accuracy, 95 % interval", "macro f1", "most left out"]
    lines = []
    for row in found:
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


def remark(found: Sequence[dict[str, Any]]) -> str:
    """What abstaining would bring, in a sentence."""
    whole, row = found[0], min(found, key=lambda row: abs(row["coverage"] - TOLD))
    if row is whole:
        return (
            "It is equally sure of nearly all texts: abstaining (abstain_below) would leave out none, or most of them."
        )
    return (
        f"With abstain_below={row['abstain_below']:g} it labels {row['coverage']:.0%} of these texts, and "
        f"{row['accuracy']:.0%} of those rightly, instead of {whole['accuracy']:.0%} of all."
    )


def curve(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(texts kept, of these right), both (n,), at each confidence that occurs, the surest first: texts of the same
    confidence are kept or left together. Begins at `FEW` texts."""
    order = np.argsort(-confidence, kind="stable")
    kept, hits = np.arange(1, len(order) + 1), np.cumsum(right[order])
    last = np.append(np.diff(confidence[order]) != 0, True) & (kept >= min(FEW, len(order)))
    return kept[last], hits[last]
