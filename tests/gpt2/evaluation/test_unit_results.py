"""What is computed from sums is what is computed from the predictions."""

import numpy as np
import pytest

from gpt2.evaluation import metrics, unit_results

LABELS = ["a", "b", "c"]


def classified(n=500, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 3, n)
    systems = {}
    for name in ("model", "other"):
        logits = generator.normal(size=(n, 3)) + np.eye(3)[truth]
        systems[name] = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth, systems


def test_classification_is_as_its_metrics():
    truth, systems = classified()
    answers = {name: (p.argmax(1), p.max(1)) for name, p in systems.items()}
    found = unit_results.classification(truth, answers, LABELS, "k", {"even": np.arange(500) % 2 == 0})
    for name, p in systems.items():
        expected = metrics.classification(truth, p, LABELS)
        for metric in found.metrics:
            assert found.value(metric, name) == pytest.approx(expected[metric])
            low, high = found.summary()["intervals"][name][metric]
            assert low <= expected[metric] <= high
    part = metrics.classification(truth[::2], systems["model"][::2], LABELS)
    assert found.part("even").value("accuracy") == pytest.approx(part["accuracy"])
    [row] = found.summary()["slices"]
    assert row["units"] == 250 and row["value"] == pytest.approx(part["accuracy"])
    lean = found.lean()
    assert lean.value("macro_f1") == pytest.approx(found.value("macro_f1")) and lean.width < found.width


def test_a_gain_is_a_gain_whichever_way_the_metric_goes():
    truth, systems = classified()
    answers = {name: (p.argmax(1), p.max(1)) for name, p in systems.items()}
    answers["model"] = (np.where(np.arange(500) % 4 > 0, truth, answers["model"][0]), answers["model"][1])
    found = unit_results.classification(truth, answers, LABELS, "k", {})
    assert found.drawn.value(found.gain("accuracy", "other")) > 0
    worse = found.value("calibration_error") - found.value("calibration_error", "other")
    assert found.drawn.value(found.gain("calibration_error", "other")) == pytest.approx(-worse)
    told = found.difference("other")["accuracy"]
    assert told["probability"] > 0.99 and told["p"] < 0.01 and told["interval"][0] > 0


def test_ranking_is_as_its_metrics():
    ranks = np.random.default_rng(0).integers(1, 60, 200)
    found = unit_results.ranking(
        {"model": ranks, "popularity": ranks[::-1]}, "k", {"none": ranks > 1000, "far": ranks > 30}
    )
    for metric, value in metrics.ranking(ranks).items():
        assert found.value(metric) == pytest.approx(value)
    [row] = found.summary()["slices"]  # not the empty one
    assert row["slice"] == "far" and row["value"] == 0 and row["interval"] is None


def test_a_language_models_parts_are_as_its_metrics():
    generator = np.random.default_rng(0)
    tokens = generator.integers(10, 90, 40).astype(float)
    nll, size, part = 2.5 * tokens + generator.normal(size=40), 4 * tokens, np.repeat(["old", "new"], 20)
    found = unit_results.language_model({"model": nll, "unigram": 2 * nll}, tokens, size, part, "k", "document")
    whole = metrics.language_model(nll.sum(), tokens.sum(), size.sum())
    new = metrics.language_model(nll[20:].sum(), tokens[20:].sum(), size[20:].sum())
    for metric, value in (*whole.items(), ("bits_per_byte_new", new["bits_per_byte"])):
        assert found.value(metric) == pytest.approx(value)


def test_the_key_tells_other_units_and_another_order():
    assert unit_results.key_of(["a", "b"], [1, 2]) == unit_results.key_of(["a", "b"], [1, 2])
    assert len({unit_results.key_of(x) for x in (["a", "b"], ["b", "a"], ["ab", ""], ["a"], ["\ud800"])}) == 5
