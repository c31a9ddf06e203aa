"""Posts of the inbox: text, time, topic, and an identity by which each counts once; each file is read once."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pandas as pd

from gpt2.data.sources import UnreadableFile, expand, is_folder, is_pattern, left_out, locate, source_id
from gpt2.data.tables import UTC, cell, records, times
from gpt2.monitoring.config import MonitorConfig
from gpt2.store.artifact import Key, Store

READING = ("gpt2.data.forms", "gpt2.data.sources", "gpt2.data.tables", "gpt2.monitoring.posts")
"""The code that the posts of a file depend on."""
Report = Callable[[str], None]
"""Writes a line to the log."""


def files_of(sources: Sequence[str]) -> list[tuple[str, str]]:
    """Return (file, its source) for all files. Raises `ValueError` for a missing source; a folder may be empty."""
    files: list[tuple[str, str]] = []
    for source in sources:
        try:
            files += [(path, source) for path in expand([source])]
        except ValueError:
            fs, path = locate(source)
            if not is_folder(fs, path) and (fs.exists(path) or not is_pattern(source)):
                raise
    return list({path: (path, source) for path, source in files}.values())


def read_files(
    store: Store,
    config: MonitorConfig,
    say: Report,
    now: pd.Timestamp | None = None,
    counted: Collection[str] = (),
) -> tuple[pd.DataFrame, list[str], set[str]]:
    """Return (the posts of all files, each once; the faults found; the ids of the copies without posts for later).

    An unchanged file is not read again: its copy is. A copy in `counted` is left out, as all its posts are counted.
    """
    tables, troubles, current, whole = [], [], set(), set()
    now = present() if now is None else now
    files = files_of(config.sources)
    if others := left_out(config.sources):
        say(others)
    for path, source in files:
        fields = {k: v for k, v in config.identity().items() if k.endswith("_field")}
        spec = {**fields, **config.form.identity(), "source": source, "file": path.rpartition("/")[2]}

        def build(out: Path, path: str = path, source: str = source) -> dict[str, Any]:
            posts, bad = read(path, source, config)
            posts.to_parquet(out / "posts.parquet", index=False)
            (out / "bad.json").write_text(json.dumps(bad))
            say(f"{path}: {len(posts):,} posts, {len(bad):,} bad rows")
            return {"posts": len(posts), "bad": len(bad)}

        try:
            artifact = store.make(Key(copies(config), spec, {"file": source_id(path)}, READING), build)
        except UnreadableFile as error:
            say(f"left out: {error}")
            troubles.append(str(error))
            continue
        current.add(artifact.id)
        early: list[Bad] = []
        if artifact.id not in counted:
            posts, early = split_future(pd.read_parquet(artifact.file("posts.parquet")), now, config)
            tables.append(posts[list(COLUMNS)])
        if early:
            say(f"{path}: {len(early):,} posts are left out: their time is more than a day from now")
        else:
            whole.add(artifact.id)
        bad = json.loads(artifact.file("bad.json").read_text())
        troubles += [f"{path} row {number}: {wrong}" for number, wrong in sorted([*map(tuple, bad), *early])]
    forget(store, config, current)
    if not tables:
        return pd.DataFrame(columns=list(COLUMNS)), troubles, whole
    return pd.concat(tables).drop_duplicates("post").reset_index(drop=True), troubles, whole


def copies(config: MonitorConfig) -> str:
    """Return the kind of the artifacts of this monitor's parsed files; one run of a monitor at a time uses them."""
    return f"posts-{config.name}"


def forget(store: Store, config: MonitorConfig, current: set[str]) -> None:
    """Remove the parsed copies of files of these sources that have changed or gone; the ids in `current` are kept.

    The files themselves and the scored posts stay.
    """
    for id in sorted(set(store.ids(copies(config))) - current):
        earlier = store.get(copies(config), id)
        if earlier is None or earlier.manifest["spec"]["source"] in config.sources:
            store.remove(copies(config), id)


def present() -> pd.Timestamp:
    """Return the current time (UTC)."""
    return pd.Timestamp(time.time(), unit="s", tz="UTC")


COLUMNS = ("post", "time", "topic", "text")
MAX_CHARS = 20_000
AHEAD = pd.Timedelta(days=1)
"""A time further in the future than this is a mistake: clocks and time zones differ by less."""
Bad = tuple[int, str]
"""A row's number in its file, from 1, and its fault."""


def read(path: str, source: str, config: MonitorConfig) -> tuple[pd.DataFrame, list[Bad]]:
    """Return (posts, bad rows) of one file; a row without text, or with an invalid time, is bad.

    Columns: `post`, its identity (32 hexadecimal digits); `time` (UTC, NaT without `time_field`); `topic` (None without
    `topic_field`); `text`; `number` of the row. `source` is the setting by which the file was found. Raises
    `UnreadableFile` if a named column is missing or the file can't be read at all.
    """
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    names = {name: getattr(config, name) for name in ("text_field", "time_field", "id_field", "topic_field")}
    for number, row, wrong in records(path, config.form, names):
        text = cell(row.get(config.text_field))
        if text is None or wrong is not None:
            bad.append((number, wrong or f"{config.text_field!r} is {row.get(config.text_field)!r:.60}, not text"))
            continue
        rows.append(
            {
                "number": number,
                "text": text[:MAX_CHARS],
                "time": row.get(config.time_field) if config.time_field else None,
                "topic": cell(row.get(config.topic_field)) if config.topic_field else None,
                "id": row.get(config.id_field) if config.id_field else None,
            }
        )
    table = pd.DataFrame(rows, columns=["number", "text", "time", "topic", "id"])
    table["id"] = pd.Series(
        [row["id"] for row in rows], index=table.index, dtype=object
    )  # an integer stays one beside a missing id
    if config.time_field:
        written, table["time"] = table["time"], times(table["time"])
        untimed = table["time"].isna()
        bad += [
            (int(n), f"{config.time_field!r} is not a time, but {value!r:.60}; write ISO 8601 or seconds since 1970")
            for n, value in zip(table["number"][untimed], written[untimed], strict=True)
        ]
        table = table[~untimed]
    else:
        table["time"] = pd.Series(pd.NaT, index=table.index, dtype=UTC)
    table["post"] = identities(table, path, source, config)
    return table[[*COLUMNS, "number"]].drop_duplicates("post").reset_index(drop=True), sorted(bad)


def split_future(posts: pd.DataFrame, now: pd.Timestamp, config: MonitorConfig) -> tuple[pd.DataFrame, list[Bad]]:
    """Split posts into (accepted, rejected): a post more than a day in the future is rejected until its time has come.

    Rejected posts are returned as bad rows.
    """
    early = posts["time"] > now + AHEAD
    bad = [
        (int(row.number), f"{config.time_field!r} is {row.time.isoformat()}, more than a day from now: mend the time")
        for row in posts[early].itertuples()
    ]
    return posts[~early], bad


def identities(table: pd.DataFrame, path: str, source: str, config: MonitorConfig) -> list[str]:
    """Return each post's identity: a hash of its id, or of its content if it has no id.

    Equal rows of a file without ids are different posts, counted by their order. They keep their identity if the file
    grows or is renamed.
    """
    place = source if config.time_field else f"{source} {path.rpartition('/')[2]}"
    seen: Counter[tuple] = Counter()
    marks = []
    for id, *row in zip(table["id"], table["text"], table["time"].astype("int64"), table["topic"], strict=True):
        if named(id):
            marks.append(mark("id", id))
        else:
            seen[tuple(row)] += 1
            marks.append(mark(place, *row, seen[tuple(row)]))
    return marks


def named(id: Any) -> bool:
    """Return whether a value is an id: neither null nor blank."""
    return id is not None and id == id and bool(str(id).strip())


def mark(*parts: Any) -> str:
    """Return a hash of the parts (32 hexadecimal digits)."""
    text = json.dumps([None if part is None else str(part) for part in parts])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
