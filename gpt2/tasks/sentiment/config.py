"""The settings of the task `sentiment`, and of any file of labelled texts."""

from __future__ import annotations

import unicodedata
from typing import Any, Literal

from pydantic import Field, model_validator

from gpt2.data import samples
from gpt2.data.config import FileForm
from gpt2.tasks.config import TaskSettings
from gpt2.training.config import DistilConfig, OptimizerConfig, TrainConfig

LABEL_FIELDS = ("label", "sentiment")


class LabelledFile(FileForm):
    """Columns of a file of labelled texts, and how it is split and weighted."""

    text_field: str = Field("text", min_length=1)
    """The column of the texts."""
    title_field: str | None = Field(None, min_length=1)
    """The column of titles, such as those of reviews; a title is put before its text on a line of its own."""
    label_field: str | None = Field(None, min_length=1)
    """The column of the labels; without it `label`, or else `sentiment`."""
    label_names: dict[str, str] = Field(default={})
    """New names of the file's labels, as in {"1": "recommended", "0": "not recommended"}. Labels with the same new name
    become one."""
    time_field: str | None = Field("time", min_length=1)
    """The column of the times: ISO 8601, or seconds or milliseconds since 1970; UTC if there is no time zone. If the
    file has it, the newest texts are the test split and those before them the validation split. Otherwise texts are
    split by a hash of their content."""
    topic_field: str | None = Field("topic", min_length=1)
    """The column of a text's topic, for the report's slices; without it, the @handles, #hashtags and $cashtags."""
    weight_field: str | None = Field("weight", min_length=1)
    """The column of an example's weight in the training loss (0 or more); evaluation weighs all examples equally."""
    labels: list[str] | None = None
    """The allowed labels; a row with another one is refused. Without it, all labels in the data."""
    balance: Literal["auto", "none", "sqrt", "inverse"] = "auto"
    """Weights of labels in the training loss: the inverse of a label's frequency, the square root of that, or none.
    `auto` is `sqrt` if the largest label has over 5 times the examples of the smallest, else `none`. The full inverse
    gives a few examples too much weight and makes rare labels look likely. Evaluation weighs all examples equally."""
    validation_share: float = Field(0.05, gt=0, le=0.4)
    """Share of the texts in the validation split, which monitors training."""
    test_share: float = Field(0.2, gt=0, le=0.5)
    """Share of the texts in the test split, which the report uses."""

    @model_validator(mode="before")
    @classmethod
    def _of_the_sample(cls, values: Any) -> Any:
        """Fill in the known columns of a sample where the settings name no others."""
        return {**samples.columns(values.get("source")), **values} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _columns(self):
        names = [
            n for n in (self.text_field, self.title_field, self.label_field, *self.optional().values()) if n is not None
        ]
        if len(set(names)) < len(names):
            raise ValueError(f"a column is named twice among {', '.join(names)}; name a column of its own for each")
        if self.labels and len({fold(label) for label in self.labels}) < len(self.labels):
            raise ValueError(f"labels={self.labels} has two that differ only in case or spaces; leave one of them out")
        return self

    def optional(self) -> dict[str, str | None]:
        """Return the optional columns of a file."""
        return {"time": self.time_field, "topic": self.topic_field, "weight": self.weight_field}


class LabelledSettings(LabelledFile, TaskSettings):
    """The settings of a task that learns from a file of labelled texts."""

    source: str = Field("sample:posts", min_length=1)
    """A file of labelled texts, a folder, a glob or an fsspec URL of such files (.csv, .tsv, .jsonl, .parquet), or
    `sample:posts`."""


def fold(label: str) -> str:
    """Return the canonical form of a label: equal for labels that differ only in case or spaces."""
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
    """Fit a linear model of words, word pairs and character n-grams first; its logits are added to the network's."""
    distil: DistilConfig | None = None
    """Distillation: train a smaller model on a fine-tuned one's outputs instead of fine-tuning on the labels."""

    @model_validator(mode="after")
    def _student(self):
        if self.distil and self.adaptation.kind != "full":
            raise ValueError(
                f"adaptation.kind={self.adaptation.kind}, but all of a student's parameters are trained; set kind: full"
            )
        if self.distil and self.adaptation.model_dropout is not None:
            raise ValueError("adaptation.model_dropout does not apply to a student; set distil.student.dropout")
        if self.distil and self.train.context > self.distil.student.n_positions:
            raise ValueError(
                f"train.context={self.train.context} is longer than distil.student.n_positions="
                f"{self.distil.student.n_positions}; lower the context or raise n_positions"
            )
        return self
