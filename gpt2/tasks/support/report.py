"""Behavioural tests for a model of answers (`gpt2.evaluation.behavioural_tests`), on people's questions; remarks."""

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
    of_texts,
    typo,
)
from gpt2.tasks.support.dataset import questions_of

if TYPE_CHECKING:
    from gpt2.tasks.support.predictor import SupportPredictor

QUESTIONS = 200
"""Questions that are drawn for a test, at most, the same each time."""
REMARKS = (
    "Letter case and spaces of a question change no answer: it is read in small letters, word by word.",
    "A question that says nearly the same as a known one gets the known answer. Behavioural tests of known questions "
    "ask that way; the others ask for the ranking alone.",
)


def suite(predictor: SupportPredictor, pairs: pd.DataFrame) -> list[Test]:
    """Of a model by its ranking of answers, of the examples' `pairs` (question, answer, group, split); none where it
    does not know all of the answers, as a champion of an older knowledge file."""
    if not {*pairs["answer"]} <= {*predictor.answers}:
        return []
    drawn = np.random.default_rng(0)
    train, test = (some(questions_of(pairs, split), drawn) for split in ("train", "test"))
    known = some(pd.concat([questions_of(pairs, split) for split in SPLITS]), drawn)
    both = list(zip(train["question"], predictor.right(train), strict=True))
    learned = found("a question that it learned from finds its answer", both)
    right = predictor.right(known)
    asked = [(polite(question), items) for question, items in zip(known["question"], right, strict=True)]
    mistyped = [
        (new, items)
        for question, items in zip(known["question"], right, strict=True)
        if (new := typo(question, drawn)) != question
    ]
    through = [
        found("a known question, asked politely, gets its answer", asked),
        found("a known question with a typo gets its answer", mistyped),
    ]
    changes: dict[str, Callable[[str], str]] = {
        "'please' before it changes nothing": polite,
        "'thanks' behind it changes nothing": lambda question: f"{question} Thanks!",
        "a question mark more or less changes nothing": marked,
        "a typo changes nothing": lambda question: typo(question, drawn),
    }
    ranked = [invariant(name, test["question"].tolist(), change) for name, change in changes.items()]
    ranked.append(towards(test["question"].tolist(), predictor.right(test), predictor.answers))

    def tell(row: np.ndarray) -> str:
        return f"{shorten(predictor.answers[row.argmax()], 60, placeholder=' …')} ({row.max():.0%})"

    return [
        *of_texts([learned], predictor.scores, tell, drawn=True),
        *of_texts(through, predictor.looked_up, tell, drawn=True),
        *of_texts(ranked, predictor.scores, tell, drawn=True),
    ]


def some(questions: pd.DataFrame, drawn: np.random.Generator) -> pd.DataFrame:
    """So many rows at most."""
    chosen = drawn.choice(len(questions), min(QUESTIONS, len(questions)), replace=False)
    return questions.iloc[np.sort(chosen)]


def found(name: str, cases: Sequence[tuple[str, Sequence[int]]]) -> Texts:
    """Texts, each of which must get one of its right answers."""

    def wrong(after: np.ndarray, _: np.ndarray) -> np.ndarray:
        return np.array([row.argmax() not in right for row, (_, right) in zip(after, cases, strict=True)])

    return Texts(MINIMUM, name, [text for text, _ in cases], None, wrong)


def polite(question: str) -> str:
    return f"Please, {question}"


def marked(question: str) -> str:
    """Without a question mark at its end, or with one where there is none."""
    bare = question.rstrip("?!. ")
    return bare if question.rstrip().endswith("?") else f"{bare}?"


def invariant(name: str, questions: Sequence[str], change: Callable[[str], str]) -> Texts:
    """Questions that the change leaves as they are cannot fail: they are no cases."""
    both = [(question, new) for question in questions if (new := change(question)) != question and new.strip()]
    return Texts(INVARIANCE, name, [new for _, new in both], [old for old, _ in both], changed)


def towards(questions: Sequence[str], right: Sequence[Sequence[int]], answers: Sequence[str]) -> Texts:
    """The longest word of the right answer that is not in the question, added to it."""
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
