"""Recommendations for many users: the best items that each has not chosen yet, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field

from gpt2.catalogue import InteractionsFile, in_order
from gpt2.config import Settings, operational
from gpt2.reasons import FACTS, GENERATED, attributes, facts
from gpt2.weights import read_task

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.tasks.recommendation import RecommendationPredictor


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


class Writer(Protocol):
    """A model that writes a sentence on an item for a user."""

    index: Mapping[str, int]
    """The place of each title in the writer's catalogue."""
    params: Mapping[str, Any]

    def reason(self, item: int, history: Sequence[int], params: Mapping[str, Any]) -> tuple[str, str]:
        """(sentence, why there is none) on an item for a user who chose others, in order of time."""
        ...


def histories(source: Path, config: RecommendConfig, model: Path) -> pd.DataFrame:
    """Of each active user (text), in order of the user, lists of item ids: `chosen`, in order of time, each once, and
    `disliked`, what weighs less than a like. Who liked nothing has an empty `chosen`.

    `model` is the directory of the one that will rank. `ValueError` where the source can't be read as interactions, or
    has none with an item of its catalogue.
    """
    import pandas as pd

    from gpt2.catalogue_files import read_interactions

    reading = config.reading(model)
    table, _ = read_interactions(source, reading)
    if not table["item"].isin(catalogue(model)["item"]).any():
        raise ValueError(
            f"{source}: none of {len(table):,} interactions is with an item of the model's catalogue, such as "
            f"{table['item'].iloc[0]!r:.60} in {reading.item_field!r}; set item_field to the column of the items' ids, "
            f"or give a model of this catalogue"
        )
    if config.active_days is not None:
        latest = table.groupby("user")["time"].transform("max")
        table = table[latest >= table["time"].max() - pd.Timedelta(days=config.active_days)]
    liked = in_order(table[table["liked"]]).astype({"user": str}).groupby("user")["item"].agg(list)
    others = table[~table["liked"]].drop_duplicates(["user", "item"]).groupby("user")["item"].agg(list)
    found = pd.DataFrame({"chosen": liked, "disliked": others}).sort_index()  # the users of either
    return found.map(lambda items: items if isinstance(items, list) else []).rename_axis("user")


def catalogue(directory: Path) -> pd.DataFrame:
    """The items of a model's directory, in the order of its scores: item (its id), title, text."""
    import pandas as pd

    return pd.read_json(directory / "items.jsonl", lines=True, dtype={"item": str, "title": str, "text": str})


def recommend(
    predictor: RecommendationPredictor,
    items: pd.DataFrame,
    users: pd.DataFrame,
    config: RecommendConfig,
    version: str,
    writer: Writer | None = None,
    writer_version: str = "",
) -> pd.DataFrame:
    """A row per user and item: user, rank (from 1), item, title, score, version, reason, reason_kind (`FACTS` or
    `GENERATED`), reason_version (of the writer of a reason that is shown), withheld (why what was written is not).

    `items` is the model's `catalogue`; what it does not have is left out of the users' `histories`. Neither what a user
    chose nor what he disliked is recommended; the ranking is made from what he chose alone. A reason names, of the
    others, those whose embeddings are closest to the recommended item's (cosine), the closest first, and what they have
    in common; for a user of whom the model knows no choice it says that the ranking is by popularity alone. Where the
    writer's sentence passes all checks, that is the reason.
    """
    import pandas as pd
    import torch

    from gpt2.baselines import parts

    ids, titles = items["item"].tolist(), items["title"].tolist()
    places, of = {id: i for i, id in enumerate(ids)}, attributes(items["text"].tolist())

    def known_of(each: Sequence[str]) -> list[int]:
        return [places[item] for item in each if item in places]

    known, disliked = [known_of(each) for each in users["chosen"]], [known_of(each) for each in users["disliked"]]
    with torch.inference_mode():
        embeddings = predictor.module.embeddings(predictor.module.features()).numpy()
    rows = []
    of_each = (row for some in parts(len(known), len(ids)) for row in predictor.scores(known[some]))
    for user, history, low, row in zip(users.index, known, disliked, of_each, strict=True):
        for rank, item in enumerate(predictor.top(row, [*history, *low], config.top_k), 1):
            close = embeddings[history] @ embeddings[item]
            nearest = [history[i] for i in (-close).argsort(kind="stable")[: config.reasons]]
            told, withheld = "", ""
            if writer is not None and rank <= config.written and history:
                told, withheld = written(writer, titles[item], [titles[i] for i in history], config.samples)
            why = (told, GENERATED, writer_version) if told else (facts(titles, of, nearest, item), FACTS, "")
            rows.append((user, rank, ids[item], titles[item], float(row[item]), version, *why, withheld))
    columns = ["user", "rank", "item", "title", "score", "version"]
    return pd.DataFrame(rows, columns=[*columns, "reason", "reason_kind", "reason_version", "withheld"])


def written(writer: Writer, title: str, history: list[str], samples: int) -> tuple[str, str]:
    """(sentence on an item for somebody who chose others, why there is none); titles that the writer has not are left
    out."""
    if title not in writer.index:
        return "", "the writer does not know the item"
    liked = [writer.index[one] for one in history if one in writer.index]
    return writer.reason(writer.index[title], liked, {**writer.params, "samples": samples})
