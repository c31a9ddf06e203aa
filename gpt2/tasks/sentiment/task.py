"""Sentiment of short texts: one label per text, from any table of texts and labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.data.splits import SPLITS
from gpt2.evaluation import unit_results
from gpt2.tasks.sentiment import dataset as sentiment_dataset
from gpt2.tasks.sentiment.config import SentimentSettings
from gpt2.tasks.sentiment.dataset import NGRAMS, TextDataset, encode, labels_of, masked
from gpt2.tasks.sentiment.ngrams import FILE, Ngrams, fit
from gpt2.tasks.sentiment.predictor import SentimentPredictor, load_classifier
from gpt2.tasks.sentiment.report import ENOUGH
from gpt2.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.model.heads import Classifier
    from gpt2.model.transformer import GPT2

CALIBRATED_ON = 5000
"""Texts of the validation split that the temperature is fitted on, at most."""


class Sentiment(Task):
    """Labels with probabilities."""

    name = "sentiment"
    title = "Sentiment of posts"
    primary = "macro_f1"
    floor = "majority class"
    baselines = ("majority class", "TF-IDF + logistic regression")
    Settings = SentimentSettings
    code: ClassVar[tuple[str, ...]] = (
        "gpt2.tasks.sentiment.dataset",
        "gpt2.data.splits",
        "gpt2.data.tables",
        "gpt2.data.near_duplicates",
        "gpt2.tasks.recommendation.hybrid",
        "gpt2.evaluation.metrics",
        "gpt2.evaluation.confidence",
        "gpt2.tasks.sentiment.ngrams",
    )
    report_code: ClassVar[tuple[str, ...]] = (
        "gpt2.evaluation.unit_results",
        "gpt2.data.text",
        "gpt2.evaluation.behavioural_tests",
        "gpt2.tasks.sentiment.report",
        "gpt2.tasks.sentiment.report",
        "gpt2.evaluation.confidence",
        "gpt2.evaluation.unit_results",
    )
    params: ClassVar[Mapping[str, Any]] = {"abstain_below": 0.0}
    use = (
        "Counting the mood of many short texts, such as posts, over time and by topic. Not for decisions about the "
        "person who wrote one of them."
    )
    limits = (
        "It learned the language, topics and labellers' habits of its training data; on other texts, measure it first.",
        "Irony and mixed feelings are often mistaken, sometimes with high confidence: see the report's mistakes.",
        "A text longer than the model's positions is cut at its end.",
    )
    example = "The crew was lovely and we landed early"

    def prepare(self, settings: SentimentSettings, source: Path, out: Path) -> dict[str, Any]:
        """Write train, validation and test.parquet, labels.json and counts.json; see
        `gpt2.tasks.sentiment.dataset.divided`.

        With `ngrams` also `ngrams.safetensors`, and its logits as a column of each table
        (`gpt2.tasks.sentiment.ngrams`).
        """
        tables, labels, counts = sentiment_dataset.divided(source, settings)
        if settings.ngrams:
            add_ngrams(tables, len(labels)).save(out)
        sentiment_dataset.write(tables, labels, counts, out)
        return counts

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> TextDataset:
        import numpy as np
        import pandas as pd

        table = pd.read_parquet(examples / f"{split}.parquet")
        rows = encode(tokenizer, [masked(text) for text in table["text"]], context)
        weights = table["weight"].to_numpy() if "weight" in table else None
        ngrams = np.stack(table[NGRAMS]) if NGRAMS in table else None
        return TextDataset(rows, table["label"].to_numpy(), weights, ngrams)

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        from gpt2.model.heads import Classifier

        return Classifier(model, len(json.loads((examples / "labels.json").read_text())))

    def load(self, directory: Path) -> Classifier:
        return load_classifier(directory)

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        from safetensors.torch import save_file

        from gpt2 import weights
        from gpt2.store import model_files

        weights.save(module.model, out, tokenizer=tokenizer)
        head = {n: p.detach().float().contiguous() for n, p in module.head.state_dict().items()}
        save_file(head, out / "head.safetensors")
        if (examples / FILE).exists():
            shutil.copyfile(examples / FILE, out / FILE)
        labels = json.loads((examples / "labels.json").read_text())
        facts = {"labels": labels, "masked": True, "context": context}
        model_files.write_task(out, self.name, **facts)
        model_files.write_task(out, self.name, **facts, temperature=self.temperature(out, examples))

    def check_teacher(self, directory: Path, examples: Path) -> None:
        known, given = labels_of(directory), json.loads((examples / "labels.json").read_text())
        if known != given:
            raise ValueError(f"the teacher knows the labels {known}, the examples {given}; give another")
        if (directory / FILE).exists() and not (examples / FILE).exists():
            raise ValueError(
                f"the teacher in {directory} has a linear model of n-grams, the examples have none; set ngrams=true"
            )

    def temperature(self, directory: Path, examples: Path) -> float:
        """What divides a saved model's logits, fitted on the validation split."""
        import numpy as np
        import pandas as pd

        from gpt2.evaluation.confidence import fit_temperature

        held_out = pd.read_parquet(examples / "validation.parquet")
        # From all over the file, whose parts may be of different kinds.
        held_out = held_out.iloc[np.linspace(0, len(held_out) - 1, min(CALIBRATED_ON, len(held_out))).astype(int)]
        return fit_temperature(
            self.predictor(directory).logits(held_out["text"].tolist()), held_out["label"].to_numpy()
        )

    def predictor(self, directory: Path) -> SentimentPredictor:
        return SentimentPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        import pandas as pd

        from gpt2.evaluation import behavioural_tests, confidence, metrics, plots
        from gpt2.evaluation import report as evaluation_report
        from gpt2.evaluation.confidence import softmax
        from gpt2.tasks.sentiment import report

        train, validation, test = (pd.read_parquet(examples / f"{s}.parquet") for s in SPLITS)
        predictor = self.predictor(directory)
        labels, truth = json.loads((examples / "labels.json").read_text()), test["label"].to_numpy()
        among = partial(metrics.among, own=predictor.labels, labels=labels)  # a champion may have others
        logits = predictor.logits(test["text"].tolist())
        before, probabilities = among(softmax(logits)), among(softmax(logits, predictor.temperature))
        held_out = [("test", test, probabilities)]
        if len(test) < ENOUGH:
            held_out.append(("validation", validation, among(predictor.probabilities(validation["text"].tolist()))))
        doubtful = report.table(held_out, labels)
        counted = train["weight"].to_numpy() if "weight" in train else None
        texts, known = train["text"].tolist(), train["label"].to_numpy()
        others = {
            "majority class": report.majority(known, len(test), len(labels)),
            "TF-IDF + logistic regression": report.tfidf_logistic_regression(
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
        answers = {"model": probabilities} | {name: others[name] for name in others if name != self.floor}
        sure = {name: (each.max(1), each.argmax(1) == truth) for name, each in answers.items()}
        figures = [
            plots.confusion(metrics.confusion_matrix(truth, probabilities.argmax(1), len(labels)), labels, out),
            plots.reliability(metrics.reliability(truth, probabilities), out, metrics.reliability(truth, before)),
            plots.abstaining(sure, chosen, out),
        ]
        found = metrics.classification(truth, probabilities, labels)
        # None where the labels are no moods.
        tested = behavioural_tests.tables(report.suite(predictor.probabilities, predictor.labels))
        uncalibrated = metrics.calibration_error(truth, before)
        remark = (
            f"Logits are divided by {predictor.temperature:g}, the temperature that fits the validation split: "
            f"calibration error {uncalibrated:.4f} before, {found['calibration_error']:.4f} with it."
        )
        cut = {
            "training texts": predictor.cut(texts, predictor.context),
            "held-out texts": predictor.cut(test["text"].tolist()),
        }
        remarks = [*report.remarks(examples, train, test, labels), remark, confidence.remark(chosen)]
        remarks.append(unit_results.sentence(cut))
        if predictor.ngrams is not None:
            # Its own: the examples' are another model's where a champion is measured on them, or are not there.
            linear = predictor.ngrams.logits(predictor.read(test["text"].tolist()))
            alone = metrics.classification(truth, among(softmax(linear)), labels)[self.primary]
            whole = " It reads long texts whole." if any(counts["cut"] for counts in cut.values()) else ""
            remarks.append(f"Its linear model of n-grams alone has {self.primary} {alone:.4f} on these texts.{whole}")
        if predictor.masked:
            remarks.append("Which link or handle a text has changes no label: all are read as 'http' and '@user'.")
        summary = self.unit_results(test).summary()
        once = unit_results.classification(
            truth, {unit_results.MODEL: (before.argmax(1), before.max(1))}, labels, "", {}
        )
        drawn = once.drawn.interval(once.of("calibration_error"), once.method("calibration_error"))
        summary["intervals"][unit_results.MODEL]["calibration_error_before"] = unit_results.bounded(drawn)
        return {
            "task": self.name,
            "title": self.title if tested else f"Labels of texts: {', '.join(labels)}",
            "primary": {"name": self.primary, "higher_is_better": self.higher_is_better},
            "floor": self.floor,
            "metrics": found | {"calibration_error_before": uncalibrated},
            "baselines": {n: metrics.classification(truth, p, labels) for n, p in others.items()},
            "counts": json.loads((examples / "counts.json").read_text()),
            "remarks": remarks,
            "samples": {},
            "figures": figures,
            "selective": chosen,
            "cut": cut,
            "tables": confidence.table(chosen) | doubtful | tested,
            "cost": evaluation_report.of_prediction(predictor, predictor.module, list(predictor.input_example[:1])),
            **summary,
        }

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults:

        labels, answers = unit_results.labelled(predictions)
        truth = predictions["label"].to_numpy()
        topics = predictions["topic"].tolist() if "topic" in predictions else None
        parts = unit_results.of_texts(predictions["text"].tolist(), truth, labels, topics)
        key = unit_results.key_of(predictions["text"], truth, labels)
        return unit_results.classification(truth, answers, labels, key, parts)


def add_ngrams(tables: Mapping[str, pd.DataFrame], classes: int) -> Ngrams:
    """Fit the linear model on the training split, and add what it says of each split's texts to the tables."""
    texts = {split: [masked(text) for text in table["text"]] for split, table in tables.items()}
    train = tables["train"]
    counted = train["weight"].to_numpy() if "weight" in train else None
    model, held_out = fit(texts["train"], train["label"].to_numpy(), classes, counted)
    for split, table in tables.items():
        table[NGRAMS] = list(held_out if split == "train" else model.logits(texts[split]))
    return model


TASK = Sentiment()
