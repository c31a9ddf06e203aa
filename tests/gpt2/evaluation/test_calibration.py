"""A temperature beside scipy's minimiser and Gamma distribution, what it mends, and what it costs on few texts."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import gamma

from gpt2.evaluation.confidence import PRIOR, fit_temperature, log_loss, smoothed, softmax
from gpt2.evaluation.metrics import calibration_error


def overconfident(n, factor, seed=0):
    """Logits that are `factor` times too large, and the truth drawn from what they ought to say."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, 3)) * 1.5
    truth = (softmax(logits).cumsum(1) > generator.random((n, 1))).argmax(1)
    return factor * logits, truth


def likeliest(logits, truth):
    """By the examples alone."""
    targets = smoothed(truth, 3)
    return minimize_scalar(lambda t: log_loss(logits, targets, t), bounds=(0.05, 20), method="bounded").x


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_is_the_best_and_mends_the_calibration(factor):
    logits, truth = overconfident(3000, factor)
    found = fit_temperature(logits, truth)
    assert found == pytest.approx(likeliest(logits, truth), rel=0.02) and found == pytest.approx(factor, rel=0.08)
    others, theirs = overconfident(3000, factor, seed=1)
    before, after = (calibration_error(theirs, softmax(others, t)) for t in (1.0, found))
    assert after < 0.03 and (factor == 1 or before > 3 * after)
    assert (softmax(others).argmax(1) == softmax(others, found).argmax(1)).all()


@pytest.mark.parametrize(("n", "factor"), [(3, 0.02), (10, 1.0), (10, 8.0), (200, 0.4)])
def test_it_is_the_mode_of_the_posterior(n, factor):
    logits, truth = overconfident(n, factor)
    targets, prior = smoothed(truth, 3), gamma(PRIOR + 1, scale=1 / PRIOR)
    inverse = np.linspace(0.05, 20, 4001)
    posterior = [-n * log_loss(logits, targets, 1 / b) for b in inverse] + prior.logpdf(inverse)
    assert 1 / fit_temperature(logits, truth) == pytest.approx(inverse[posterior.argmax()], abs=4e-3, rel=2e-3)


def test_many_examples_alone_decide():
    for factor in (0.4, 3.0):
        logits, truth = overconfident(8000, factor)
        assert fit_temperature(logits, truth) == pytest.approx(likeliest(logits, truth), rel=8e-3)


def cost(n, factors, fit):
    """Mean over draws of n examples: what a fitted temperature adds to the loss on all others (nats)."""
    others, found = overconfident(2000, 1.0, seed=10**6)[0], []
    true = softmax(others)
    for seed, factor in enumerate(factors):
        logits = factor * others
        temperature = fit(*overconfident(n, factor, seed))
        found.append(log_loss(logits, true, temperature) - log_loss(logits, true, 1.0))
    return float(np.mean(found))


def costs(draws):
    factors = np.exp(np.random.default_rng(2).normal(0, 0.5, draws))
    for n in (10, 20, 50):
        mean, alone = cost(n, factors, fit_temperature), cost(n, factors, likeliest)
        print(f"{n} examples: {mean:+.4f} nats a text, without the prior {alone:+.4f}")
        assert mean < 0 and (n > 10 or mean < alone)  # better than no temperature
        harm, before = cost(n, np.ones(draws), fit_temperature), cost(n, np.ones(draws), likeliest)
        print(f"{n} examples of a model that needs none: {harm:+.4f}, without the prior {before:+.4f}")
        assert harm < {10: 0.5, 20: 0.7, 50: 0.9}[n] * before


def test_few_examples_do_not_make_it_worse_on_average():
    costs(30)


@pytest.mark.slow
def test_few_examples_do_not_make_it_worse_on_average_in_many_draws():
    costs(1500)


def test_few_examples_that_are_all_right_do_not_ask_for_certainty():
    logits = np.tile([[2.0, 0.0], [0.0, 2.0]], (5, 1))
    found = fit_temperature(logits, np.tile([0, 1], 5))
    assert softmax(logits).max() < softmax(logits, found).max() < 11 / 12
    assert fit_temperature(np.zeros((0, 2)), np.zeros(0, int)) == 1
