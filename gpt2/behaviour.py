"""What a sentiment model must do whatever its test set holds: simple sentences, changes without meaning, changes with.

Minimum functionality, invariance and directional tests (Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of
NLP models with CheckList"), from English templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

Predict = Callable[[Sequence[str]], np.ndarray]
"""Texts to (N, classes) probabilities."""
Failed = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N, classes) probabilities after and before a change to the (N,) that fail."""

THINGS = ("flight", "crew", "food", "service", "phone", "app", "film", "hotel", "price", "show")
GOOD = ("good", "great", "excellent", "amazing", "wonderful")
BAD = ("bad", "terrible", "awful", "horrible", "poor")
NAMES = ("Anna", "Peter", "Fatima", "Wei", "Carlos", "Aisha")
HANDLES = ("@anna", "@peter_k", "@fatima92", "@wei", "@carlos", "@aisha")
LINK = " http://t.co/a1B2c3D4"
STRONGER = ("very", "really", "absolutely")
SLACK = 0.05
"""By which a probability may move against the direction and nothing be said."""


@dataclass(frozen=True)
class Test:
    """Texts, alone or beside what each was before it was changed, and what must hold."""

    kind: str
    name: str
    texts: Sequence[str]
    before: Sequence[str] | None
    failed: Failed


def tables(predict: Predict, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The report's table of behaviour, {title: {header, rows}}; none where no label is positive and none negative."""
    named = [next((i for i, label in enumerate(labels) if label.lower().startswith(n)), None) for n in ("neg", "pos")]
    negative, positive = named
    if negative is None or positive is None:
        return {}
    tests = suite(negative, positive)
    asked = list(dict.fromkeys(text for test in tests for text in (*test.texts, *(test.before or ()))))
    known = dict(zip(asked, predict(asked), strict=True))
    header = ["kind", "what must hold", "cases", "failed", "such as"]
    return {"Behavioural tests": {"header": header, "rows": [row(test, known, labels) for test in tests]}}


def row(test: Test, known: dict[str, np.ndarray], labels: Sequence[str]) -> list[Any]:
    """A test's line: kind, name, cases, the share that failed, a failure."""
    after = np.stack([known[text] for text in test.texts])
    before = np.stack([known[text] for text in test.before or test.texts])
    failed = test.failed(after, before)
    example = ""
    if failed.any():
        i = int(failed.argmax())
        example = f"{test.texts[i]} → {labels[after[i].argmax()]} ({after[i].max():.0%})"
        if test.before:
            example = f"{test.before[i]} → {labels[before[i].argmax()]} ({before[i].max():.0%}); {example}"
    return [test.kind, test.name, len(failed), f"{failed.mean():.0%}", example]


def suite(negative: int, positive: int) -> list[Test]:
    """The tests, of the indices of two labels."""
    good = [f"The {thing} was {word}." for thing, word in product(THINGS, GOOD)]
    bad = [f"The {thing} was {word}." for thing, word in product(THINGS, BAD)]
    plain = [*good, *bad]
    changes = {
        "another name changes nothing": [
            (f"{one} says: {text}", f"{other} says: {text}") for text, one, other in beside(plain, NAMES)
        ],
        "another handle changes nothing": [
            (f"{one} {text}", f"{other} {text}") for text, one, other in beside(plain, HANDLES)
        ],
        "a link changes nothing": [(text, text + LINK) for text in plain],
        "lower case changes nothing": [(text, text.lower()) for text in plain],
        "upper case changes nothing": [(text, text.upper()) for text in plain],
    }
    tests = [
        simple("a good word is positive", good, positive),
        simple("a bad word is negative", bad, negative),
        simple("love is positive", [f"I love the {thing}" for thing in THINGS], positive),
        simple("hate is negative", [f"I hate the {thing}" for thing in THINGS], negative),
        simple(
            "a not good thing is negative", [f"The {t} was not good, I want my money back." for t in THINGS], negative
        ),
    ]
    for name, pairs in changes.items():
        old, new = zip(*pairs, strict=True)
        tests.append(Test("invariance", name, new, old, changed))
    for word, texts, label in (("good", good, positive), ("bad", bad, negative)):
        negated = [text.replace(" was ", " was not ") for text in texts]
        stronger = [t.replace(" was ", f" was {STRONGER[i % len(STRONGER)]} ") for i, t in enumerate(texts)]
        tests += [
            Test("direction", f"'not' before a {word} word makes it less so", negated, texts, no_less(label)),
            Test("direction", f"'very' before a {word} word does not make it less so", stronger, texts, less(label)),
        ]
    return tests


def simple(name: str, texts: Sequence[str], label: int) -> Test:
    """Texts that must get the label."""
    return Test("minimum functionality", name, texts, None, lambda after, _: after.argmax(1) != label)


def changed(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Another label than before."""
    return after.argmax(1) != before.argmax(1)


def no_less(label: int) -> Failed:
    """The label is as likely as before, or more."""
    return lambda after, before: after[:, label] >= before[:, label]


def less(label: int) -> Failed:
    """The label is less likely than before, beyond the slack."""
    return lambda after, before: after[:, label] < before[:, label] - SLACK


def beside(texts: Sequence[str], words: Sequence[str]) -> list[tuple[str, str, str]]:
    """Each text with two of the words, in turn."""
    return [(text, words[i % len(words)], words[(i + 1) % len(words)]) for i, text in enumerate(texts)]
