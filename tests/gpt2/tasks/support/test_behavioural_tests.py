"""The behavioural tests of a model of answers find planted faults."""

import numpy as np
import pandas as pd
import pytest

from gpt2.data.text import words
from gpt2.tasks.support import report
from gpt2.tasks.support.report import marked, suite

LEARNED, POLITE, KNOWN = (
    "a training question finds its answer",
    "a known question, asked politely, gets its answer",
    "a known question with a typo gets its answer",
)
PLEASE, THANKS, MARK, TYPO = (
    f"{what} changes nothing"
    for what in ("'please' before it", "'thanks' behind it", "a question mark more or less", "a typo")
)
TOWARDS = "a word of the right answer does not make it less likely"


def letters(text):
    return {(len(word), *sorted(word)) for word in words(text)}


class Planted:
    """The answer with the same words, whatever their letters' order; each fault is planted."""

    def __init__(self, pairs, read=letters, known=True):
        self.answers, self.read = pairs["answer"].unique().tolist(), read
        self.known = dict(zip(pairs["question"], pairs["answer"], strict=True)) if known else {}

    def scores(self, questions):
        told = [self.read(answer) for answer in self.answers]
        shared = np.array([[len(self.read(q) & each) for each in told] for q in questions], float)
        powers = np.exp(4 * shared)
        return powers / powers.sum(1, keepdims=True)

    def scores_with_lookup(self, questions):
        found = self.scores(questions)
        for row, question in zip(found, questions, strict=True):
            asked = question.removeprefix("Please, ")
            if asked in self.known:
                row[:] = np.arange(len(row)) == self.answers.index(self.known[asked])
        return found

    def right(self, test):
        return [[self.answers.index(answer) for answer in dict.fromkeys(each)] for each in test["answer"]]


@pytest.fixture(scope="module")
def pairs():
    """Questions of words of their answers."""
    drawn = np.random.default_rng(0)
    names = ["".join(drawn.choice(list("abcdefghijklm"), 7)) for _ in range(300)]
    rows = []
    for i in range(100):
        one, two, three = names[3 * i : 3 * i + 3]
        split = ("train", "validation", "test", "test")[i % 4]
        rows.append((f"Where has {one} {two}{'?' * (i % 3 > 0)}", f"{one} {two} {three}.", i, split))
    return pd.DataFrame(rows, columns=["question", "answer", "group", "split"])


def shares(predictor, pairs):
    return {test.name: test.failed.mean() for test in suite(predictor, pairs)}


def test_a_model_that_does_it_all_fails_nothing(pairs):
    found = suite(Planted(pairs), pairs)
    assert [t.name for t in found] == [LEARNED, POLITE, KNOWN, PLEASE, THANKS, MARK, TYPO, TOWARDS]
    assert not any(t.failed.any() for t in found) and all(t.drawn for t in found)
    assert [len(t.failed) for t in found] == [25, 100, 100, *[50] * 5]
    assert [t.failed.tolist() for t in found] == [t.failed.tolist() for t in suite(Planted(pairs), pairs)]


@pytest.mark.parametrize(
    ("read", "rows"),
    [
        (lambda text: {(word, "?" in text) for word in letters(text)}, {LEARNED, KNOWN, MARK}),
        (lambda text: set() if "Thanks" in text else letters(text), {THANKS}),
        (lambda text: set() if "Please" in text else letters(text), {PLEASE}),
    ],
)
def test_each_fault_is_found_where_it_is(pairs, read, rows):
    found = shares(Planted(pairs, read), pairs)
    assert {name for name, share in found.items() if share > 0.05} == rows and all(found[name] > 0.6 for name in rows)


def test_a_word_that_misleads_is_found(pairs):
    third = {answer.split()[2].strip(".") for answer in pairs["answer"]}
    found = shares(Planted(pairs, lambda text: set() if text.split()[-1] in third else letters(text)), pairs)
    assert {name for name, share in found.items() if share} == {TOWARDS} and found[TOWARDS] == 1


def test_a_typo_is_found_where_words_are_read_exactly(pairs):
    """Questions of one word that tells: misread, another answer is as likely."""
    alone = pairs.assign(question=[f"So {q.split()[2]}" for q in pairs["question"]])
    found = shares(Planted(alone, read=lambda text: set(words(text))), alone)
    assert found[TYPO] > 0.9 and found[KNOWN] > 0.9 and not found[PLEASE] and not found[LEARNED] and not found[POLITE]


def test_what_is_known_is_looked_up_where_it_should_be(pairs):
    """A ranking that knows nothing: only known questions that are looked up get their answers."""
    nothing = Planted(pairs, read=lambda text: set())
    found = shares(nothing, pairs)
    assert found[POLITE] == 0 and found[KNOWN] > 0.9 and found[LEARNED] > 0.9
    assert shares(Planted(pairs, read=lambda text: set(), known=False), pairs)[POLITE] > 0.9


def test_so_many_questions_at_most(pairs, monkeypatch):
    monkeypatch.setattr(report, "QUESTIONS", 20)
    assert [len(test.failed) for test in suite(Planted(pairs), pairs)] == [20] * 8


@pytest.mark.parametrize(
    ("question", "other"),
    [("Who?", "Who"), ("Who", "Who?"), ("Who.", "Who?"), ("Who?!", "Who?"), ("Really? ", "Really")],
)
def test_a_question_mark_more_or_less(question, other):
    assert marked(question) == other
