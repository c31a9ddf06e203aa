"""A temperature beside scipy's minimiser, and what it mends."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from gpt2.calibration import fit_temperature, log_loss, smoothed, softmax
from gpt2.metrics import calibration_error


def overconfident(n, factor, seed=0):
    """Logits that are `factor` times too large, and the truth drawn from what they ought to say."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, 3)) * 1.5
    truth = np.array([generator.choice(3, p=p) for p in softmax(logits)])
    return factor * logits, truth


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_best_and_mends_the_calibration(factor):
    logits, truth = overconfident(3000, factor)
    found, targets = fit_temperature(logits, truth), smoothed(truth, 3)
    reference = minimize_scalar(lambda t: log_loss(logits, targets, t), bounds=(0.05, 20), method="bounded")
    assert found == pytest.approx(reference.x, abs=2e-3) and found == pytest.approx(factor, rel=0.08)
    others, theirs = overconfident(3000, factor, seed=1)
    before, after = (calibration_error(theirs, softmax(others, t)) for t in (1.0, found))
    assert after < 0.03 and (factor == 1 or before > 3 * after)
    assert (softmax(others).argmax(1) == softmax(others, found).argmax(1)).all()


def test_few_examples_that_are_all_right_do_not_ask_for_certainty():
    logits = np.tile([[2.0, 0.0], [0.0, 2.0]], (5, 1))
    found = fit_temperature(logits, np.tile([0, 1], 5))
    assert softmax(logits, found).max() == pytest.approx(11 / 12, abs=1e-3)
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, int)) == 1
