"""Sentiment of short texts: one label per text, from any table of texts and labels."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import model_validator

from gpt2 import labelled, lengths
from gpt2.config import OptimizerConfig, TrainConfig
from gpt2.labelled import LabelledSettings
from gpt2.ngrams import FILE, Ngrams, fit
from gpt2.splits import SPLITS
from gpt2.task import DistilConfig, Task, checked_texts

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from gpt2.evidence import Evidence
    from gpt2.heads import Classifier
    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer

CALIBRATED_ON = 5000
"""Texts of the validation split that the temperature is fitted on, at most."""
ENOUGH = 2000
"""Of so many test texts the doubtful labels are shown from these alone: reading the validation split takes time."""
NGRAMS = "ngrams"
"""The column of what the linear model says of a text."""
LINK, HANDLE = re.compile(r"(?:https?://|www\.)\S+"), re.compile(r"(?<![\w@])@\w+")


class SentimentSettings(LabelledSettings):
    """Sentiment monitoring: labelled posts."""

    train: TrainConfig = TrainConfig(
        epochs=1,
        batch_size=64,
        micro_batch_size=32,
        context=128,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, schedule="cosine", final_ratio=0.0),
        eval_samples=512,
        checkpoint_every=100,
        log_every=20,
    )
    """Fine-tuning: length, batches, rates."""
    ngrams: bool = True
    """A linear model of words, pairs of words and spellings is fitted first, and the network adds to what it says."""
    distil: DistilConfig | None = None
    """A smaller model learns from a fine-tuned one, instead of the pretrained model from the labels."""

    @model_validator(mode="after")
    def _student(self):
        if self.distil and self.adaptation.kind != "full":
            raise ValueError(f"adaptation.kind={self.adaptation.kind}, but a student learns as a whole; set kind: full")
        if self.distil and self.adaptation.model_dropout is not None:
            raise ValueError("adaptation.model_dropout is not a student's; set distil.student.dropout")
        if self.distil and self.train.context > self.distil.student.n_positions:
            raise ValueError(
                f"train.context={self.train.context} is longer than distil.student.n_positions="
                f"{self.distil.student.n_positions}; lower the context or raise n_positions"
            )
        return self


class Sentiment(Task):
    """Labels with probabilities."""

    name = "sentiment"
    title = "Sentiment of posts"
    primary = "macro_f1"
    floor = "majority class"
    baselines = ("majority class", "TF-IDF + logistic regression")
    Settings = SentimentSettings
    code: ClassVar[tuple[str, ...]] = (
        "gpt2.labelled", "gpt2.splits", "gpt2.tables", "gpt2.duplicates", "gpt2.baselines", "gpt2.metrics",
        "gpt2.calibration", "gpt2.ngrams",
    )  # fmt: skip
    report_code: ClassVar[tuple[str, ...]] = (
        "gpt2.slices", "gpt2.topics", "gpt2.behaviour", "gpt2.sentiment_behaviour", "gpt2.doubts",
        "gpt2.selective", "gpt2.lengths",
    )  # fmt: skip
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
        """Write train, validation and test.parquet, labels.json and counts.json; see `gpt2.labelled.divided`.

        With `ngrams` also `ngrams.safetensors`, and its logits as a column of each table (`gpt2.ngrams`).
        """
        tables, labels, counts = labelled.divided(source, settings)
        if settings.ngrams:
            add_ngrams(tables, len(labels)).save(out)
        labelled.write(tables, labels, counts, out)
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
        from gpt2.heads import Classifier

        return Classifier(model, len(json.loads((examples / "labels.json").read_text())))

    def load(self, directory: Path) -> Classifier:
        return load_classifier(directory)

    def save(self, module: Any, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        from safetensors.torch import save_file

        from gpt2 import weights

        weights.save(module.model, out, tokenizer=tokenizer)
        head = {n: p.detach().float().contiguous() for n, p in module.head.state_dict().items()}
        save_file(head, out / "head.safetensors")
        if (examples / FILE).exists():
            shutil.copyfile(examples / FILE, out / FILE)
        labels = json.loads((examples / "labels.json").read_text())
        facts = {"labels": labels, "masked": True, "context": context}
        weights.write_task(out, self.name, **facts)
        weights.write_task(out, self.name, **facts, temperature=self.temperature(out, examples))

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

        from gpt2.calibration import fit_temperature

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

        from gpt2 import baselines, behaviour, cost, doubts, evidence, metrics, plots, selective, sentiment_behaviour
        from gpt2.calibration import softmax

        train, validation, test = (pd.read_parquet(examples / f"{s}.parquet") for s in SPLITS)
        predictor = self.predictor(directory)
        labels, truth = json.loads((examples / "labels.json").read_text()), test["label"].to_numpy()
        among = partial(metrics.among, own=predictor.labels, labels=labels)  # a champion may have others
        logits = predictor.logits(test["text"].tolist())
        before, probabilities = among(softmax(logits)), among(softmax(logits, predictor.temperature))
        held_out = [("test", test, probabilities)]
        if len(test) < ENOUGH:
            held_out.append(("validation", validation, among(predictor.probabilities(validation["text"].tolist()))))
        doubtful = doubts.table(held_out, labels)
        counted = train["weight"].to_numpy() if "weight" in train else None
        texts, known = train["text"].tolist(), train["label"].to_numpy()
        others = {
            "majority class": baselines.majority(known, len(test), len(labels)),
            "TF-IDF + logistic regression": baselines.tfidf_logistic_regression(
                texts, known, test["text"].tolist(), len(labels), counted
            ),
        }
        test["predicted"], test["confidence"] = probabilities.argmax(1), probabilities.max(1)
        for i, label in enumerate(labels):
            test[f"probability_{label}"] = probabilities[:, i]
        for name, theirs in others.items():
            test[f"predicted by {name}"], test[f"confidence of {name}"] = theirs.argmax(1), theirs.max(1)
        test.drop(columns=NGRAMS, errors="ignore").to_parquet(out / "predictions.parquet", index=False)
        chosen = selective.rows(truth, probabilities, labels)
        answers = {"model": probabilities} | {name: others[name] for name in others if name != self.floor}
        sure = {name: (each.max(1), each.argmax(1) == truth) for name, each in answers.items()}
        figures = [
            plots.confusion(metrics.confusion_matrix(truth, probabilities.argmax(1), len(labels)), labels, out),
            plots.reliability(metrics.reliability(truth, probabilities), out, metrics.reliability(truth, before)),
            plots.abstaining(sure, chosen, out),
        ]
        found = metrics.classification(truth, probabilities, labels)
        # None where the labels are no moods.
        tested = behaviour.tables(sentiment_behaviour.suite(predictor.probabilities, predictor.labels))
        uncalibrated = metrics.calibration_error(truth, before)
        remark = (
            f"Logits are divided by {predictor.temperature:g}, the temperature that fits the validation split: "
            f"calibration error {uncalibrated:.4f} before, {found['calibration_error']:.4f} with it."
        )
        cut = {
            "training texts": predictor.cut(texts, predictor.context),
            "held-out texts": predictor.cut(test["text"].tolist()),
        }
        remarks = [*doubts.remarks(examples, train, test, labels), remark, selective.remark(chosen)]
        remarks.append(lengths.sentence(cut))
        if predictor.ngrams is not None:
            # Its own: the examples' are another model's where a champion is measured on them, or are not there.
            linear = predictor.ngrams.logits(predictor.read(test["text"].tolist()))
            alone = metrics.classification(truth, among(softmax(linear)), labels)[self.primary]
            whole = " It reads long texts whole." if any(counts["cut"] for counts in cut.values()) else ""
            remarks.append(f"Its linear model of n-grams alone has {self.primary} {alone:.4f} on these texts.{whole}")
        if predictor.masked:
            remarks.append("Which link or handle a text has changes no label: all are read as 'http' and '@user'.")
        summary = self.evidence(test).summary()
        once = evidence.classification(truth, {evidence.MODEL: (before.argmax(1), before.max(1))}, labels, "", {})
        drawn = once.drawn.interval(once.of("calibration_error"), once.method("calibration_error"))
        summary["intervals"][evidence.MODEL]["calibration_error_before"] = evidence.bounded(drawn)
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
            "tables": selective.table(chosen) | doubtful | tested,
            "cost": cost.of_prediction(predictor, predictor.module, list(predictor.input_example[:1])),
            **summary,
        }

    def evidence(self, predictions: pd.DataFrame) -> Evidence:
        from gpt2 import evidence, slices

        labels, answers = evidence.labelled(predictions)
        truth = predictions["label"].to_numpy()
        topics = predictions["topic"].tolist() if "topic" in predictions else None
        parts = slices.of_texts(predictions["text"].tolist(), truth, labels, topics)
        key = evidence.key_of(predictions["text"], truth, labels)
        return evidence.classification(truth, answers, labels, key, parts)


class TextDataset:
    """Encoded texts with labels; a batch is `ids` (B, T), `lengths` (B,), `labels` (B,), `weights` (B,) and `ngrams`
    (B, classes) if any."""

    def __init__(
        self,
        rows: list[list[int]],
        labels: np.ndarray,
        weights: np.ndarray | None = None,
        ngrams: np.ndarray | None = None,
    ):
        import numpy as np

        self.rows, self.labels, self.ngrams = rows, labels, ngrams
        self.weights = None if weights is None else weights.astype(np.float32)
        self.lengths = np.array([len(row) for row in rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        import torch

        from gpt2.heads import pad

        ids, lengths = pad([self.rows[i] for i in indices])
        batch = {"ids": ids, "lengths": lengths, "labels": torch.from_numpy(self.labels[list(indices)])}
        if self.weights is not None:
            batch["weights"] = torch.from_numpy(self.weights[list(indices)])
        if self.ngrams is not None:
            batch["ngrams"] = torch.from_numpy(self.ngrams[list(indices)])
        return batch


class SentimentPredictor:
    """Texts to labels and probabilities. A text longer than the model's positions is cut at its end."""

    input_example = ("The crew was lovely and we landed early", "My bag is lost again")

    def __init__(self, directory: Path):
        from gpt2.peak import quickest
        from gpt2.tokenizer import Tokenizer
        from gpt2.weights import read_task

        facts = read_task(directory)
        self.labels: list[str] = facts["labels"]
        self.temperature = float(facts.get("temperature", 1.0))
        self.masked: bool = facts.get("masked", False)
        """Whether the model learned from `masked` texts; older ones did not."""
        self.module = load_classifier(directory)
        self.tokenizer = Tokenizer.load(directory, self.module.model.config.vocab_size)
        self.ngrams = Ngrams.load(directory, len(self.labels))
        self.module.to(quickest()).eval()
        self.context: int = facts.get("context", self.module.model.config.n_positions)
        """Tokens of a text that training read at most; older models do not tell, and count as if it had read all."""

    def logits(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """(N, classes), before the temperature. Texts are sorted by length, so that little padding is computed."""
        import numpy as np
        import torch

        from gpt2.heads import pad

        short = self.read(texts)
        rows = encode(self.tokenizer, short, self.module.model.config.n_positions)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out = np.zeros((len(rows), len(self.labels)))
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                out[chosen] = self.module.logits(*pad([rows[i] for i in chosen])).float().numpy()
        return out if self.ngrams is None or not len(texts) else out + self.ngrams.logits(short)

    def read(self, texts: Sequence[str]) -> Sequence[str]:
        """Texts as the model reads them."""
        return [masked(text) for text in texts] if self.masked else texts

    def cut(self, texts: Sequence[str], context: int | None = None) -> dict[str, int]:
        """How many texts are longer than the model's positions, or another context (`gpt2.lengths.counted`)."""
        return lengths.counted(self.tokenizer, self.read(texts), context or self.module.model.config.n_positions)

    def probabilities(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """(N, classes), calibrated."""
        from gpt2.calibration import softmax

        return softmax(self.logits(texts, batch_size), self.temperature)

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """A row per text: `label`, and `probability_LABEL` for each. `ValueError` for what is no text.

        `params`: `abstain_below`, the confidence below which the label is "": the model does not know.
        """
        import pandas as pd

        texts = checked_texts(inputs)
        least = float(params.get("abstain_below", 0.0))
        if not 0 <= least <= 1:
            raise ValueError(f"abstain_below={least:g} is no probability; give 0 to 1")
        probabilities = self.probabilities(texts)
        columns = {f"probability_{label}": probabilities[:, i] for i, label in enumerate(self.labels)}
        sure = probabilities.max(1) >= least
        told = [self.labels[i] if known else "" for i, known in zip(probabilities.argmax(1), sure, strict=True)]
        return pd.DataFrame({"label": told, **columns})


def load_classifier(directory: Path) -> Classifier:
    """The classifier in a directory that `Sentiment.save` wrote; its head has the shape that the weights have."""
    from gpt2 import files, weights
    from gpt2.heads import Classifier

    path, model = directory / "head.safetensors", weights.load(directory)
    head = files.read(path).get("weight")
    older = head is not None and head.shape[-1:] == (2 * model.config.n_embd,)
    linear = (directory / FILE).exists()
    module = Classifier(model, len(labels_of(directory)), features=2 if older else 3, ngrams=linear)
    files.fill(module.head, path)
    return module


def add_ngrams(tables: Mapping[str, pd.DataFrame], classes: int) -> Ngrams:
    """Fit the linear model on the training split, and add what it says of each split's texts to the tables."""
    texts = {split: [masked(text) for text in table["text"]] for split, table in tables.items()}
    train = tables["train"]
    counted = train["weight"].to_numpy() if "weight" in train else None
    model, held_out = fit(texts["train"], train["label"].to_numpy(), classes, counted)
    for split, table in tables.items():
        table[NGRAMS] = list(held_out if split == "train" else model.logits(texts[split]))
    return model


def labels_of(directory: Path) -> list[str]:
    """The labels of a saved model, in order."""
    from gpt2.weights import read_task

    return read_task(directory)["labels"]


def masked(text: str) -> str:
    """Links as `http` and names as `@user` (TweetEval, Barbieri et al. 2020): they take a fifth of a post's tokens, and
    whom a post addresses is not how it feels."""
    return HANDLE.sub("@user", LINK.sub("http", text))


def encode(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> list[list[int]]:
    """Ids of each text, cut to `context` with the end-of-text at the end."""
    return [[*ids[: context - 1], tokenizer.end_of_text] for ids in tokenizer.encode_batch(texts)]


TASK = Sentiment()
