"""What a report says of contamination, and that the gate limits it."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from gpt2.evaluation import contamination
from gpt2.evaluation.contamination import GRAM, NEAR, Hit
from gpt2.gate import verdict_page
from gpt2.gate.config import GateConfig
from tests.gpt2.stored import stored

LABELS = ["a", "b"]
HITS = [
    (contamination.CORPUS, Hit(3, GRAM, "the words of both")),
    (contamination.CORPUS, Hit(3, GRAM, "too, by another worker")),
    (contamination.OTHERS, Hit(3, NEAR, "nearly <b>text</b> 3")),
    (contamination.OTHERS, Hit(1, NEAR, "nearly text 1")),
]


def facts(count=50):
    return contamination.summary(range(count), [f"text {i}" for i in range(count)], HITS, "text", count)


def reported(folder, found):
    truth = np.arange(400) % 2
    predicted = np.where(np.arange(400) % 5 > 0, truth, 1 - truth)
    content = stored(folder / "first", truth, predicted, np.full(400, 0.8), LABELS)
    names = ("task", "title", "primary", "floor", "metrics", "baselines", "counts", "samples")
    more = contamination.attached({name: content[name] for name in names}, found)
    return stored(folder / "report", truth, predicted, np.full(400, 0.8), LABELS, **more)


def test_units_are_counted_once_with_their_ids_and_examples():
    found = facts()
    assert found["contaminated"] == [1, 3] and found["share"] == 2 / 50
    assert [(row["how"], row["units"]) for row in found["by"]] == [(GRAM, 1), (NEAR, 2)]
    assert [(e["id"], e["text"], e["found"]) for e in found["examples"]] == [
        (1, "text 1", "nearly text 1"),
        (3, "text 3", "the words of both"),
    ]
    assert contamination.as_sentence(found).startswith(
        "Contamination: of 50 held-out texts the training text has 2 (4.00%)"
    )


def test_nothing_to_look_for_is_said(tmp_path):
    found = contamination.summary([], [], [], "text", 0)
    content = contamination.attached({"metrics": {"ndcg": 0.1}}, found)
    assert content["metrics"] == {"ndcg": 0.1} and content["contamination"]["units"] == 0
    assert "are choices, not texts" in content["remarks"][0]


def test_the_share_has_an_interval_where_the_others_have():
    content = contamination.attached({"metrics": {"f1": 0.5}, "intervals": {"model": {"f1": [0.4, 0.6]}}}, facts())
    theirs = binomtest(2, 50).proportion_ci(method="wilson")
    assert content["intervals"]["model"]["contamination"] == pytest.approx([theirs.low, theirs.high], abs=1e-4)
    assert content["intervals"]["model"]["f1"] == [0.4, 0.6]
    assert "intervals" not in contamination.attached({"metrics": {"f1": 0.5}}, facts())


@pytest.mark.parametrize(("limit", "passes"), [(0.05, True), (0.04, True), (0.039, False), (0.0, False)])
def test_the_gate_refuses_more_than_its_policy_allows(tmp_path, limit, passes):
    report = reported(tmp_path, facts())
    assert report["metrics"]["contamination"] == 0.04 and report["contamination"]["contaminated"] == [1, 3]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "nearly text 1" in page and "the training text has 2 (4.00%)" in page and "<b>text" not in page
    policy = GateConfig(max_contamination=limit)
    verdict = verdict_page.write(tmp_path / "verdict", tmp_path / "report", None, policy, {})
    [criterion] = [c for c in verdict["criteria"] if c["name"] == "no contamination"]
    assert verdict["promote"] is criterion["passed"] is passes
    assert criterion["figures"]["value"] == 0.04 and criterion["figures"]["limit"] == limit
    word = "within" if passes else "over"
    told = f"the training text has 2 of 50 held-out texts (4.00%), {word} the limit of {limit:.2%}"
    assert criterion["text"] == told and (told in verdict["reasons"]) is not passes
    assert verdict_page.recompute(tmp_path / "verdict") == json.loads(
        (tmp_path / "verdict" / "verdict.json").read_text()
    )


def test_the_samples_pass_by_default():
    """Measured on them: 1.5 % of the documents, 1.3 % of the posts."""
    assert GateConfig().max_contamination >= 3 * 0.016
