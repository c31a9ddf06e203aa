"""The settings of the recommender: its files, what is learned from them, and the job `recommend`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from gpt2.data.config import FileForm
from gpt2.data.sources import readable
from gpt2.settings import operational
from gpt2.store.model_files import read_task
from gpt2.tasks.config import TaskSettings
from gpt2.training.config import OptimizerConfig, TrainConfig


class RecommendConfig(FileForm):
    """Settings of the recommendations for many users."""

    source: str = Field("sample:movielens", min_length=1)
    """A file of interactions (.csv, .tsv, .jsonl, .parquet), or a folder, a glob or an fsspec URL of such files; or a
    folder with `interactions.*`, or `sample:movielens`."""
    model: str = Field("models:/gpt2-recommendation@champion", min_length=1)
    """The registered model that ranks: models:/NAME@ALIAS or models:/NAME/VERSION."""
    top_k: int = Field(10, ge=1, le=1000)
    """Number of items for each user, best first."""
    active_days: float | None = Field(None, gt=0, le=36500)
    """Only users with a choice within this time before the latest interaction get recommendations (unit: days); without
    it, all users."""
    reasons: int = Field(2, ge=1, le=5)
    """Number of earlier choices that a reason names."""
    writer: str | None = Field(None, min_length=1)
    """The registered model that writes reasons, as models:/gpt2-reasons@champion; without it all reasons are facts."""
    written: int = Field(1, ge=1, le=1000)
    """With a writer: number of items per user, best first, with a written reason; the others have facts."""
    samples: int = Field(8, ge=1, le=64)
    """With a writer: number of sentences sampled for a reason; the best one is shown if it passes all checks."""
    batch_users: int = operational(500, ge=1, le=1_000_000)
    """Users processed and stored at a time; a killed run loses at most this many (unit: users)."""
    user_field: str | None = Field(None, min_length=1)
    """The column of the users; without it, that of the model's training data."""
    item_field: str | None = Field(None, min_length=1)
    """The column of the chosen items' ids; without it, that of the model's training data."""
    time_field: str | None = Field(None, min_length=1)
    """The column of the times; without it, that of the model's training data."""
    weight_field: str | None = Field(None, min_length=1)
    """The column of the weights, such as ratings; without it, that of the model's training data."""
    min_weight: float | None = None
    """Smallest weight of a like. An item with less weight is not recommended again and does not influence the ranking.
    Without it, the model's own value."""

    def reading(self, model: Path) -> InteractionsFile:
        """Return how interactions are read: as for the model in that directory, except for the settings given here."""
        kept = read_task(model).get("interactions", {})  # older models kept nothing
        given = {name: value for name in InteractionsFile.model_fields if (value := getattr(self, name)) is not None}
        return InteractionsFile.model_validate({**kept, **given})


class InteractionsFile(FileForm):
    """Columns of a file of interactions: who chose what, and when."""

    user_field: str = Field("user", min_length=1)
    """The column of the users, in the file of interactions."""
    item_field: str = Field("item", min_length=1)
    """The column of the chosen items' ids, in the file of interactions."""
    time_field: str = Field("time", min_length=1)
    """The column of the times that order the choices: ISO 8601, or seconds or milliseconds since 1970."""
    weight_field: str | None = Field("weight", min_length=1)
    """The column of an interaction's weight, such as a rating; read only if `min_weight` is set."""
    min_weight: float | None = None
    """Smallest weight of a like. An interaction with less weight is not learned from, but its item counts as seen in
    rankings. Without it all interactions are likes."""

    @model_validator(mode="after")
    def _interactions(self):
        if self.min_weight is not None and self.weight_field is None:
            raise ValueError(f"min_weight={self.min_weight} needs the column of the weights: set weight_field")
        used = [self.user_field, self.item_field, self.time_field]
        used += [self.weight_field] if self.min_weight is not None and self.weight_field else []
        distinct(used)
        return self

    def reading(self) -> dict[str, Any]:
        """Return the settings by which interactions are read, whatever their file's form, to be stored with results."""
        own = InteractionsFile.model_fields.keys() - FileForm.model_fields.keys()
        return {name: getattr(self, name) for name in InteractionsFile.model_fields if name in own}


class CatalogueFiles(InteractionsFile):
    """Columns of a file of items and a file of interactions, and which users and items are used."""

    interactions: str | None = operational(None, min_length=1)
    """The file of interactions, or a folder, a glob or an fsspec URL of such files: user, item, time, perhaps a weight.
    Their content is part of the examples' id."""
    id_field: str | None = Field(None, min_length=1)
    """The column of an item's id, in the file of items; without it `id`, or else `item`."""
    text_field: str | None = Field("text", min_length=1)
    """The column of an item's text; an item needs a text, a title or an attribute."""
    title_field: str | None = Field("title", min_length=1)
    """The column of an item's title in rankings; without a title, the beginning of its text (80 characters)."""
    attributes: list[str] | None = None
    """The columns appended to the text, each as `; name: value`; without it, all other columns in the file's order; []
    for none."""
    item_tokens: int = Field(32, ge=4, le=1024)
    """Longest description of an item (title, text, attributes); the rest is cut (unit: tokens)."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Largest share of interactions with items missing in the file of items; such interactions are left out."""
    min_items: int = Field(4, ge=4, le=1000)
    """Fewest items of a user; others are left out. The last item is the test, the one before it the validation."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_column(cls, values: Any) -> Any:
        """Let a column that is named as the text, or as the title, be no other by default."""
        if isinstance(values, dict):
            fields = {"text_field": "text", "title_field": "title"}
            taken = [values[name] for name in fields if name in values]
            return {**{name: None for name, column in fields.items() if column in taken}, **values}
        return values

    @model_validator(mode="after")
    def _items(self):
        named = (self.id_field, self.text_field, self.title_field)
        distinct([n for n in named if n is not None] + (self.attributes or []))
        return self


def distinct(names: Sequence[str]) -> None:
    """Raise `ValueError` if a column is named for two purposes."""
    if len(set(names)) < len(names):
        raise ValueError(f"a column is named twice among {', '.join(names)}; name a column of its own for each")


class RecommendationSettings(CatalogueFiles, TaskSettings):
    """Recommendation: items with their texts, and the users' choices."""

    source: str = Field("sample:movielens", min_length=1)
    """The file of items, or a folder, a glob or an fsspec URL of such files (.csv, .tsv, .jsonl, .parquet): id, text
    and attributes, with `interactions` set; or a folder with `items.*` and `interactions.*`; or `sample:movielens`."""
    train: TrainConfig = TrainConfig(
        epochs=4,
        batch_size=32,
        micro_batch_size=16,
        context=50,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, schedule="cosine", final_ratio=0.0),
        eval_samples=128,
        checkpoint_every=50,
        log_every=10,
    )
    """Fine-tuning: length, batches, rates. The context counts items: the latest of a history."""

    @model_validator(mode="after")
    def _files(self):
        if self.interactions is None and readable(self.source):
            raise ValueError(f"source={self.source!r} is a file of items; set interactions to the file of interactions")
        if self.interactions is not None and self.source.startswith("sample:"):
            raise ValueError(
                f"interactions={self.interactions!r} do not belong to the sample; set source to your file of items"
            )
        return self

    def sources(self) -> dict[str, str]:
        return super().sources() | ({} if self.interactions is None else {"interactions": self.interactions})
