"""The behavioural tests of recommenders find planted faults, and count as brute force does."""

import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from gpt2.evaluation.behavioural_tests import tables
from gpt2.tasks.recommendation.catalogue import sentence
from gpt2.tasks.recommendation.report import BEST, CHANGES, CLOSEST, TESTED, lower, suite
from gpt2.tasks.recommendation.task import TASK
from tests.gpt2.tasks.recommendation.test_report import recommender

KINDS = ("drama", "comedy", "western", "noir")
UPPER, LOWER, LINKED, SPACED = (f"all texts {how}: the first item stays the first" for how in CHANGES)
AGAIN = "no title that was chosen is offered again"
KIND = f"users who chose one kind alone are recommended more of it than the {BEST} most popular items have"
NEW = f"users who chose the {CLOSEST} items closest to a new one are recommended that one"
RAISED = "after one more choice the item closest to it ranks no lower"
ORDER = "the item closest to a choice ranks no lower if that was the latest than if it was the first"
ALL = {UPPER, LOWER, LINKED, SPACED, AGAIN, KIND, NEW, RAISED, ORDER}


class Planted:
    """Offers what is like the latest choices, by their kinds and numbers; each fault is planted."""

    def __init__(
        self, items, case=str.lower, link=False, spaces=False, decay=0.8, again=False, new=True, popular=False
    ):
        self.items, self.titles, self.fault = items, items["title"].tolist(), (case, link, spaces)
        self.decay, self.repeats, self.new, self.popular = decay, again, new, popular
        self.features = self.embeddings = self.read(lambda text: text)

    def read(self, change):
        """The kind, and near it the number: what is told of an item, as a vector."""
        case, link, spaces = self.fault
        rows = []
        for title, text in zip(self.titles, self.items["text"], strict=True):
            told = case(change(sentence(title, text)))
            number, kind = int(re.findall(r"\d+", told)[0]), [name in told for name in KINDS]
            if not any(kind) or (link and "http" in told) or (spaces and "  " in told):
                kind = [False] * 4
            angle = number / 40
            rows.append([*(3.0 * k for k in kind), np.cos(angle), np.sin(angle)])
        found = torch.tensor(np.array(rows))
        return found / found.norm(dim=1, keepdim=True)

    def retold(self, items, change):
        other = Planted.__new__(Planted)
        other.__dict__ |= self.__dict__
        other.features = other.embeddings = self.read(change) + 1e-9
        return other

    def scores(self, histories):
        e, rows = self.embeddings.numpy(), []
        for history in histories:
            weights = self.decay ** np.arange(len(history))[::-1]
            row = (weights[:, None] * np.exp(20 * e[history] @ e.T)).sum(0)
            row = self.items["popularity"].to_numpy(float) if self.popular else row
            rows.append(row if self.new else np.where(self.items["popularity"] > 0, row, -1e9))
        return np.array(rows)

    def top(self, scores, seen, k):
        order = np.argsort(-scores, kind="stable")
        return [int(i) for i in order if self.repeats or i not in set(seen)][:k]


@pytest.fixture(scope="module")
def catalogue():
    """(histories, items): people like one kind more than others, and some items nobody has chosen."""
    drawn = np.random.default_rng(3)
    kinds = np.arange(120) % 4
    histories = []
    for user in range(90):
        liked = np.where(kinds == user % 4, 8.0, 1.0) * (np.arange(120) < 112)
        histories.append(drawn.choice(120, 14, replace=False, p=liked / liked.sum()))
    counts = np.bincount(np.concatenate([h[:-2] for h in histories]), minlength=120)
    items = pd.DataFrame({"title": [f"Film {i}" for i in range(120)], "text": [KINDS[k] for k in kinds]})
    return histories, items.assign(popularity=counts)


def failed(predictor, histories, items, disliked=None):
    found = suite(predictor, histories, items, disliked)
    return {test.name: test for test in found}


def shares(found):
    return {name: test.failed.mean() for name, test in found.items()}


def test_a_recommender_that_does_it_all_fails_nothing(catalogue):
    found = failed(Planted(catalogue[1]), *catalogue)
    assert set(found) == ALL and not any(shares(found).values())
    assert len(found[NEW].failed) == 8 and {len(found[name].failed) for name in ALL - {NEW}} == {TESTED}
    ((title, table),) = tables(list(found.values())).items()
    assert title.endswith("with 95 % intervals") and {row[3] for row in table["rows"]} == {
        "0% [0%, 6%]",
        "0% [0%, 32%]",
    }


@pytest.mark.parametrize(
    ("fault", "rows"),
    [
        ({"case": str}, {UPPER}),
        ({"link": True}, {LINKED}),
        ({"spaces": True}, {SPACED}),
        ({"again": True}, {AGAIN}),
        ({"new": False}, {NEW}),
        ({"decay": 1.25}, {ORDER}),
        ({"popular": True}, {KIND, NEW}),
    ],
)
def test_each_fault_is_found_where_it_is(catalogue, fault, rows):
    found = shares(failed(Planted(catalogue[1], **fault), *catalogue))
    assert all(found[name] > 0.2 for name in rows), {name: found[name] for name in rows}
    assert {name for name in found if found[name] > 0.05} == rows


def test_a_choice_that_lowers_what_is_like_it_is_found(catalogue):
    class Bored(Planted):
        def scores(self, histories):
            return -super().scores(histories)

    found = shares(failed(Bored(catalogue[1]), *catalogue))
    assert found[RAISED] > 0.5 and found[ORDER] > 0.5


def test_two_items_of_one_title_are_one_for_people(catalogue):
    histories, items = catalogue
    titles = items["title"].tolist()
    twins = items.assign(title=[titles[i - 4] if i % 8 >= 4 else titles[i] for i in range(120)])
    found = failed(Planted(twins), histories, twins)[AGAIN]
    assert found.failed.mean() > 0.5 and found.example(int(found.failed.argmax())).endswith(", by another id")


def test_what_was_disliked_is_not_offered(catalogue):
    """All that would be offered is disliked: others are, and none of it again."""
    histories, items = catalogue
    disliked = [np.setdiff1d(np.flatnonzero(np.arange(120) % 4 == u % 4), h) for u, h in enumerate(histories)]
    found = shares(failed(Planted(items), histories, items, disliked))
    assert found[AGAIN] == 0
    assert shares(failed(Planted(items, again=True), histories, items, disliked))[AGAIN] > 0.9


def test_the_same_users_each_time_and_all_where_they_are_few(catalogue):
    histories, items = catalogue
    one, other = (failed(Planted(items, case=str), histories, items) for _ in range(2))
    for name, test in one.items():
        assert test.failed.tolist() == other[name].failed.tolist()
    few = failed(Planted(items), histories[:9], items)
    assert len(few[AGAIN].failed) == 9 and not suite(Planted(items), [], items)
    everything = np.arange(120)  # nothing is left for somebody who saw all but one
    assert not suite(Planted(items), [everything, everything], items)


def test_a_model_counts_as_brute_force_does(tmp_path):
    """Of a saved model, whose catalogue is written again in capitals and read by all that reads models."""
    predictor, histories, items = recommender(tmp_path, 50, 90)
    found = failed(predictor, histories, items)
    told = pd.read_json(tmp_path / "model" / "items.jsonl", lines=True, dtype={"item": str})
    for column in ("title", "text"):
        told[column] = told[column].str.upper()
    told.to_json(tmp_path / "model" / "items.jsonl", orient="records", lines=True)
    shouted, ids = TASK.predictor(tmp_path / "model"), items["item"].tolist()
    asked = [{"history": [ids[i] for i in h[:-1]]} for h in histories]
    before, after = (one.predict(asked, {"top_k": 1})["ranking"] for one in (predictor, shouted))
    other = [a[0].upper() != b[0] for a, b in zip(before, after, strict=True)]
    assert found[UPPER].failed.tolist() == other and 0 < sum(other) < 50
    again = partial(predictor.retold, items)
    assert torch.equal(again(str).embeddings, predictor.embeddings)
    torch.testing.assert_close(again(str.upper).embeddings, shouted.embeddings)
    assert not torch.equal(again(str.upper).embeddings, predictor.embeddings)  # nor has it changed the model itself


def test_a_change_that_changes_no_text_is_no_test(tmp_path):
    predictor, histories, items = recommender(tmp_path, 20, 30)
    small = items.assign(title=items["title"].str.lower())
    predictor = predictor.retold(small, str)
    assert LOWER not in failed(predictor, histories, small) and UPPER in failed(predictor, histories, small)


def test_ranks_move_by_a_twentieth_and_nothing_is_said():
    assert lower(np.array([2, 105, 106, 1, 7]), np.array([1, 100, 100, 3, 7])).tolist() == [
        True,
        False,
        True,
        False,
        False,
    ]
