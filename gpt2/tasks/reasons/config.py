"""Reasons for recommendations: a sentence on an item, written for somebody who liked others, shown where it may be."""

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
    """Reasons for recommendations, learned from texts on items. Off unless `enabled` is set."""

    enabled: bool = False
    """Whether the pipeline runs this task."""
    source: str = Field("sample:reviews", min_length=1)
    """The texts on items, .csv, .jsonl or .parquet, or `sample:reviews`; which item a text is on need not be known."""
    texts_field: str = Field("text", min_length=1)
    """The column of the texts."""
    label_field: str | None = Field("label", min_length=1)
    """The column that says whether a text speaks for its item; without one all do, and no word speaks against one."""
    good_label: str = "1"
    """What that column has where the text does."""
    unwanted: list[str] = Field(["i", "me", "my", "mine", "we", "us", "our", "not", "no", "nor", "never", "t"])
    """Words in small letters that no reason has, of the one who speaks and of what is not (`t` is that of `isn't`); and
    none has words that texts which don't speak for an item have twice as often as others."""
    common_share: float = Field(0.005, ge=0, le=1)
    """A reason has only words that such a share of the texts has that speak for an item, and those of attributes."""
    standing: list[str] = Field(
        ["this film", "this movie", "the film", "the movie", "this|is", "this|was", "this|has", "it|is a", "it|is an",
         "it|is one"],
        min_length=1,
    )  # fmt: skip
    """What sentences begin with that are on an item, to be replaced by its title; `this|is`: `this` before `is`."""
    catalogue: str = Field("sample:movielens", min_length=1)
    """The items, as `tasks.recommendation.source`."""
    liked: int = Field(2, ge=1, le=5)
    """Earlier choices that are told with an item."""
    draws: int = Field(8, ge=1, le=100)
    """How many items a sentence is told of in training that says what an item is, as `comedy`; others of one."""
    test_share: float = Field(0.01, gt=0, le=0.4)
    """Share of the texts that the report is made from; up to `corpus.validation_share` pretraining has not read them
    either."""
    validation_share: float = Field(0.04, gt=0, le=0.4)
    """Share of the texts that training is watched on."""
    most_copied: int = Field(8, ge=1, le=1000)
    """A sentence with a longer run of words that is in one to learn from is not shown (unit: words)."""
    most_perplexity: float = Field(5.0, gt=1)
    """A sentence that is less likely, by its tokens after its prompt, is not shown: those above made no sense."""
    num_workers: int | None = operational(1, ge=1, le=4096)
    """Workers of this task's training."""
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
        found = super().sources() | {"catalogue": self.catalogue}
        return found | ({} if self.interactions is None else {"interactions": self.interactions})
