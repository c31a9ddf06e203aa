"""Posts out of files: text, time, topic and an identity by which each counts once."""

from __future__ import annotations

import json
from collections import Counter
from hashlib import blake2b
from typing import Any

import pandas as pd

from gpt2.monitor import MonitorConfig
from gpt2.readers import UnreadableFile
from gpt2.tables import UTC, missing, records, times

COLUMNS = ("post", "time", "topic", "text")
MAX_CHARS = 20_000
AHEAD = pd.Timedelta(days=1)
"""A time further after now than this is a mistake: clocks and time zones differ by less."""
Bad = tuple[int, str]
"""A row's number in its file, from 1, and what is wrong with it."""


def read(path: str, source: str, config: MonitorConfig) -> tuple[pd.DataFrame, list[Bad]]:
    """(posts, bad rows) of one file. Columns: `post`, its identity (32 hexadecimal digits); `time` (UTC, NaT without
    `time_field`); `topic` (None without `topic_field`); `text`; `number`, of its row.

    `source` is the setting that the file was found by. `UnreadableFile` for a file without a column that is named, or
    that can't be read at all; a row without text, or with a time that is none, is bad.
    """
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    for number, row, wrong in records(path):
        if wrong is None:
            if number == 1:
                check_columns(path, row, config)
            if not isinstance(row.get(config.text_field), str) or not row[config.text_field].strip():
                wrong = f"{config.text_field!r} is {row.get(config.text_field)!r:.60}, not text"
        if wrong is not None:
            bad.append((number, wrong))
            continue
        topic = row.get(config.topic_field) if config.topic_field else None
        rows.append(
            {
                "number": number,
                "text": row[config.text_field].strip()[:MAX_CHARS],
                "time": row.get(config.time_field) if config.time_field else None,
                "topic": None if topic is None or topic == "" else str(topic).strip(),
                "id": row.get(config.id_field) if config.id_field else None,
            }
        )
    table = pd.DataFrame(rows, columns=["number", "text", "time", "topic", "id"])
    table["id"] = pd.Series(
        [row["id"] for row in rows], index=table.index, dtype=object
    )  # 7 stays 7 beside an empty one
    if config.time_field:
        table["time"] = times(table["time"])
        untimed = table["time"].isna()
        bad += [(int(n), f"{config.time_field!r} is no time") for n in table["number"][untimed]]
        table = table[~untimed]
    else:
        table["time"] = pd.Series(pd.NaT, index=table.index, dtype=UTC)
    table["post"] = identities(table, path, source, config)
    return table[[*COLUMNS, "number"]].drop_duplicates("post").reset_index(drop=True), sorted(bad)


def written_by(posts: pd.DataFrame, now: pd.Timestamp, config: MonitorConfig) -> tuple[pd.DataFrame, list[Bad]]:
    """(what `read` found without posts of a time to come, these as bad rows). Once it has come they are posts."""
    early = posts["time"] > now + AHEAD
    bad = [
        (int(row.number), f"{config.time_field!r} is {row.time.isoformat()}, more than a day from now: mend the time")
        for row in posts[early].itertuples()
    ]
    return posts[~early], bad


def check_columns(path: str, row: dict[str, Any], config: MonitorConfig) -> None:
    names = ("text_field", "time_field", "id_field", "topic_field")
    if fault := missing(row, {name: getattr(config, name) for name in names}):
        raise UnreadableFile(f"{path} has {fault}")


def identities(table: pd.DataFrame, path: str, source: str, config: MonitorConfig) -> list[str]:
    """Each post's identity. Without an id, the second of equal rows of a file is another post, and is known again when
    the file comes again, grown or under another name."""
    place = source if config.time_field else f"{source} {path.rpartition('/')[2]}"
    seen: Counter[tuple] = Counter()
    found = []
    for id, *row in zip(table["id"], table["text"], table["time"].astype("int64"), table["topic"], strict=True):
        if named(id):
            found.append(mark("id", id))
        else:
            seen[tuple(row)] += 1
            found.append(mark(place, *row, seen[tuple(row)]))
    return found


def named(id: Any) -> bool:
    """Whether this is an id: neither null nor blank."""
    return id is not None and id == id and bool(str(id).strip())


def mark(*parts: Any) -> str:
    text = json.dumps([None if part is None else str(part) for part in parts])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
