"""A file of labelled texts, made fit to learn from: bad rows counted, labels found, splits without leaks, weights."""

from __future__ import annotations

import unicodedata
from typing import Any, Literal

from pydantic import Field, model_validator

from gpt2.data import samples
from gpt2.settings import Settings
from gpt2.tasks.config import TaskSettings
from gpt2.training.config import DistilConfig, OptimizerConfig, TrainConfig

LABEL_FIELDS = ("label", "sentiment")


class LabelledFile(Settings):
    """What is read of a file of labelled texts, and how it is split and weighted."""

    text_field: str = Field("text", min_length=1)
    """The column of the texts."""
    title_field: str | None = Field(None, min_length=1)
    """The column of what stands before a text, on a line of its own, such as the title of a review."""
    label_field: str | None = Field(None, min_length=1)
    """The column of the labels; without it `label`, or else `sentiment`."""
    label_names: dict[str, str] = Field(default={})
    """What labels of the file are called in the model, as in {"1": "recommended", "0": "not recommended"}; those that
    get the same name are one."""
    time_field: str | None = Field("time", min_length=1)
    """The column of the times: ISO 8601, or seconds or milliseconds since 1970; without a zone UTC. Where the file has
    it the newest texts are the test split and those before them the validation split; else a text's content decides."""
    topic_field: str | None = Field("topic", min_length=1)
    """The column of a text's topic, for the parts of the report; without one, the @handles, #hashtags and $cashtags."""
    weight_field: str | None = Field("weight", min_length=1)
    """The column of how much an example counts in the training loss (0 or more); measuring counts all alike."""
    labels: list[str] | None = None
    """The labels that are allowed; a row with another is refused. Without it, those found in the data."""
    balance: Literal["auto", "none", "sqrt", "inverse"] = "auto"
    """Weights of labels in the training loss: by the inverse of a label's frequency, by the square root of that, or
    none. `auto` is `sqrt` where the largest label has over 5 times the examples of the smallest, else `none`: the full
    inverse lets a few examples decide, and makes rare labels look likely. Measuring counts all examples alike."""
    validation_share: float = Field(0.05, gt=0, le=0.4)
    """Share of the texts that training is watched on."""
    test_share: float = Field(0.2, gt=0, le=0.5)
    """Share of the texts that the report is made from."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_sample(cls, values: Any) -> Any:
        """A sample is read by the columns that it is known to have, where no others are named."""
        return {**samples.columns(values.get("source")), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _columns(self):
        names = [
            n for n in (self.text_field, self.title_field, self.label_field, *self.optional().values()) if n is not None
        ]
        if len(set(names)) < len(names):
            raise ValueError(f"a column is named twice among {', '.join(names)}; name a column of its own for each")
        if self.labels and len({fold(label) for label in self.labels}) < len(self.labels):
            raise ValueError(f"labels={self.labels} has two that differ in case or spaces alone; those are one label")
        return self

    def optional(self) -> dict[str, str | None]:
        """The columns that a file may have."""
        return {"time": self.time_field, "topic": self.topic_field, "weight": self.weight_field}


class LabelledSettings(LabelledFile, TaskSettings):
    """The settings of a task that learns from such a file."""

    source: str = Field("sample:posts", min_length=1)
    """A .csv, .jsonl or .parquet file with a text and a label per row, or `sample:posts`."""


def fold(label: str) -> str:
    """What labels that are one have in common."""
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())


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
