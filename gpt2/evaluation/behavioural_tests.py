"""Behavioural tests: simple cases, changes without meaning, changes with; a model must pass them on any test set.

Minimum functionality, invariance and directional tests (Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of
NLP models with CheckList"). The tests of a task are in its `report.py`. A test is one that a model can fail: what a
task's code guarantees is a remark of its report.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2.evaluation.significance import wilson

Answer = Callable[[Sequence[str]], np.ndarray]
"""Texts to (N, k) answers: a row of probabilities each."""
Failed = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N, k) answers after and before a change to the (N,) that fail."""

MINIMUM, INVARIANCE, DIRECTION = "minimum functionality", "invariance", "direction"
LINK = " http://t.co/a1B2c3D4"
SLACK = 0.05
"""By which a probability, or a share of a rank, may move against the direction and nothing be said."""
WORD = re.compile(r"[^\W\d_]{4,}")


@dataclass(frozen=True)
class Test:
    """What must hold, and in which cases it does not."""

    kind: str
    """`MINIMUM`, `INVARIANCE` or `DIRECTION`."""
    name: str
    failed: np.ndarray
    """(cases,) those that fail."""
    such: Callable[[int], str]
    """What happened in a case, by its number."""
    drawn: bool = False
    """Whether the cases are a sample of what is independent, as users, so that their share has an interval; the cases
    of a template are all that there are."""


@dataclass(frozen=True)
class Texts:
    """Texts, alone or beside what each was before it was changed, and what must hold of the answers."""

    kind: str
    name: str
    texts: Sequence[str]
    before: Sequence[str] | None
    failed: Failed


def tables(tests: Sequence[Test]) -> dict[str, dict[str, Any]]:
    """The report's table of behaviour, {title: {header, rows}}; none where there is no case."""
    found = [test for test in tests if len(test.failed)]
    header = ["kind", "what must hold", "cases", "failed", "such as"]
    title = "Behavioural tests" + (", with 95 % intervals" if any(test.drawn for test in found) else "")
    return {title: {"header": header, "rows": [row(test) for test in found]}} if found else {}


def row(test: Test) -> list[Any]:
    """A test's line: kind, name, cases, the share that failed, perhaps its 95 % interval (Wilson), a failure."""
    cases, wrong = len(test.failed), int(test.failed.sum())
    share = f"{wrong / cases:.0%}"
    if test.drawn:
        low, high = (float(bound) for bound in wilson(np.array(wrong), np.array(cases)))
        share += f" [{low:.0%}, {high:.0%}]"
    return [test.kind, test.name, cases, share, test.such(int(test.failed.argmax())) if wrong else ""]


def of_texts(
    cases: Sequence[Texts], answer: Answer, tell: Callable[[np.ndarray], str], drawn: bool = False
) -> list[Test]:
    """The tests of what a model answers to texts, each asked once; `tell` says an answer (k,) for people."""
    asked = list(dict.fromkeys(text for case in cases for text in (*case.texts, *(case.before or ()))))
    known = dict(zip(asked, answer(asked), strict=True)) if asked else {}

    def test(case: Texts) -> Test:
        texts, old = case.texts, case.before or case.texts
        if not texts:
            return Test(case.kind, case.name, np.zeros(0, bool), str, drawn)
        after, before = (np.stack([known[text] for text in each]) for each in (texts, old))

        def such(i: int) -> str:
            told = f"{texts[i]} → {tell(after[i])}"
            return f"{old[i]} → {tell(before[i])}; {told}" if case.before else told

        return Test(case.kind, case.name, case.failed(after, before), such, drawn)

    return [test(case) for case in cases]


def changed(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Another answer than before is the likeliest."""
    return after.argmax(1) != before.argmax(1)


def typo(text: str, drawn: np.random.Generator) -> str:
    """The text with two neighbouring letters of one of its words, by chance, in each other's place, never a word's
    first; as it is where no word has four letters."""
    places = [
        i
        for word in WORD.finditer(text)
        for i in range(word.start() + 1, word.end() - 1)
        if text[i].lower() != text[i + 1].lower()
    ]
    if not places:
        return text
    i = int(drawn.choice(places))
    return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
