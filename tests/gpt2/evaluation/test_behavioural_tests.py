"""The behavioural tests find what a model of words does, and does not do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.evaluation import behavioural_tests
from gpt2.evaluation.behavioural_tests import MINIMUM, Texts, run_on_texts, tables, typo
from gpt2.tasks.sentiment.report import BAD, GOOD, HANDLE, PLACES, suite

LABELS = ["negative", "neutral", "positive"]


def of_words(texts, case=str.lower, negation=True, link=0.0, disliked=""):
    """Probabilities that follow from counting good and bad words."""
    rows = []
    for text in texts:
        words = [w.strip(".,:!") for w in case(text).split()]
        score = sum(w in (*GOOD, "love") for w in words) - sum(w in (*BAD, "hate") for w in words)
        score *= -1 if negation and "not" in words else 1
        score -= link * ("http" in text) + 3 * bool(disliked and disliked in text)
        powers = np.exp([-score, 0, score])
        rows.append(powers / powers.sum())
    return np.array(rows)


def failed(predict):
    table = tables(suite(predict, LABELS))["Behavioural tests"]
    return {name: (share, such) for _, name, _, share, such in table["rows"]}


def test_a_model_that_does_it_all_fails_nothing():
    found = failed(of_words)
    assert all(share == "0%" and such == "" for share, such in found.values()) and len(found) == 15


def test_each_fault_is_found_where_it_is():
    found = failed(lambda texts: of_words(texts, case=str))
    assert {name for name, (share, _) in found.items() if share != "0%"} == {"upper case changes nothing"}
    found = failed(lambda texts: of_words(texts, negation=False))
    wrong = {name for name, (share, _) in found.items() if share == "100%"}
    assert wrong == {
        "a not good thing is negative",
        "'not' before a good word makes it less so",
        "'not' before a bad word makes it less so",
    }
    share, such = failed(lambda texts: of_words(texts, link=3))["a link changes nothing"]
    assert share == "50%" and such.startswith("The flight was good. → positive") and "→ negative" in such


@pytest.mark.parametrize(
    ("disliked", "row"),
    [
        (PLACES[1], "another place changes nothing"),
        (HANDLE.strip(), "a handle before it changes nothing"),
        ("Wei", "another name changes nothing"),
    ],
)
def test_a_dislike_of_one_name_is_found(disliked, row):
    found = failed(lambda texts: of_words(texts, disliked=disliked))
    assert {name for name, (share, _) in found.items() if share != "0%"} == {row}


def test_other_labels_have_no_such_tests():
    assert tables(suite(of_words, ["sports", "politics"])) == {}


def test_a_share_of_what_was_drawn_has_its_interval_and_of_a_template_none():
    """Three of ten failed: Wilson's interval is 10.8 to 60.3 %."""
    wrong = np.arange(10) < 3
    drawn, template = (
        behavioural_tests.Test(MINIMUM, "holds", wrong, "case {}".format, drawn=drawn) for drawn in (True, False)
    )
    nothing = behavioural_tests.Test(MINIMUM, "of none", np.zeros(0, bool), str, drawn=True)
    (title, table), *others = tables([drawn, template, nothing]).items()
    assert not others and title == "Behavioural tests, with 95 % intervals"
    assert table["rows"] == [
        [MINIMUM, "holds", 10, "30% [11%, 60%]", "case 0"],
        [MINIMUM, "holds", 10, "30%", "case 0"],
    ]
    assert list(tables([template])) == ["Behavioural tests"] and tables([nothing]) == {}


def test_each_text_is_asked_once():
    asked = []

    def answer(texts):
        asked.extend(texts)
        return np.array([[len(text), 5] for text in texts])

    cases = [
        Texts(MINIMUM, "is long", ["long enough", "no"], None, lambda after, _: after[:, 0] < after[:, 1]),
        Texts(MINIMUM, "has grown", ["no", "long"], ["no", "no"], lambda after, before: after[:, 0] <= before[:, 0]),
        Texts(MINIMUM, "of none", [], [], behavioural_tests.changed),
    ]
    found = run_on_texts(cases, answer, lambda row: str(row[0]))
    assert asked == ["long enough", "no", "long"]
    assert [test.failed.tolist() for test in found] == [[False, True], [True, False], []]
    assert found[0].example(1) == "no → 2" and found[1].example(0) == "no → 2; no → 2"


@given(st.text("abé X1.", max_size=20), st.integers(0, 9))
def test_a_typo_changes_two_neighbouring_letters(text, seed):
    new = typo(text, np.random.default_rng(seed))
    places = [i for i, (a, b) in enumerate(zip(text, new, strict=True)) if a != b]
    if places:
        first, second = places
        assert second == first + 1 and new[first] + new[second] == text[second] + text[first]
        assert text[first - 1 : second + 1].isalpha()  # not the first of a word


def test_a_typo_is_made_where_it_can_be():
    assert {typo("to be", np.random.default_rng(i)) for i in range(9)} == {"to be"}
    assert {typo("oh aaaa", np.random.default_rng(i)) for i in range(9)} == {"oh aaaa"}
    assert {typo("my Word", np.random.default_rng(i)) for i in range(30)} == {"my Wrod", "my Wodr"}
