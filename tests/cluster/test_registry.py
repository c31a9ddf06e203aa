"""The gate: better than the simple baseline, not worse than the champion, and it says why."""

import math

import pytest

from cluster.registry import gate, signature


def report(value, floor=0.5, up=True, metric="macro_f1"):
    return {
        "primary": {"name": metric, "higher_is_better": up},
        "metrics": {metric: value},
        "baselines": {"majority": {metric: floor}, "strong": {metric: 0.99 if up else 0.01}},
        "floor": "majority",
    }


@pytest.mark.parametrize(
    ("candidate", "champion", "promote", "reason"),
    [
        (report(0.6), None, True, "no champion"),
        (report(0.5), None, False, "not better than the simple baseline"),
        (report(0.4), None, False, "0.4000 against 0.5000 of the baseline 'majority'"),
        (report(0.6), report(0.55), True, "not worse than the champion"),
        (report(0.6), report(0.6), True, "not worse than the champion"),
        (report(0.6), report(0.7), False, "worse than the champion: macro_f1 0.6000 against the champion's 0.7000"),
        (report(2.0, 3.0, up=False), report(2.1, 3.0, up=False), True, "not worse"),
        (report(2.2, 3.0, up=False), report(2.1, 3.0, up=False), False, "worse than the champion"),
        (report(3.1, 3.0, up=False), None, False, "not better than the simple baseline"),
        (report(math.nan), None, False, "nan"),
    ],
)
def test_gate(candidate, champion, promote, reason):
    verdict = gate(candidate, champion)
    assert verdict.promote is promote
    assert reason in "; ".join(verdict.reasons)


def test_signature_of_texts_and_of_records():
    import pandas as pd

    texts = signature(["a"], pd.DataFrame({"label": ["x"], "probability": [0.5]}), {})
    assert str(texts.inputs.inputs[0].type) == "DataType.string"
    records = signature([{"history": ["a"], "candidates": ["b"]}], pd.DataFrame({"n": [1]}), {"top_k": 3})
    assert [(c.name, c.required) for c in records.inputs.inputs] == [("history", True), ("candidates", False)]
    assert records.params.params[0].name == "top_k"
