"""Behavioural tests of the support model (`gpt2.evaluation.behavioural_tests`), made from people's questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from gpt2.data.splits import SPLITS
from gpt2.data.text import words
from gpt2.evaluation.behavioural_tests import (
    DIRECTION,
    INVARIANCE,
    MINIMUM,
    SLACK,
    Test,
    Texts,
    changed,
    run_on_texts,
    typo,
)
from gpt2.tasks.support.dataset import questions_of

if TYPE_CHECKING:
    from gpt2.tasks.support.predictor import SupportPredictor

QUESTIONS = 200
"""Most questions sampled for a test, the same ones each time."""
REMARKS = (
    "Letter case and spaces of a question do not affect the answer: it is lower-cased and read word by word.",
    "A near-duplicate of a known question gets the known answer. Behavioural tests of known questions include this "
    "lookup; the other tests use the ranking alone.",
)


def suite(predictor: SupportPredictor, pairs: pd.DataFrame) -> list[Test]:
    """Return the behavioural tests of a model's ranking of answers.

    `pairs` are the examples (question, answer, group, split). The list is empty if the model does not know all answers,
    such as a champion of an older knowledge file.
    """
    if not {*pairs["answer"]} <= {*predictor.answers}:
        return []
    drawn = np.random.default_rng(0)
    train, test = (sample(questions_of(pairs, split), drawn) for split in ("train", "test"))
    known = sample(pd.concat([questions_of(pairs, split) for split in SPLITS]), drawn)
    both = list(zip(train["question"], predictor.right(train), strict=True))
    learned = finds("a training question finds its answer", both)
    right = predictor.right(known)
    politely = [(polite(question), items) for question, items in zip(known["question"], right, strict=True)]
    mistyped = [
        (new, items)
        for question, items in zip(known["question"], right, strict=True)
        if (new := typo(question, drawn)) != question
    ]
    with_lookup = [
        finds("a known question, asked politely, gets its answer", politely),
        finds("a known question with a typo gets its answer", mistyped),
    ]
    changes: dict[str, Callable[[str], str]] = {
        "'please' before it changes nothing": polite,
        "'thanks' behind it changes nothing": lambda question: f"{question} Thanks!",
        "a question mark more or less changes nothing": marked,
        "a typo changes nothing": lambda question: typo(question, drawn),
    }
    ranked = [invariant(name, test["question"].tolist(), change) for name, change in changes.items()]
    ranked.append(towards(test["question"].tolist(), predictor.right(test), predictor.answers))

    def describe(row: np.ndarray) -> str:
        return f"{shorten(predictor.answers[row.argmax()], 60, placeholder=' …')} ({row.max():.0%})"

    return [
        *run_on_texts([learned], predictor.scores, describe, drawn=True),
        *run_on_texts(with_lookup, predictor.scores_with_lookup, describe, drawn=True),
        *run_on_texts(ranked, predictor.scores, describe, drawn=True),
    ]


def sample(questions: pd.DataFrame, drawn: np.random.Generator) -> pd.DataFrame:
    """Return at most `QUESTIONS` random rows, in order."""
    chosen = drawn.choice(len(questions), min(QUESTIONS, len(questions)), replace=False)
    return questions.iloc[np.sort(chosen)]


def finds(name: str, cases: Sequence[tuple[str, Sequence[int]]]) -> Texts:
    """Return the test that each text gets one of its right answers."""

    def wrong(after: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.array([row.argmax() not in right for row, (_, right) in zip(after, cases, strict=True)])

    return Texts(MINIMUM, name, [text for text, _ in cases], None, wrong)


def polite(question: str) -> str:
    """Return the question with "please" before it."""
    return f"Please, {question}"


def marked(question: str) -> str:
    """Return the question with its final question mark removed, or with one added."""
    bare = question.rstrip("?!. ")
    return bare if question.rstrip().endswith("?") else f"{bare}?"


def invariant(name: str, questions: Sequence[str], change: Callable[[str], str]) -> Texts:
    """Return the test that a change leaves the answers as they are; unchanged questions are left out."""
    both = [(question, new) for question in questions if (new := change(question)) != question and new.strip()]
    return Texts(INVARIANCE, name, [new for _, new in both], [old for old, _ in both], changed)


def towards(questions: Sequence[str], right: Sequence[Sequence[int]], answers: Sequence[str]) -> Texts:
    """Return the test that a word of the right answer, added to the question, does not make it less likely.

    It is the answer's longest word that is not in the question.
    """
    old, new, wanted = [], [], []
    for question, items in zip(questions, right, strict=True):
        others = [word for word in words(answers[items[0]]) if word not in words(question)]
        if others:
            old.append(question)
            new.append(f"{question} {max(others, key=len)}")
            wanted.append(items[0])

    def less(after: np.ndarray, before: np.ndarray) -> np.ndarray:
        at = np.arange(len(wanted))
        return after[at, wanted] < before[at, wanted] - SLACK

    return Texts(DIRECTION, "a word of the right answer does not make it less likely", new, old, less)
