"""Probabilities that mean what they say: one temperature, fitted on held-out examples (Guo et al. 2017)."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

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
