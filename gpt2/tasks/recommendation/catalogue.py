"""Files of items and interactions to items as text and histories in order of time; facts about items.

Bad rows are counted by reason. Facts are sentences from an item's attributes and a user's choices; no model writes
them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gpt2.data.sources import address, is_folder, locate, readable
from gpt2.data.tables import MAX_UNTIMED, cell, cells, listed, mapped, missing, name_in, place, read_table, times
from gpt2.data.text import is_character, words
from gpt2.tasks.recommendation.config import CatalogueFiles, InteractionsFile

if TYPE_CHECKING:
    import pandas as pd

ID_FIELDS = ("id", "item")
NAMELESS = re.compile(r"(Unnamed: \d+(\.\d+)*)?")
"""Columns without a name, as `DataFrame.to_csv` writes its index, under the names that pandas gives them."""
MOVIELENS = "MovieLens100k_{}.parquet.brotli"
TITLE_CHARS = 80
"""Longest title that is made from a text (characters)."""


def read_source(source: str | Path, settings: CatalogueFiles) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Return (items: item, title, text; interactions: user, item, time in UTC, liked; counts of dropped rows).

    `source` has the items, or is a folder with `items.*` and `interactions.*`, or the sample.
    """
    if is_movielens(source):
        choices, counts = usable_rows(movielens_ratings(source), source, settings)
        return movielens_films(source), choices, counts
    items, bad = read_items(source if settings.interactions else file_in(source, "items"), settings)
    choices, left_out = read_interactions(source, settings)
    return items, choices, {**bad, **left_out}


def read_interactions(source: str | Path, settings: InteractionsFile) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return (interactions: user and item as text, time in UTC, `liked`; counts of dropped rows).

    `source` may also have nothing but interactions.
    """
    if is_movielens(source):
        return usable_rows(movielens_ratings(source), source, settings)
    where = getattr(settings, "interactions", None) or file_in(source, "interactions")
    columns = {"user": settings.user_field, "item": settings.item_field, "time": settings.time_field}
    if settings.min_weight is not None and settings.weight_field is not None:
        columns["weight"] = settings.weight_field
    table = read_table(where, settings.form, set(columns.values()))
    if fault := missing(table, {f"{name}_field": column for name, column in columns.items()}):
        raise ValueError(f"{where} has {fault}")
    return usable_rows(table[list(columns.values())].set_axis(list(columns), axis=1), where, settings)


def usable_rows(
    table: pd.DataFrame, where: str | Path, settings: InteractionsFile
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return (the rows with user, item and time, with `liked`; counts of dropped rows).

    A row is liked if its weight is `min_weight` or more. Raises `ValueError` if no row is usable or liked.
    """
    rows = len(table)
    if not rows:
        raise ValueError(f"{where} has no rows; add interactions")
    table = table.reset_index(drop=True)
    table = table.assign(user=mapped(table["user"], name_in), item=mapped(table["item"], name_in))
    table = table[table["user"].notna() & table["item"].notna()]
    counts = {"without_user_or_item": rows - len(table)}
    if table.empty:
        raise ValueError(f"{where}: none of {rows:,} rows has a user and an item; set user_field and item_field")
    parsed = times(plain(table["time"]), least=0)  # only the order counts, which small numbers have, too
    none = parsed.isna()
    if none.mean() > MAX_UNTIMED:
        raise ValueError(
            f"{where}: {int(none.sum()):,} of {len(table):,} rows have no time that can be read in "
            f"{settings.time_field!r}, such as {table['time'][none].iloc[0]!r:.60}; write ISO 8601 or seconds "
            f"since 1970"
        )
    table, counts["untimed"] = table.assign(time=parsed)[~none], int(none.sum())
    if settings.min_weight is not None:
        weights = pd.to_numeric(plain(table["weight"]), errors="coerce").astype(float)
        if (bad := ~np.isfinite(weights)).any():
            number = int(bad.idxmax())
            value = table["weight"][number]
            raise ValueError(
                f"{place(where, table, number + 1)}: {settings.weight_field}={value!r:.60} is not a weight; give a "
                f"finite number, or set min_weight: null"
            )
        table = table.assign(liked=weights >= settings.min_weight)
        counts["below_min_weight"] = int((~table["liked"]).sum())
        if not table["liked"].any():
            raise ValueError(
                f"{where}: no interaction weighs min_weight={settings.min_weight} or more; the largest weight is "
                f"{weights.max():g}"
            )
    else:
        table = table.assign(liked=True)
    table = table[["user", "item", "time", "liked"]].reset_index(drop=True)
    table.attrs = {}  # the places of the files are no part of the examples
    return table, counts


def plain(column: pd.Series) -> pd.Series:
    """Return a column of numbers or times unchanged, any other as text."""
    is_plain = pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)
    return column if is_plain else cells(column)


def read_items(where: str | Path, settings: CatalogueFiles) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return (item, title and text of each item, each id once; counts of dropped rows).

    The text is followed by the attributes, as in `Blue shoes; brand: Acme; size: 42`. The first row of an id is kept.
    """
    known = None
    if settings.attributes is not None:
        named = (*ID_FIELDS, settings.id_field, settings.title_field, settings.text_field, *settings.attributes)
        known = set(filter(None, named))
    table = read_table(where, settings.form, known)
    id_field = settings.id_field or next((name for name in ID_FIELDS if name in table), ID_FIELDS[0])
    columns = {"id": id_field}
    for name, column in {"title": settings.title_field, "text": settings.text_field}.items():
        if column is not None and (column in table or column != name):  # a column that was named must be there
            columns[name] = column
    if fault := missing(table, {f"{name}_field": column for name, column in columns.items()}):
        raise ValueError(f"{where} has {fault}")
    others = settings.attributes
    if others is None:
        others = [c for c in table if c not in columns.values() and not NAMELESS.fullmatch(str(c).strip())]
    if absent := [c for c in others if c not in table]:
        raise ValueError(f"{where} has no column {absent[0]!r}; it has {listed(table)}: change attributes")
    if len(columns) == 1 and not others:
        raise ValueError(
            f"{where} has only ids of items and nothing that describes them; set text_field, title_field or attributes"
        )
    ids = [name_in(value) for value in table[id_field]]
    cells = {name: table[column].map(as_text).tolist() for name, column in columns.items() if name != "id"}
    attributes = [table[column].map(as_text).tolist() for column in others]
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
        raise ValueError(f"{where}: none of {len(table):,} rows has an id and a text; set id_field and text_field")
    counts = {"items_without_id": without_id, "items_without_text": without_text, "items_repeated": repeated}
    return pd.DataFrame(list(rows.values()), columns=["item", "title", "text"]), counts


def as_text(value: Any) -> str:
    """Return a cell as text, "" for an empty one; the parts of a list are joined by commas."""
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(filter(None, map(as_text, value)))
    if isinstance(value, dict):
        return ", ".join(f"{name} {as_text(part)}" for name, part in value.items() if as_text(part))
    return cell(value) or ""


def beginning(text: str) -> str:
    """Return the beginning of a text's first line: whole words of at most `TITLE_CHARS` characters."""
    text = text.partition("\n")[0].rstrip()
    if len(text) <= TITLE_CHARS:
        return text
    cut = text[: TITLE_CHARS + 1].rfind(" ")
    return text[: cut if cut > 0 else TITLE_CHARS]


def file_in(source: str | Path, name: str) -> str:
    """Return the table of that name in a folder, `NAME.*`; any other source, and a folder without it, unchanged.

    A folder that has one of the catalogue's two tables must have the other.
    """
    fs, path = locate(str(source))
    if not is_folder(fs, path):
        return str(source)
    files = sorted(filter(readable, fs.ls(path, detail=False)), reverse=True)
    tables = {PurePosixPath(file).name.partition(".")[0]: address(fs, file) for file in files}
    if name not in tables and tables.keys() & {"items", "interactions"}:
        raise ValueError(f"{source} has no {name}.csv, .jsonl or .parquet; give a folder with both tables")
    return tables.get(name, str(source))


def is_movielens(source: str | Path) -> bool:
    """Return whether a path is the folder of the sample."""
    return (Path(source) / MOVIELENS.format("data")).exists()


def movielens_ratings(source: str | Path) -> pd.DataFrame:
    """Return MovieLens-100k (Harper and Konstan 2015): user, item, time, and the rating as the weight."""
    ratings = read_table(Path(source) / MOVIELENS.format("data"))
    columns = {"user_id": "user", "movie_id": "item", "timestamp": "time", "rating": "weight"}
    return ratings[list(columns)].rename(columns=columns)


def movielens_films(source: str | Path) -> pd.DataFrame:
    """Return the films of MovieLens-100k: item, title, and the genres as the text."""
    films = read_table(Path(source) / MOVIELENS.format("items"))
    names = list(films.columns[films.columns.get_loc("unknown") + 1 :])
    genres = [", ".join(n for n in names if row[n]) for row in films[names].to_dict("records")]
    return pd.DataFrame(
        {"item": films["movie_id"].astype(str), "title": films["movie_title"].astype(str), "text": genres}
    )


GENERATED, FACTS = "generated", "facts"
"""Kinds of reasons."""
LONGEST_ATTRIBUTE = 3
"""Most words of an attribute; a longer part is a text. Four characters of a script without spaces count as one."""
Attributes = Mapping[tuple[str, ...], str]
"""Attributes of an item: the lower-cased words of each, and its spelling."""


def attributes(texts: Sequence[str]) -> list[Attributes]:
    """Return the attributes of each item, from its text.

    They are short parts between commas and semicolons that at least two items share. For `colour: blue` it is the
    value.
    """
    named_parts = []
    for text in texts:
        parts = [part.strip() for part in re.split(r"[;,|；，、]", text)]
        named = {tuple(words(part.replace("：", ": ").rpartition(": ")[2])): part for part in parts}
        named_parts.append({name: part for name, part in named.items() if 0 < size(name) <= LONGEST_ATTRIBUTE})
    counts = Counter(name for each in named_parts for name in each)
    return [{name: part for name, part in each.items() if counts[name] > 1} for each in named_parts]


def size(name: Sequence[str]) -> float:
    """Return the length of an attribute in words; a character of a script without spaces is a quarter of one."""
    return sum(0.25 if is_character(word) else 1 for word in name)


def plural(word: str) -> str:
    """Return the regular English plural of a word."""
    return f"{word[:-1]}ies" if word.endswith("y") else f"{word}s"


def named_in(text: str, known: Set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Return those of the `known` attributes that a text names, in singular or plural."""
    have = words(text)
    runs = {tuple(have[i : i + n]) for n in {*map(len, known)} for i in range(len(have) - n + 1)}
    return {name for name in known if name in runs or (*name[:-1], plural(name[-1])) in runs}


def facts(titles: Sequence[str], of: Sequence[Attributes], nearest: Sequence[int], item: int) -> str:
    """Return a true sentence on why an item is recommended; no part of it is generated.

    `of` are the attributes of all items. `nearest` are the user's choices closest to the item by the model's
    embeddings, closest first.
    """
    if not nearest:
        return "Ranked by popularity alone: nothing that this user chose is in the model's catalogue."
    names = [titles[i] for i in nearest]
    named = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    common = [part for name, part in of[item].items() if all(name in of[i] for i in nearest)]
    shared = f"; in common: {', '.join(common)}" if common else ""
    return f"The choices of this user closest to it by the model: {named}{shared}."


HALF_LIVES = 8
"""Half-lives of an interaction's weight in recent popularity between the first and the last interaction."""


def prepare(source: str | Path, settings: CatalogueFiles, out: Path) -> dict[str, int]:
    """Write items.parquet, histories.parquet and catalogue.json to `out`; return counts, including dropped rows.

    Items have item, title, text, `popularity` and `recent`. Histories have user, item indices in order and, if some
    items were not liked, the indices of these as `disliked`. A user's last item is the test, the one before it the
    validation, and the rest is for training. `popularity` counts training interactions; `recent` weighs older ones
    less. Raises `ValueError` if the files can't be learned from.
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
    """Return (N,) weights of at most 1 for (N,) times (seconds), by their distance to the latest."""
    age = times.max() - times
    return 0.5 ** (HALF_LIVES * age / max(age.max(), 1.0))


def usable(source: str | Path, settings: CatalogueFiles) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, int]]:
    """Return (items: item, title, text; histories by user; counts).

    A history has `items`, the indices of chosen items, each once, in order of time, and their `times` (seconds). If
    some items were not liked it also has `disliked` (see `not_liked`). Users with few items are left out.
    """

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
    """Return for each user the indices of the items that they saw before their last like but never liked.

    Such items are no candidates for the last choice. `others` are the interactions without a like.
    """
    ends = pd.Series([moments[-1] for moments in histories["times"]], index=[str(user) for user in histories.index])
    known = others[others["item"].isin(places.keys()) & others["user"].isin(ends.index)]
    seen = known[(known["time"] - start).dt.total_seconds() <= known["user"].map(ends)]
    rows = seen["item"].map(places).groupby(seen["user"]).agg(set) if len(seen) else {}
    users = zip(ends.index, histories["items"], strict=True)
    return [sorted(rows.get(user, set()).difference(liked)) for user, liked in users]


def in_order(choices: pd.DataFrame) -> pd.DataFrame:
    """Return each user's choices in order of time, each item once, at its first choice.

    Ties in time are ordered by a hash of user and item, so that the order of the file has no influence.
    """
    tied = choices[choices.duplicated(["user", "time"], keep=False)]
    marks = [
        blake2b(f"{u} {i}".encode(), digest_size=8).hexdigest() for u, i in zip(tied["user"], tied["item"], strict=True)
    ]
    table = choices.assign(user=numbered(choices["user"]), tie="")
    table.loc[tied.index, "tie"] = marks
    return table.sort_values(["user", "time", "tie"], kind="stable").drop_duplicates(["user", "item"])


def numbered(users: pd.Series) -> pd.Series:
    """Return users as numbers if all are written as such, so that their order does not depend on the file's format."""
    plain = users.str.fullmatch(r"0|[1-9][0-9]{0,17}")
    return users.astype("int64") if plain.all() else users


def sentence(title: str, text: str) -> str:
    """Return the description of an item: title and text, or the text alone if it begins with the title."""
    if text.startswith(title):
        return text
    return f"{title}: {text}" if text else title
