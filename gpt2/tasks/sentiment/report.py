"""The report of `sentiment`: metrics beside baselines, behavioural tests, likely label errors, remarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.data.splits import SPLITS
from gpt2.data.text import grams, mostly_characters
from gpt2.evaluation import unit_results
from gpt2.evaluation.behavioural_tests import (
    DIRECTION,
    INVARIANCE,
    LINK,
    MINIMUM,
    SLACK,
    UNSPACED_REMARK,
    Answer,
    Failed,
    Test,
    Texts,
    changed,
    run_on_texts,
)
from gpt2.tasks.sentiment.dataset import NGRAMS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.tasks.sentiment.predictor import SentimentPredictor
    from gpt2.tasks.task import Task


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

    In scripts without spaces they are 1- to 3-grams of characters (`gpt2.data.text.grams`). With all between two
    spaces as a word, its macro F1 on 12,000 Chinese reviews is 0.64 instead of 0.84: any model looks good beside it.
    The tolerance is 1e-4, scikit-learn's default. With 1e-3 it stops after 5 iterations on long texts, and its accuracy
    on film reviews is 0.872 instead of 0.899. `weights` (n_train,) weigh the examples in its loss, as for the model.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(analyzer=grams, min_df=2 if len(train_texts) > 100 else 1, sublinear_tf=True)
    try:
        train = vectorizer.fit_transform(train_texts)
    except ValueError:  # no word occurs twice
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), sublinear_tf=True)
        train = vectorizer.fit_transform(train_texts)
    model = LogisticRegression(C=4, max_iter=1000, tol=1e-4).fit(train, train_labels, weights)
    out = np.zeros((len(test_texts), n_classes))
    out[:, model.classes_] = model.predict_proba(vectorizer.transform(test_texts))
    return out


def evaluate(task: Task, predictor: SentimentPredictor, examples: Path, out: Path) -> dict[str, Any]:
    """Return the report of a model on the test split of the examples; its predictions and figures go to `out`."""
    import pandas as pd

    from gpt2.evaluation import behavioural_tests, confidence, metrics, plots, report
    from gpt2.evaluation.confidence import softmax

    train, validation, test = (pd.read_parquet(examples / f"{s}.parquet") for s in SPLITS)
    labels, truth = json.loads((examples / "labels.json").read_text()), test["label"].to_numpy()
    among = partial(metrics.among, own=predictor.labels, labels=labels)  # a champion may have others
    logits = predictor.logits(test["text"].tolist())
    before, probabilities = among(softmax(logits)), among(softmax(logits, predictor.temperature))
    held_out = [("test", test, probabilities)]
    if len(test) < ENOUGH:
        held_out.append(("validation", validation, among(predictor.probabilities(validation["text"].tolist()))))
    doubtful = table(held_out, labels)
    counted = train["weight"].to_numpy() if "weight" in train else None
    texts, known = train["text"].tolist(), train["label"].to_numpy()
    others = {
        "majority class": majority(known, len(test), len(labels)),
        "TF-IDF + logistic regression": tfidf_logistic_regression(
            texts, known, test["text"].tolist(), len(labels), counted
        ),
    }
    test["predicted"], test["confidence"] = probabilities.argmax(1), probabilities.max(1)
    for i, label in enumerate(labels):
        test[f"probability_{label}"] = probabilities[:, i]
    for name, theirs in others.items():
        test[f"predicted by {name}"], test[f"confidence of {name}"] = theirs.argmax(1), theirs.max(1)
    test.drop(columns=NGRAMS, errors="ignore").to_parquet(out / "predictions.parquet", index=False)
    chosen = confidence.rows(truth, probabilities, labels)
    answers = {"model": probabilities} | {name: others[name] for name in others if name != task.floor}
    sure = {name: (each.max(1), each.argmax(1) == truth) for name, each in answers.items()}
    figures = [
        plots.confusion(metrics.confusion_matrix(truth, probabilities.argmax(1), len(labels)), labels, out),
        plots.reliability(metrics.reliability(truth, probabilities), out, metrics.reliability(truth, before)),
        plots.abstaining(sure, chosen, out),
    ]
    results = metrics.classification(truth, probabilities, labels)
    # Empty if the labels are not sentiments.
    unspaced, cases = mostly_characters(test["text"].tolist()), suite(predictor.probabilities, predictor.labels)
    tested = behavioural_tests.tables([] if unspaced else cases)
    uncalibrated = metrics.calibration_error(truth, before)
    remark = (
        f"Logits are divided by {predictor.temperature:g}, the temperature that fits the validation split: "
        f"calibration error {uncalibrated:.4f} before, {results['calibration_error']:.4f} with it."
    )
    cut = {
        "training texts": predictor.cut(texts, predictor.context),
        "held-out texts": predictor.cut(test["text"].tolist()),
    }
    noted = [*remarks(examples, train, test, labels), remark, confidence.remark(chosen), unit_results.sentence(cut)]
    if predictor.ngrams is not None:
        # Computed anew: the examples' column may be another model's, or missing.
        linear = predictor.ngrams.logits(predictor.read(test["text"].tolist()))
        alone = metrics.classification(truth, among(softmax(linear)), labels)[task.primary]
        whole = " It reads long texts as a whole." if any(counts["cut"] for counts in cut.values()) else ""
        noted.append(f"Its linear model of n-grams alone has {task.primary} {alone:.4f} on these texts.{whole}")
    if predictor.masked:
        noted.append("Links and handles do not affect labels: they are read as 'http' and '@user'.")
    if unspaced and cases:
        noted.append(UNSPACED_REMARK.format("Behavioural tests"))
    summary = unit_results_of(task, test).summary()
    once = unit_results.classification(truth, {unit_results.MODEL: (before.argmax(1), before.max(1))}, labels, "", {})
    drawn = once.drawn.interval(once.system_metric("calibration_error"), once.method("calibration_error"))
    summary["intervals"][unit_results.MODEL]["calibration_error_before"] = unit_results.bounded(drawn)
    return {
        "task": task.name,
        "title": task.title if cases else f"Labels of texts: {', '.join(labels)}",
        "primary": {"name": task.primary, "higher_is_better": task.higher_is_better},
        "floor": task.floor,
        "metrics": results | {"calibration_error_before": uncalibrated},
        "baselines": {n: metrics.classification(truth, p, labels) for n, p in others.items()},
        "counts": json.loads((examples / "counts.json").read_text()),
        "remarks": noted,
        "samples": {},
        "figures": figures,
        "selective": chosen,
        "cut": cut,
        "tables": confidence.table(chosen) | doubtful | tested,
        "cost": report.prediction_cost(predictor, predictor.module, list(predictor.input_example[:1])),
        **summary,
    }


def unit_results_of(task: Task, predictions: pd.DataFrame) -> UnitResults:
    """Return the per-unit results of the stored predictions."""
    labels, answers = unit_results.labelled(predictions)
    truth = predictions["label"].to_numpy()
    topics = predictions["topic"].tolist() if "topic" in predictions else None
    parts = unit_results.text_slices(predictions["text"].tolist(), truth, labels, topics)
    key = unit_results.key_of(predictions["text"], truth, labels)
    return unit_results.classification(truth, answers, labels, key, parts)
