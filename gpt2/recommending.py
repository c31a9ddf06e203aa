"""Recommendations for many users: the best items that each has not chosen yet, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gpt2.catalogue import InteractionsFile, in_order
from gpt2.config import operational

if TYPE_CHECKING:
    import pandas as pd

    from gpt2.tasks.recommendation import RecommendationPredictor


class RecommendConfig(InteractionsFile):
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
    batch_users: int = operational(500, ge=1, le=1_000_000)
    """Users whose recommendations are made and kept at a time: a killed run loses at most so many (unit: users)."""


def histories(source: Path, config: RecommendConfig) -> pd.Series:
    """Of each active user (text), in order of the user: what he chose, item ids in order of time, each once.

    `ValueError` where the source can't be read as interactions.
    """
    import pandas as pd

    from gpt2.catalogue_files import read_interactions

    table, _ = read_interactions(source, config)
    if config.active_days is not None:
        latest = table.groupby("user")["time"].transform("max")
        table = table[latest >= table["time"].max() - pd.Timedelta(days=config.active_days)]
    found = in_order(table).groupby("user", sort=True)["item"].agg(list)
    return found.set_axis(found.index.astype(str)).sort_index()


def catalogue(directory: Path) -> list[str]:
    """The item ids of a model's directory, in the order of its scores."""
    import pandas as pd

    return pd.read_json(directory / "items.jsonl", lines=True, dtype={"item": str})["item"].tolist()


def recommend(
    predictor: RecommendationPredictor, ids: Sequence[str], chosen: pd.Series, config: RecommendConfig, version: str
) -> pd.DataFrame:
    """A row per user and item: user, rank (from 1), item, title, score, version, reason.

    Items that the model's catalogue does not have are left out of what a user chose. A reason names, of the others,
    those whose embeddings are closest to the recommended item's (cosine), the closest first; for a user of whom the
    model knows no choice it says that the ranking is by popularity alone.
    """
    import pandas as pd
    import torch

    places = {id: i for i, id in enumerate(ids)}
    known = [[places[item] for item in items if item in places] for items in chosen]
    scores = predictor.scores(known)
    with torch.inference_mode():
        embeddings = predictor.module.embeddings(predictor.module.features()).numpy()
    rows = []
    for user, history, row in zip(chosen.index, known, scores, strict=True):
        for rank, item in enumerate(predictor.top(row, history, config.top_k), 1):
            told = reason(predictor.titles, history, embeddings, item, config.reasons)
            rows.append((user, rank, ids[item], predictor.titles[item], float(row[item]), version, told))
    return pd.DataFrame(rows, columns=["user", "rank", "item", "title", "score", "version", "reason"])


def reason(titles: Sequence[str], history: Sequence[int], embeddings: Any, item: int, count: int) -> str:
    """A sentence that is true of the model and of what the user chose; nothing in it is generated."""
    if not history:
        return "Ranked by popularity alone: nothing that this user chose is in the model's catalogue."
    close = embeddings[list(history)] @ embeddings[item]
    nearest = [titles[history[i]] for i in (-close).argsort(kind="stable")[:count]]
    named = nearest[0] if len(nearest) == 1 else f"{', '.join(nearest[:-1])} and {nearest[-1]}"
    return f"Of what this user chose, closest to it for the model: {named}."
