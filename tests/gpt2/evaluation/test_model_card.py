"""A model's card has what a stranger asks, for every task."""

import pytest

from gpt2.evaluation.model_card import card
from gpt2.pages.markdown import table
from gpt2.tasks.base.kind import BASE
from gpt2.tasks.task import Task, kind, registered_name, tasks

REPORT = {
    "title": "A title",
    "primary": {"name": "macro_f1", "higher_is_better": True},
    "metrics": {"macro_f1": 0.7},
    "baselines": {"TF-IDF": {"macro_f1": 0.75}},
    "notes": ["The model LOSES to the baseline TF-IDF on macro_f1: 0.7000 against 0.7500."],
    "counts": {"test": 7000},
}


@pytest.mark.parametrize("name", [BASE.name, *tasks()])
def test_the_card_of_every_task(name):
    registered, lineage = registered_name(name), [("base model", "`base/0123`")]
    text = card(kind(name), registered, REPORT, [("text", "reviews|all")], [("seed", 0)], lineage)
    for heading in ("Intended use", "Results beside baselines", "Data", "Training", "Limits", "Lineage", "How to load"):
        assert f"\n## {heading}\n" in text
    assert "test 7,000" in text and "LOSES" in text and "| macro f1 | 0.7000 | 0.7500 |" in text
    assert "reviews\\|all" in text and "`base/0123`" in text
    assert f'gpt2.load("models:/gpt2-{name}@champion")' in text
    assert Task.use not in text and Task.limits[0] not in text  # every task states its own


def test_what_it_knows_of_canaries_is_among_the_limits():
    group = {"repeats": 10, "canaries": 3, "exposure": 12.5, "interval": None, "largest": 14.0}
    facts = {"space": 1000, "references": 99, "most": 29.9, "passes": None, "groups": [group]}
    text = card(BASE, registered_name(BASE.name), {**REPORT, "canaries": facts}, [], [], [])
    limits = text.partition("## Limits")[2].partition("## Lineage")[0]
    assert "planted 10 times in the training text, have an exposure of 12.5 bits" in limits
    assert "Memorisation" not in card(BASE, registered_name(BASE.name), REPORT, [], [], [])


def test_cells_stay_cells():
    assert table(["a"], [["one\ntwo | three"]]).splitlines()[-1] == "| one two \\| three |"
