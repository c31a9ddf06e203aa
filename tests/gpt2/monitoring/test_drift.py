"""Drift: nothing where both are of the same kind, found where they are not."""

import numpy as np
import pandas as pd

from gpt2.monitoring.alerts import LEAST, MEASURES, compare, measure, psi, token_shares


def sample(generator, size, shift=0.0):
    return pd.DataFrame({name: generator.gamma(3, 1, size) + shift * (name == "surprise") for name in MEASURES})


def test_samples_of_one_distribution_stay_far_below_the_threshold():
    generator = np.random.default_rng(0)
    values = [d.psi for _ in range(50) for d in compare(sample(generator, 2000), sample(generator, 500))]
    assert max(values) < 0.1 and 0.5 < np.mean(values) / (9 * (1 / 2000 + 1 / 500)) < 1.5


def test_what_has_changed_is_named_first():
    generator = np.random.default_rng(1)
    found = compare(sample(generator, 1000), sample(generator, 1000, shift=1.5))
    assert found[0].measure == "surprise" and found[0].psi > 0.25 > found[1].psi
    assert "how unusual the words are" in found[0].sentence()
    assert compare(sample(generator, 1000), sample(generator, LEAST - 1)) == []


def test_psi_by_hand():
    reference = np.repeat([0.0, 1.0], 50)
    value, shares = psi(reference, np.repeat([0.0, 1.0], [20, 80]))
    p, q = np.array([50.5, 50.5]) / 101, np.array([20.5, 80.5]) / 101
    assert len(shares) == 2 or shares[0][0] < 0.01
    assert abs(value - ((q - p) * np.log(q / p)).sum()) < 0.02


def test_measures_of_texts():
    shares = token_shares([[1, 1, 2], [1]], 4)
    assert np.allclose(shares, [1 / 8, 4 / 8, 2 / 8, 1 / 8])
    table = measure([[1, 2], []], shares, np.array([[0.2, 0.8], [0.6, 0.4]]), 0)
    assert table["tokens"].tolist() == [2, 0] and table["score"].tolist() == [0.2, 0.6]
    assert np.isclose(table["surprise"][0], (np.log(2) + np.log(4)) / 2) and table["confidence"].tolist() == [0.8, 0.6]
