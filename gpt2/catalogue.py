"""A catalogue and what people chose of it, made fit to learn from: items told as text, histories in order of time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from gpt2.config import Settings, operational

if TYPE_CHECKING:
    import pandas as pd

TABLES = (".csv", ".jsonl", ".parquet")
HALF_LIVES = 8
"""Of an interaction's weight in recent popularity, in the time from the first to the last of them."""


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


def prepare(source: Path, settings: CatalogueFiles, out: Path) -> dict[str, int]:
    """Write items.parquet (item, title, text, popularity, recent), histories.parquet (user, item indices in order, and
    where some were not liked `disliked`, the indices of those) and catalogue.json; returns the counts, also of what was
    left out.

    The last item of a user is the test, the one before it the validation, the rest trains; popularity counts training
    interactions only, and so does `recent`, where the older count less. `ValueError` where the files can't be learned
    from.
    """
    items, histories, counts = usable(source, settings)
    trained = [np.concatenate([row[:-2] for row in histories[column]]) for column in ("items", "times")]
    popularity = np.bincount(trained[0], minlength=len(items))
    recent = np.bincount(trained[0], freshness(trained[1]), minlength=len(items))
    items.assign(popularity=popularity, recent=recent).to_parquet(out / "items.parquet", index=False)
    histories.drop(columns="times").reset_index().to_parquet(out / "histories.parquet", index=False)
    facts = {"item_tokens": settings.item_tokens, "interactions": settings.reading()}
    (out / "catalogue.json").write_text(json.dumps(facts))
    return counts


def freshness(times: np.ndarray) -> np.ndarray:
    """(N,) seconds to weights of at most 1, by how long before the last of them they were."""
    age = times.max() - times
    return 0.5 ** (HALF_LIVES * age / max(age.max(), 1.0))


def usable(source: Path, settings: CatalogueFiles) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """(items: item, title, text; of each user with enough of them `items`, the indices of what he chose, each once, in
    order of time, their `times`, and where some were not liked `disliked` (`not_liked`); counts)."""
    from gpt2.catalogue_files import read_source

    items, choices, counts = read_source(source, settings)
    where = settings.interactions or source
    choices, others = choices[choices["liked"]], choices[~choices["liked"]]
    known = choices["item"].isin(items["item"])
    if (~known).mean() > settings.max_unknown:
        raise ValueError(
            f"{where}: {int((~known).sum()):,} of {len(choices):,} interactions are with items that the file of items "
            f"does not list, such as {choices['item'][~known].iloc[0]!r}; add them, check id_field and item_field, or "
            f"raise max_unknown={settings.max_unknown}"
        )
    chosen = in_order(choices[known])
    counts["unknown_items"] = len(choices) - int(known.sum())
    counts["repeated"] = int(known.sum()) - len(chosen)
    places = {item: i for i, item in enumerate(items["item"])}
    chosen["items"] = chosen["item"].map(places)
    start = chosen["time"].min()
    chosen["times"] = (chosen["time"] - start).dt.total_seconds()
    histories = chosen.groupby("user", sort=True)[["items", "times"]].agg(list)
    enough = histories[histories["items"].map(len) >= settings.min_items]
    counts["users_with_few"] = len(histories) - len(enough)
    if len(enough) < 2:
        left_out = ", ".join(f"{what.replace('_', ' ')} {n:,}" for what, n in counts.items() if n)
        raise ValueError(
            f"{where}: only {len(enough)} users have {settings.min_items} items or more ({left_out}); add interactions"
            + ("" if settings.min_weight is None else f" or lower min_weight={settings.min_weight}")
        )
    if len(others):
        enough = enough.assign(disliked=not_liked(others, enough, places, start))
    total = int(enough["items"].map(len).sum())
    return items, enough, {"users": len(enough), "items": len(items), "interactions": total, **counts}


def not_liked(
    others: pd.DataFrame, histories: pd.DataFrame, places: dict[str, int], start: pd.Timestamp
) -> list[list[int]]:
    """Of each user of the histories the indices of items that he saw but did not like (`others`), not even later, up to
    the moment of his last like: what was seen is no candidate for it."""
    known = others[others["item"].isin(places.keys())]
    times = (known["time"] - start).dt.total_seconds()
    rows: dict[str, list[tuple[int, float]]] = {}
    for user, item, time in zip(known["user"], known["item"], times, strict=True):
        rows.setdefault(user, []).append((places[item], time))
    found = []
    for user, liked, moments in zip(histories.index, histories["items"], histories["times"], strict=True):
        seen = {item for item, time in rows.get(str(user), []) if time <= moments[-1]}
        found.append(sorted(seen.difference(liked)))
    return found


def in_order(choices: pd.DataFrame) -> pd.DataFrame:
    """Each user's choices in order of time, each item once, at its first; those of one moment by a hash of user and
    item, so that the order of the file says nothing."""
    marks = [
        blake2b(f"{u} {i}".encode(), digest_size=8).hexdigest()
        for u, i in zip(choices["user"], choices["item"], strict=True)
    ]
    table = choices.assign(user=numbered(choices["user"]), tie=marks)
    return table.sort_values(["user", "time", "tie"], kind="stable").drop_duplicates(["user", "item"])


def numbered(users: pd.Series) -> pd.Series:
    """Users as numbers where all are written as such, so that they have one order in whatever form a file has them."""
    plain = users.str.fullmatch(r"0|[1-9][0-9]{0,17}")
    return users.astype("int64") if plain.all() else users


def sentence(title: str, text: str) -> str:
    """What is told of an item: its title and its text; a text that begins with the title says it already."""
    if text.startswith(title):
        return text
    return f"{title}: {text}" if text else title
