"""Behavioural tests (CheckList): minimum functionality, invariance and directional expectation.

After Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of NLP models with CheckList". Each task defines its
tests in `gpt2/tasks/TASK/report.py`. Only behaviour that a model can fail is tested. A guarantee of the task's code is
a remark of its report instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2.data.text import UNSPACED
from gpt2.evaluation.significance import wilson

Answer = Callable[[Sequence[str]], np.ndarray]
"""Maps N texts to (N, k) answers: a row of probabilities for each text."""
Failed = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps (N, k) answers after and before a change to an (N,) mask of failures."""

MINIMUM, INVARIANCE, DIRECTION = "minimum functionality", "invariance", "direction"
LINK = " http://t.co/a1B2c3D4"
SLACK = 0.05
"""Tolerance of directional tests: how far a probability, or a relative rank, may move the wrong way."""
WORD = re.compile(rf"[^\W\d_{UNSPACED}]{{4,}}")
UNSPACED_REMARK = "{} were not made: they are for English, and most texts are in a script without spaces."


@dataclass(frozen=True)
class Test:
    """A test's expectation and the cases in which it failed."""

    kind: str
    """`MINIMUM`, `INVARIANCE` or `DIRECTION`."""
    name: str
    failed: np.ndarray
    """(cases,) mask of failures."""
    example: Callable[[int], str]
    """Describes what happened in a case, given its number."""
    drawn: bool = False
    """True if the cases are independent samples, such as users, so that the failure rate has an interval. Cases of a
    template are the whole population and have none."""


@dataclass(frozen=True)
class Texts:
    """Test cases of texts, perhaps with each text before its change, and the check of the answers."""

    kind: str
    name: str
    texts: Sequence[str]
    before: Sequence[str] | None
    failed: Failed


def tables(tests: Sequence[Test]) -> dict[str, dict[str, Any]]:
    """Return the report's table of behavioural tests, {title: {header, rows}}; empty if no test has a case."""
    nonempty = [test for test in tests if len(test.failed)]
    header = ["kind", "what must hold", "cases", "failed", "such as"]
    title = "Behavioural tests" + (", with 95 % intervals" if any(test.drawn for test in nonempty) else "")
    return {title: {"header": header, "rows": [row(test) for test in nonempty]}} if nonempty else {}


def row(test: Test) -> list[Any]:
    """Return a test's table row: kind, name, cases, failure rate, perhaps with its 95 % Wilson interval, an example."""
    cases, wrong = len(test.failed), int(test.failed.sum())
    share = f"{wrong / cases:.0%}"
    if test.drawn:
        low, high = (float(bound) for bound in wilson(np.array(wrong), np.array(cases)))
        share += f" [{low:.0%}, {high:.0%}]"
    return [test.kind, test.name, cases, share, test.example(int(test.failed.argmax())) if wrong else ""]


def run_on_texts(
    cases: Sequence[Texts], answer: Answer, describe: Callable[[np.ndarray], str], drawn: bool = False
) -> list[Test]:
    """Run the tests on a model's answers, computing each text once; `describe` renders an answer (k,) for people."""
    distinct = list(dict.fromkeys(text for case in cases for text in (*case.texts, *(case.before or ()))))
    known = dict(zip(distinct, answer(distinct), strict=True)) if distinct else {}

    def test(case: Texts) -> Test:
        texts, old = case.texts, case.before or case.texts
        if not texts:
            return Test(case.kind, case.name, np.zeros(0, bool), str, drawn)
        after, before = (np.stack([known[text] for text in each]) for each in (texts, old))

        def example(i: int) -> str:
            changed_text = f"{texts[i]} → {describe(after[i])}"
            return f"{old[i]} → {describe(before[i])}; {changed_text}" if case.before else changed_text

        return Test(case.kind, case.name, case.failed(after, before), example, drawn)

    return [test(case) for case in cases]


def changed(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return (N,) whether the likeliest answer differs from the one before."""
    return after.argmax(1) != before.argmax(1)


def typo(text: str, drawn: np.random.Generator) -> str:
    """Return the text with two neighbouring letters of a random word swapped, never the word's first letter.

    A text without a word of four letters, as in scripts without spaces, is returned unchanged.
    """
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
