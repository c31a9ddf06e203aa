"""The behavioural tests find what a model of words does, and does not do."""

import numpy as np

from gpt2.behaviour import BAD, GOOD, tables

LABELS = ["negative", "neutral", "positive"]


def of_words(texts, case=str.lower, negation=True, link=0.0):
    """Probabilities that follow from counting good and bad words."""
    rows = []
    for text in texts:
        words = [w.strip(".,:!") for w in case(text).split()]
        score = sum(w in (*GOOD, "love") for w in words) - sum(w in (*BAD, "hate") for w in words)
        score *= -1 if negation and "not" in words else 1
        score -= link * ("http" in text)
        powers = np.exp([-score, 0, score])
        rows.append(powers / powers.sum())
    return np.array(rows)


def failed(predict):
    table = tables(predict, LABELS)["Behavioural tests"]
    return {name: (share, such) for _, name, _, share, such in table["rows"]}


def test_a_model_that_does_it_all_fails_nothing():
    found = failed(of_words)
    assert all(share == "0%" and such == "" for share, such in found.values()) and len(found) == 14


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


def test_other_labels_have_no_such_tests():
    assert tables(of_words, ["sports", "politics"]) == {}
