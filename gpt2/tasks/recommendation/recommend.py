"""Recommendations for many users: the best items that each has not chosen yet, with reasons."""

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
    """Index of each title in the writer's catalogue."""
    params: Mapping[str, Any]

    def reason(self, item: int, history: Sequence[int], params: Mapping[str, Any]) -> tuple[str, str]:
        """Return (sentence, why there is none) on an item for a user with this history in order of time."""
        ...


def histories(source: str | Path, config: RecommendConfig, model: Path) -> pd.DataFrame:
    """Return the histories of active users, indexed by user (text, sorted), as lists of item ids.

    `chosen` are liked items in order of time, each once; `disliked` are items with less weight than a like. `model` is
    the directory of the ranking model. Raises `ValueError` if the source can't be read as interactions, or has none
    with an item of the model's catalogue.
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
    both = pd.DataFrame({"chosen": liked, "disliked": others}).sort_index()  # the union of their users
    return both.map(lambda items: items if isinstance(items, list) else []).rename_axis("user")


def catalogue(directory: Path) -> pd.DataFrame:
    """Return the items of a model's directory, in the order of its scores: item (its id), title, text."""
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
    """Return a row per user and recommended item, best first.

    Columns: user, rank (from 1), item, title, score, version, reason, reason_kind (`FACTS` or `GENERATED`),
    reason_version (the writer's, of a written reason), withheld (why a written reason is not shown). `items` is the
    model's `catalogue`; other items are dropped from the users' `histories`. Items that a user chose or disliked are
    not recommended. The ranking follows from the chosen ones alone. A reason is the writer's sentence if it passes all
    checks. Otherwise it is a fact: the user's choices with the closest embeddings (cosine) and their common attributes.
    For a user without known choices it says that the ranking is by popularity alone.
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
        embeddings = predictor.module.embeddings(predictor.module.features()).cpu().numpy()
    rows = []
    scores = (row for some in parts(len(known), len(ids)) for row in predictor.scores(known[some]))
    for user, history, low, row in zip(users.index, known, disliked, scores, strict=True):
        for rank, item in enumerate(predictor.top(row, [*history, *low], config.top_k), 1):
            close = embeddings[history] @ embeddings[item]
            nearest = [history[i] for i in (-close).argsort(kind="stable")[: config.reasons]]
            text, withheld = "", ""
            if writer is not None and rank <= config.written and history:
                text, withheld = written(writer, titles[item], [titles[i] for i in history], config.samples)
            why = (text, GENERATED, writer_version) if text else (facts(titles, of, nearest, item), FACTS, "")
            rows.append((user, rank, ids[item], titles[item], float(row[item]), version, *why, withheld))
    columns = ["user", "rank", "item", "title", "score", "version"]
    return pd.DataFrame(rows, columns=[*columns, "reason", "reason_kind", "reason_version", "withheld"])


def written(writer: Writer, title: str, history: list[str], samples: int) -> tuple[str, str]:
    """Return (sentence on an item for a user with this history, why there is none).

    Titles that the writer does not know are left out of the history.
    """
    if title not in writer.index:
        return "", "the writer does not know the item"
    liked = [writer.index[one] for one in history if one in writer.index]
    return writer.reason(writer.index[title], liked, {**writer.params, "samples": samples})
