"""The settings of the task `reasons`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from gpt2.settings import operational
from gpt2.tasks.config import TaskSettings
from gpt2.tasks.recommendation.config import CatalogueFiles
from gpt2.training.config import OptimizerConfig, TrainConfig

PARAMS: Mapping[str, Any] = {"samples": 8, "temperature": 0.7, "seed": 0}
"""Optional parameters of `predict` and their defaults."""
UNIGRAM, SWAPPED = "unigram", "another item's prompt"


class ReasonsSettings(CatalogueFiles, TaskSettings):
    """Written reasons for recommendations, learned from reviews. Off unless `enabled` is set."""

    enabled: bool = False
    """Run this task in the pipeline."""
    source: str = Field("sample:reviews", min_length=1)
    """The reviews: a file, a folder, a glob or an fsspec URL (.csv, .tsv, .jsonl, .parquet), or `sample:reviews`; the
    reviewed item need not be known."""
    texts_field: str = Field("text", min_length=1)
    """The column of the texts."""
    label_field: str | None = Field("label", min_length=1)
    """The column that tells positive reviews from negative ones; without it all reviews are positive."""
    good_label: str = "1"
    """The value of that column for positive reviews."""
    unwanted: list[str] = Field(["i", "me", "my", "mine", "we", "us", "our", "not", "no", "nor", "never", "t"])
    """Lower-case words that no reason may have: of the first person and of negation (`t` is that of `isn't`). Words at
    least twice as frequent in negative reviews as in positive ones are excluded as well."""
    common_share: float = Field(0.005, ge=0, le=1)
    """Smallest share of the positive reviews that contain a word which a reason may use; words of attributes are always
    allowed."""
    standing: list[str] = Field(
        ["this film", "this movie", "the film", "the movie", "this|is", "this|was", "this|has", "it|is a", "it|is an",
         "it|is one"],
        min_length=1,
    )  # fmt: skip
    """Beginnings of sentences on an item, to be replaced by its title; `this|is` means `this` before `is`."""
    catalogue: str = Field("sample:movielens", min_length=1)
    """The items, as in `tasks.recommendation.source`."""
    liked: int = Field(2, ge=1, le=5)
    """Number of earlier choices in a prompt."""
    draws: int = Field(8, ge=1, le=100)
    """Number of items with which a training sentence that names an attribute, such as `comedy`, is paired; other
    sentences are paired with one."""
    test_share: float = Field(0.01, gt=0, le=0.4)
    """Share of the reviews in the test split, which the report uses. Up to `corpus.validation_share`, pretraining has
    not read them either."""
    validation_share: float = Field(0.04, gt=0, le=0.4)
    """Share of the reviews in the validation split, which monitors training."""
    most_copied: int = Field(8, ge=1, le=1000)
    """Longest run of words that a shown sentence may share with a training sentence (unit: words)."""
    most_perplexity: float = Field(5.0, gt=1)
    """Largest perplexity, per token after the prompt, of a shown sentence; less likely ones made no sense."""
    num_workers: int | None = operational(1, ge=1, le=4096)
    """Number of workers of this task's training."""
    train: TrainConfig = TrainConfig(
        epochs=2,
        batch_size=32,
        micro_batch_size=16,
        context=128,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, schedule="cosine", final_ratio=0.0),
        eval_every=100,
        eval_samples=128,
        checkpoint_every=100,
        log_every=10,
    )
    """Fine-tuning: length, batches, rates. Half of the context is the prompt's, half the sentence's."""

    @model_validator(mode="after")
    def _room(self):
        if self.train.context < 48:
            raise ValueError(f"context={self.train.context} leaves no room for prompt and sentence; set 48 or more")
        if self.test_share + self.validation_share > 0.5:
            raise ValueError(
                f"test_share={self.test_share} and validation_share={self.validation_share} leave less than half "
                f"to train on; lower them"
            )
        return self

    def sources(self) -> dict[str, str]:
        places = super().sources() | {"catalogue": self.catalogue}
        return places | ({} if self.interactions is None else {"interactions": self.interactions})
