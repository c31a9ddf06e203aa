"""The files of a catalogue: items with what is told of them, and who chose which when. Bad rows are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpt2.catalogue import TABLES, CatalogueFiles, InteractionsFile
from gpt2.tables import MAX_UNTIMED, cell, listed, missing, read_table, times

ID_FIELDS = ("id", "item")
TITLE_CHARS = 80
"""A title that is made of a text has so many characters at most."""


def read_source(source: Path, settings: CatalogueFiles) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """(items: item, title, text; interactions: user, item, time in UTC, liked; counts of rows that were left out).

    `source` is the file of items, or a folder with `items.*` and `interactions.*`, or the sample.
    """
    if is_movielens(source):
        choices, counts = usable_rows(movielens_ratings(source), source, settings)
        return movielens_films(source), choices, counts
    items, bad = read_items(file_in(source, "items") if source.is_dir() else source, settings)
    choices, left_out = read_interactions(source, settings)
    return items, choices, {**bad, **left_out}


def read_interactions(source: Path, settings: InteractionsFile) -> tuple[pd.DataFrame, dict[str, int]]:
    """(user and item as text, time in UTC, whether it is `liked`; counts of rows that were left out). `source` may be
    the file itself."""
    if is_movielens(source):
        return usable_rows(movielens_ratings(source), source, settings)
    given = getattr(settings, "interactions", None)
    place = Path(given) if given else file_in(source, "interactions") if source.is_dir() else source
    table = read_table(place)
    columns = {"user": settings.user_field, "item": settings.item_field, "time": settings.time_field}
    if settings.min_weight is not None and settings.weight_field is not None:
        columns["weight"] = settings.weight_field
    if fault := missing(table, {f"{name}_field": column for name, column in columns.items()}):
        raise ValueError(f"{place} has {fault}")
    return usable_rows(table[list(columns.values())].set_axis(list(columns), axis=1), place, settings)


def usable_rows(table: pd.DataFrame, place: Path, settings: InteractionsFile) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows with a user, an item and a time, and whether each weighs as much as a like; `ValueError` where none is."""
    rows = len(table)
    if not rows:
        raise ValueError(f"{place} has no rows; add interactions")
    table = table.reset_index(drop=True)
    table = table.assign(user=table["user"].map(cell), item=table["item"].map(cell))
    table = table[table["user"].notna() & table["item"].notna()]
    counts = {"without_user_or_item": rows - len(table)}
    if table.empty:
        raise ValueError(f"{place}: none of {rows:,} rows has a user and an item; set user_field and item_field")
    found = times(plain(table["time"]))
    none = found.isna()
    if none.mean() > MAX_UNTIMED:
        raise ValueError(
            f"{place}: {int(none.sum()):,} of {len(table):,} rows have no time that can be read in "
            f"{settings.time_field!r}, such as {table['time'][none].iloc[0]!r:.60}; write ISO 8601 or seconds "
            f"since 1970"
        )
    table, counts["untimed"] = table.assign(time=found)[~none], int(none.sum())
    if settings.min_weight is not None:
        weights = pd.to_numeric(plain(table["weight"]), errors="coerce").astype(float)
        if (bad := ~np.isfinite(weights)).any():
            number = int(bad.idxmax())
            raise ValueError(
                f"{place} row {number + 1}: {settings.weight_field}={table['weight'][number]!r:.60} is no weight; give "
                f"a finite number, or set min_weight: null"
            )
        table = table.assign(liked=weights >= settings.min_weight)
        counts["below_min_weight"] = int((~table["liked"]).sum())
        if not table["liked"].any():
            raise ValueError(
                f"{place}: no interaction weighs min_weight={settings.min_weight} or more; the largest weight is "
                f"{weights.max():g}"
            )
    else:
        table = table.assign(liked=True)
    return table[["user", "item", "time", "liked"]].reset_index(drop=True), counts


def plain(column: pd.Series) -> pd.Series:
    """Numbers and times as they are, all else as text."""
    is_plain = pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)
    return column if is_plain else column.map(cell)


def read_items(place: Path, settings: CatalogueFiles) -> tuple[pd.DataFrame, dict[str, int]]:
    """(item, title, text of each item, each id once; counts of rows that were left out).

    The text is followed by the attributes, as in `Blue shoes; brand: Acme; size: 42`. Of equal ids the first counts.
    """
    table = read_table(place)
    id_field = settings.id_field or next((name for name in ID_FIELDS if name in table), ID_FIELDS[0])
    columns = {"id": id_field}
    for name, column in {"title": settings.title_field, "text": settings.text_field}.items():
        if column is not None and (column in table or column != name):  # a column that was named must be there
            columns[name] = column
    if fault := missing(table, {f"{name}_field": column for name, column in columns.items()}):
        raise ValueError(f"{place} has {fault}")
    others = [c for c in table if c not in columns.values()] if settings.attributes is None else settings.attributes
    if absent := [c for c in others if c not in table]:
        raise ValueError(f"{place} has no column {absent[0]!r}; it has {listed(table)}: change attributes")
    if len(columns) == 1 and not others:
        raise ValueError(
            f"{place} has nothing to tell of an item but its id; set text_field, title_field or attributes"
        )
    ids = [cell(value) for value in table[id_field]]
    cells = {name: table[column].map(told).tolist() for name, column in columns.items() if name != "id"}
    attributes = [table[column].map(told).tolist() for column in others]
    rows: dict[str, tuple[str, str, str]] = {}
    without_id = without_text = repeated = 0
    for i, item in enumerate(ids):
        own = cells["text"][i] if "text" in cells else ""
        parts = [own, *(f"{name}: {values[i]}" for name, values in zip(others, attributes, strict=True) if values[i])]
        text = "; ".join(part for part in parts if part)
        title = (cells["title"][i] if "title" in cells else "") or beginning(own or text)
        if item is None:
            without_id += 1
        elif not title:
            without_text += 1
        elif item in rows:
            repeated += 1
        else:
            rows[item] = (item, title, text)
    if not rows:
        raise ValueError(f"{place}: none of {len(table):,} rows has an id and a text; set id_field and text_field")
    counts = {"items_without_id": without_id, "items_without_text": without_text, "items_repeated": repeated}
    return pd.DataFrame(list(rows.values()), columns=["item", "title", "text"]), counts


def told(value: Any) -> str:
    """A cell as text, "" for an empty one; of a list its parts, with commas between them."""
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(filter(None, map(told, value)))
    if isinstance(value, dict):
        return ", ".join(f"{name} {told(part)}" for name, part in value.items() if told(part))
    return cell(value) or ""


def beginning(text: str) -> str:
    """How a text begins: of its first line as many whole words as `TITLE_CHARS` has room for."""
    text = text.partition("\n")[0].rstrip()
    if len(text) <= TITLE_CHARS:
        return text
    cut = text[: TITLE_CHARS + 1].rfind(" ")
    return text[: cut if cut > 0 else TITLE_CHARS]


def file_in(folder: Path, name: str) -> Path:
    """The table of that name; `ValueError` where there is none."""
    files = sorted(f for f in folder.glob(f"{name}.*") if f.suffix in TABLES)
    if not files:
        raise ValueError(f"{folder} has no {name}.csv, .jsonl or .parquet; a folder with both tables is needed")
    return files[0]


def is_movielens(source: Path) -> bool:
    """Whether it is the folder of the sample."""
    return (source / "MovieLens100k_data.parquet.brotli").exists()


def movielens_ratings(source: Path) -> pd.DataFrame:
    """MovieLens-100k (Harper and Konstan 2015): user, item, time, and the rating as the weight."""
    ratings = read_table(source / "MovieLens100k_data.parquet.brotli")
    columns = {"user_id": "user", "movie_id": "item", "timestamp": "time", "rating": "weight"}
    return ratings[list(columns)].rename(columns=columns)


def movielens_films(source: Path) -> pd.DataFrame:
    """Its films; their text is their genres."""
    films = read_table(source / "MovieLens100k_items.parquet.brotli")
    names = list(films.columns[films.columns.get_loc("unknown") + 1 :])
    genres = [", ".join(n for n in names if row[n]) for row in films[names].to_dict("records")]
    return pd.DataFrame(
        {"item": films["movie_id"].astype(str), "title": films["movie_title"].astype(str), "text": genres}
    )
