"""Recommendations for many users: the best items that each has not chosen yet, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpt2.tasks.recommendation.catalogue import FACTS, GENERATED, attributes, facts, in_order
from gpt2.tasks.recommendation.config import RecommendConfig

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.tasks.recommendation.predictor import RecommendationPredictor


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

    from gpt2.tasks.recommendation.catalogue import read_interactions

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

    from gpt2.tasks.recommendation.hybrid import parts

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
