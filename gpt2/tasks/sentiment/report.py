"""The sentiment report: baselines, behavioural tests, remarks, and examples with doubtful labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.evaluation.behavioural_tests import (
    DIRECTION,
    INVARIANCE,
    LINK,
    MINIMUM,
    SLACK,
    Answer,
    Failed,
    Test,
    Texts,
    changed,
    run_on_texts,
)

if TYPE_CHECKING:
    pass
    import numpy as np
    import pandas as pd


HEADING = "Possible label errors: held-out examples with the highest loss"
SHOWN, CHARS = 20, 240


def table(held_out: Sequence[tuple[str, pd.DataFrame, np.ndarray]], labels: Sequence[str]) -> dict[str, Any]:
    """Return the report's table of examples whose label may be wrong, {heading: {header, rows}}.

    They are the examples of highest loss, -log of the given label's probability, as in confident learning's simplest
    ranking (Northcutt et al. 2021, "self-confidence"). `held_out` has (split, table, (N, classes) probabilities).
    Training examples would not do, since the model may have memorised their labels.
    """
    ranked = []
    for split, examples, probabilities in held_out:
        given = examples["label"].to_numpy()
        losses = -np.log(np.maximum(probabilities[np.arange(len(given)), given], 1e-12))
        numbers = examples["row"].to_numpy()
        best = probabilities.argmax(1)
        for i in np.flatnonzero(best != given):
            predicted = f"{labels[best[i]]} ({probabilities[i, best[i]]:.0%})"
            cells = [f"{losses[i]:.2f}", labels[given[i]], predicted, examples["text"].iloc[i][:CHARS]]
            ranked.append((-losses[i], [*cells, f"{split} {numbers[i]}"]))
    ranked.sort(key=lambda item: item[0])
    rows = [cells for _, cells in ranked[:SHOWN]]
    header = ["loss", "given label", "the model's", "text", "split and row of the file"]
    return {HEADING: {"header": header, "rows": rows}} if rows else {}


def remarks(examples: Path, train: pd.DataFrame, test: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Return sentences on the split and weights of the examples, and on texts with several labels."""
    counts, sentences = json.loads((examples / "counts.json").read_text()), []
    if "time" in test:
        sentences.append(
            f"Split by time: tested on texts from {day(test['time'].min())} to {day(test['time'].max())}, trained on "
            f"older ones, {day(train['time'].min())} to {day(train['time'].max())}."
        )
    if removed := counts.get("near_duplicates_removed"):
        sentences.append(f"{removed:,} texts were removed because a later split has a near-duplicate of each.")
    if conflicting := counts["conflicting_texts"]:
        which = "newest" if "time" in test else "first"
        sentences.append(f"{conflicting:,} texts had more than one label: the {which} was kept.")
    if "weight" in train:
        means = train["weight"].groupby(train["label"]).mean()
        each = ", ".join(f"{labels[i]} {mean:.2f}" for i, mean in means.items())
        sentences.append(f"Mean weight in the training loss: {each}. This report weighs all examples equally.")
    return sentences


def day(time: pd.Timestamp) -> str:
    """Return a time's day, as 2026-03-31."""
    return f"{time:%Y-%m-%d}"


THINGS = ("flight", "crew", "food", "service", "phone", "app", "film", "hotel", "price", "show")
GOOD = ("good", "great", "excellent", "amazing", "wonderful")
BAD = ("bad", "terrible", "awful", "horrible", "poor")
NAMES = ("Anna", "Peter", "Fatima", "Wei", "Carlos", "Aisha")
PLACES = ("Paris", "Cairo", "Mumbai", "Chicago", "Nairobi", "Tokyo")
HANDLE = "@peter_k "
STRONGER = ("very", "really", "absolutely")


def suite(predict: Answer, labels: Sequence[str]) -> list[Test]:
    """Return the behavioural tests of a classifier; empty unless one label is positive and one negative."""
    named = [next((i for i, label in enumerate(labels) if label.lower().startswith(n)), None) for n in ("neg", "pos")]
    negative, positive = named
    if negative is None or positive is None:
        return []
    return run_on_texts(
        templates(negative, positive), predict, lambda row: f"{labels[int(row.argmax())]} ({row.max():.0%})"
    )


def templates(negative: int, positive: int) -> list[Texts]:
    """Return the test cases, given the indices of the negative and the positive label."""
    good = [f"The {thing} was {word}." for thing, word in product(THINGS, GOOD)]
    bad = [f"The {thing} was {word}." for thing, word in product(THINGS, BAD)]
    plain = [*good, *bad]
    changes = {
        "another name changes nothing": [
            (f"{one} says: {text}", f"{other} says: {text}") for text, one, other in beside(plain, NAMES)
        ],
        "another place changes nothing": [
            (f"{text[:-1]} in {one}.", f"{text[:-1]} in {other}.") for text, one, other in beside(plain, PLACES)
        ],
        "a handle before it changes nothing": [(text, HANDLE + text) for text in plain],
        "a link changes nothing": [(text, text + LINK) for text in plain],
        "lower case changes nothing": [(text, text.lower()) for text in plain],
        "upper case changes nothing": [(text, text.upper()) for text in plain],
    }
    cases = [
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
        cases.append(Texts(INVARIANCE, name, new, old, changed))
    for word, texts, label in (("good", good, positive), ("bad", bad, negative)):
        negated = [text.replace(" was ", " was not ") for text in texts]
        stronger = [t.replace(" was ", f" was {STRONGER[i % len(STRONGER)]} ") for i, t in enumerate(texts)]
        cases += [
            Texts(DIRECTION, f"'not' before a {word} word makes it less so", negated, texts, no_less(label)),
            Texts(DIRECTION, f"'very' before a {word} word does not make it less so", stronger, texts, less(label)),
        ]
    return cases


def simple(name: str, texts: Sequence[str], label: int) -> Texts:
    """Return the minimum functionality test that texts get the label."""
    return Texts(MINIMUM, name, texts, None, lambda after, _: after.argmax(1) != label)


def no_less(label: int) -> Failed:
    """Return the check that fails if the label is as likely as before, or more."""
    return lambda after, before: after[:, label] >= before[:, label]


def less(label: int) -> Failed:
    """Return the check that fails if the label is less likely than before by more than `SLACK`."""
    return lambda after, before: after[:, label] < before[:, label] - SLACK


def beside(texts: Sequence[str], words: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return each text with two neighbouring words of the list, in turn."""
    return [(text, words[i % len(words)], words[(i + 1) % len(words)]) for i, text in enumerate(texts)]


ENOUGH = 2000
"""With this many test texts, doubtful labels are searched in the test split alone, since predicting takes time."""


def majority(train_labels: np.ndarray, n_test: int, n_classes: int) -> np.ndarray:
    """Return (n_test, classes) probabilities: the classes' shares in training."""
    shares = np.bincount(train_labels, minlength=n_classes) / max(1, len(train_labels))
    return np.tile(shares, (n_test, 1))


def tfidf_logistic_regression(
    train_texts: Sequence[str],
    train_labels: np.ndarray,
    test_texts: Sequence[str],
    n_classes: int,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Return (n_test, classes) probabilities of logistic regression (C=4) on sublinear TF-IDF of 1- and 2-grams.

    The tolerance is 1e-4, scikit-learn's default. With 1e-3 it stops after 5 iterations on long texts, and its accuracy
    on film reviews is 0.872 instead of 0.899. `weights` (n_train,) weigh the examples in its loss, as for the model.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2 if len(train_texts) > 100 else 1, sublinear_tf=True)
    try:
        train = vectorizer.fit_transform(train_texts)
    except ValueError:  # no word occurs twice, as in scripts without spaces: use characters
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        train = vectorizer.fit_transform(train_texts)
    model = LogisticRegression(C=4, max_iter=1000, tol=1e-4).fit(train, train_labels, weights)
    out = np.zeros((len(test_texts), n_classes))
    out[:, model.classes_] = model.predict_proba(vectorizer.transform(test_texts))
    return out
