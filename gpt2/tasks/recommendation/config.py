"""A catalogue and what people chose of it, made fit to learn from: items told as text, histories in order of time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from gpt2.settings import Settings, operational
from gpt2.store.model_files import read_task
from gpt2.tasks.config import TaskSettings
from gpt2.training.config import OptimizerConfig, TrainConfig


class RecommendConfig(Settings):
    """Who gets recommendations, and how many."""

    source: str = Field("sample:movielens", min_length=1)
    """A file of interactions (.csv, .jsonl, .parquet), or a folder with `interactions.*`, or `sample:movielens`."""
    model: str = Field("models:/gpt2-recommendation@champion", min_length=1)
    """The registered model that ranks: models:/NAME@ALIAS or models:/NAME/VERSION."""
    top_k: int = Field(10, ge=1, le=1000)
    """Items that each user gets, the best first."""
    active_days: float | None = Field(None, gt=0, le=36500)
    """A user is active who has chosen something in so many days before the latest interaction; without it, every
    user is."""
    reasons: int = Field(2, ge=1, le=5)
    """Earlier choices that a reason names."""
    writer: str | None = Field(None, min_length=1)
    """The registered model that writes reasons, as models:/gpt2-reasons@champion; without it all reasons are facts."""
    written: int = Field(1, ge=1, le=1000)
    """With a writer: items of each user, the best first, for which it writes; the others have facts."""
    samples: int = Field(8, ge=1, le=64)
    """With a writer: sentences that it writes for a reason; the best is shown, if it passes all checks."""
    batch_users: int = operational(500, ge=1, le=1_000_000)
    """Users whose recommendations are made and kept at a time: a killed run loses at most so many (unit: users)."""
    user_field: str | None = Field(None, min_length=1)
    """The column of who chose; without it the one that the model learned from."""
    item_field: str | None = Field(None, min_length=1)
    """The column of what was chosen, the ids of items; without it the one that the model learned from."""
    time_field: str | None = Field(None, min_length=1)
    """The column of the times; without it the one that the model learned from."""
    weight_field: str | None = Field(None, min_length=1)
    """The column of the weights, such as ratings; without it the one that the model learned from."""
    min_weight: float | None = None
    """An interaction of less weight is not a like: its item is not recommended again, and says nothing of others.
    Without it what the model learned with."""

    def reading(self, model: Path) -> InteractionsFile:
        """How interactions are read: as the model's in that directory were, but for what is said here."""
        kept = read_task(model).get("interactions", {})  # older models kept nothing
        said = {name: value for name in InteractionsFile.model_fields if (value := getattr(self, name)) is not None}
        return InteractionsFile.model_validate({**kept, **said})


TABLES = (".csv", ".jsonl", ".parquet")


class InteractionsFile(Settings):
    """What is read of a file of interactions: who chose what, and when."""

    user_field: str = Field("user", min_length=1)
    """The column of who chose, in the file of interactions."""
    item_field: str = Field("item", min_length=1)
    """The column of what was chosen, in the file of interactions: the ids of the items."""
    time_field: str = Field("time", min_length=1)
    """The column of the times, by which choices are ordered: ISO 8601, or seconds or milliseconds since 1970."""
    weight_field: str | None = Field("weight", min_length=1)
    """The column of how much an interaction weighs, such as a rating; it is read where `min_weight` is set."""
    min_weight: float | None = None
    """An interaction of less weight is not a like: it is not learned from, and its item counts as seen where there is
    ranking, as one that was liked; without it all count alike."""

    @model_validator(mode="after")
    def _interactions(self):
        if self.min_weight is not None and self.weight_field is None:
            raise ValueError(f"min_weight={self.min_weight} needs the column of the weights: set weight_field")
        used = [self.user_field, self.item_field, self.time_field]
        used += [self.weight_field] if self.min_weight is not None and self.weight_field else []
        distinct(used)
        return self

    def reading(self) -> dict[str, Any]:
        """How interactions are read, to be kept with what is made of them."""
        return {name: getattr(self, name) for name in InteractionsFile.model_fields}


class CatalogueFiles(InteractionsFile):
    """What is read of a file of items and a file of interactions, and who is learned from."""

    interactions: str | None = operational(None, min_length=1)
    """The file of interactions (.csv, .jsonl, .parquet): user, item, time, perhaps a weight. Its content is part of
    the examples' id."""
    id_field: str | None = Field(None, min_length=1)
    """The column of an item's id, in the file of items; without it `id`, or else `item`."""
    text_field: str | None = Field("text", min_length=1)
    """The column of an item's text; an item needs a text, a title or an attribute."""
    title_field: str | None = Field("title", min_length=1)
    """The column of what an item is called in rankings; without a title, how its text begins (80 characters)."""
    attributes: list[str] | None = None
    """The columns that are told after the text, each as `; name: value`; without it all others of the file, in its
    order; [] for none."""
    item_tokens: int = Field(32, ge=4, le=1024)
    """What is told of an item (title, text, attributes) is cut to so many tokens (unit: tokens)."""
    max_unknown: float = Field(0.1, ge=0, le=1)
    """Largest share of interactions with items that the file of items does not have; fewer are left out."""
    min_items: int = Field(4, ge=4, le=1000)
    """Users who chose fewer items are left out: the last item is the test, the one before it the validation."""

    @model_validator(mode="after")
    def _items(self):
        named = (self.id_field, self.text_field, self.title_field)
        distinct([n for n in named if n is not None] + (self.attributes or []))
        return self


def distinct(names: Sequence[str]) -> None:
    """`ValueError` where a column is named for two things."""
    if len(set(names)) < len(names):
        raise ValueError(f"a column is named twice among {', '.join(names)}; name a column of its own for each")


class RecommendationSettings(CatalogueFiles, TaskSettings):
    """Recommendation: who saw what, when, and what the items are called."""

    source: str = Field("sample:movielens", min_length=1)
    """The file of items (.csv, .jsonl, .parquet): id, text and attributes, with `interactions` beside it; or a folder
    with `items.*` and `interactions.*`; or `sample:movielens`."""
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
        if self.interactions is None and Path(self.source).suffix in TABLES:
            raise ValueError(f"source={self.source!r} is a file of items; set interactions to the file of interactions")
        if self.interactions is not None and self.source.startswith("sample:"):
            raise ValueError(
                f"interactions={self.interactions!r} are not the sample's; set source to your file of items"
            )
        return self

    def sources(self) -> dict[str, str]:
        return super().sources() | ({} if self.interactions is None else {"interactions": self.interactions})
