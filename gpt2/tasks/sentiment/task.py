"""The task `sentiment`: one label per short text, from any table of texts and labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from gpt2.tasks.sentiment.config import SentimentSettings
from gpt2.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.model.heads import Classifier
    from gpt2.model.transformer import GPT2
    from gpt2.tasks.sentiment.dataset import TextDataset
    from gpt2.tasks.sentiment.ngrams import Ngrams
    from gpt2.tasks.sentiment.predictor import SentimentPredictor

CALIBRATED_ON = 5000
"""Largest number of validation texts on which the temperature is fitted."""


class Sentiment(Task):
    """Classification of texts with calibrated probabilities."""

    name = "sentiment"
    title = "Sentiment of posts"
    primary = "macro_f1"
    floor = "majority class"
    baselines = ("majority class", "TF-IDF + logistic regression")
    Settings = SentimentSettings
    params: ClassVar[Mapping[str, Any]] = {"abstain_below": 0.0}
    use = (
        "Measuring the sentiment of many short texts, such as posts, over time and by topic. Not for decisions about "
        "the person who wrote one of them."
    )
    limits = (
        "It learned the language, topics and labelling habits of its training data; on other texts, measure it first.",
        "Irony and mixed feelings are often mistaken, sometimes with high confidence: see the report.",
        "A text longer than the model's positions is cut at its end.",
    )
    example = "The crew was lovely and we landed early"

    def prepare(self, settings: SentimentSettings, source: str | Path, out: Path) -> dict[str, Any]:
        """Write train, validation and test.parquet, labels.json and counts.json to `out`; return the counts.

        See `gpt2.tasks.sentiment.dataset.divided`. With `ngrams` it also writes `ngrams.safetensors` and adds its
        logits as a column of each table (`gpt2.tasks.sentiment.ngrams`).
        """
        from gpt2.tasks.sentiment import dataset as sentiment_dataset

        tables, labels, counts = sentiment_dataset.divided(source, settings)
        if settings.ngrams:
            add_ngrams(tables, len(labels)).save(out)
        sentiment_dataset.write(tables, labels, counts, out)
        return counts

    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> TextDataset:
        import numpy as np
        import pandas as pd

        from gpt2.tasks.sentiment.dataset import NGRAMS, TextDataset, encode, masked

        table = pd.read_parquet(examples / f"{split}.parquet")
        rows = encode(tokenizer, [masked(text) for text in table["text"]], context)
        weights = table["weight"].to_numpy() if "weight" in table else None
        ngrams = np.stack(table[NGRAMS]) if NGRAMS in table else None
        return TextDataset(rows, table["label"].to_numpy(), weights, ngrams)

    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        from gpt2.model.heads import Classifier

        return Classifier(model, len(json.loads((examples / "labels.json").read_text())))

    def load(self, directory: Path) -> Classifier:
        from gpt2.tasks.sentiment.predictor import load_classifier

        return load_classifier(directory)

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        from safetensors.torch import save_file

        from gpt2 import weights
        from gpt2.store import model_files
        from gpt2.tasks.sentiment.ngrams import FILE

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
        from gpt2.tasks.sentiment.dataset import labels_of
        from gpt2.tasks.sentiment.ngrams import FILE

        known, given = labels_of(directory), json.loads((examples / "labels.json").read_text())
        if known != given:
            raise ValueError(
                f"the teacher knows the labels {known}, the examples {given}; give one with the same labels"
            )
        if (directory / FILE).exists() and not (examples / FILE).exists():
            raise ValueError(
                f"the teacher in {directory} has a linear model of n-grams, the examples have none; set ngrams=true"
            )

    def temperature(self, directory: Path, examples: Path) -> float:
        """Return the temperature of a saved model, fitted on the validation split."""
        import numpy as np
        import pandas as pd

        from gpt2.evaluation.confidence import fit_temperature

        held_out = pd.read_parquet(examples / "validation.parquet")
        # Evenly over the file, whose parts may differ.
        held_out = held_out.iloc[np.linspace(0, len(held_out) - 1, min(CALIBRATED_ON, len(held_out))).astype(int)]
        return fit_temperature(
            self.predictor(directory).logits(held_out["text"].tolist()), held_out["label"].to_numpy()
        )

    def predictor(self, directory: Path) -> SentimentPredictor:
        from gpt2.tasks.sentiment.predictor import SentimentPredictor

        return SentimentPredictor(directory)

    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        from gpt2.tasks.sentiment import report

        return report.evaluate(self, self.predictor(directory), examples, out)

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults:
        from gpt2.tasks.sentiment import report

        return report.unit_results_of(self, predictions)


def add_ngrams(tables: Mapping[str, pd.DataFrame], classes: int) -> Ngrams:
    """Fit the linear model on the training split, add its logits to each table, and return it."""
    from gpt2.tasks.sentiment.dataset import NGRAMS, masked
    from gpt2.tasks.sentiment.ngrams import fit

    texts = {split: [masked(text) for text in table["text"]] for split, table in tables.items()}
    train = tables["train"]
    counted = train["weight"].to_numpy() if "weight" in train else None
    model, held_out = fit(texts["train"], train["label"].to_numpy(), classes, counted)
    for split, table in tables.items():
        table[NGRAMS] = list(held_out if split == "train" else model.logits(texts[split]))
    return model


TASK = Sentiment()
