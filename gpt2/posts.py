"""Posts out of files: text, time, topic and an identity by which each counts once."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, BinaryIO, cast

import fsspec
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2.monitor import MonitorConfig
from gpt2.readers import UnreadableFile, decompressed
from gpt2.sources import split_suffix

UTC = "datetime64[us, UTC]"
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
    for name in ("text_field", "time_field", "id_field", "topic_field"):
        column = getattr(config, name)
        if column is not None and column not in row:
            raise UnreadableFile(f"{path} has no column {column!r}; it has {', '.join(map(str, row))}: set {name}")


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


def times(column: pd.Series) -> pd.Series:
    """Times of a column in UTC, NaT for what is none."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return pd.to_datetime(column, utc=True).astype(UTC)
    number = pd.to_numeric(column, errors="coerce")
    dates = number.between(19000101, 22001231)  # 20240131, the basic form of ISO 8601
    number = number.where(number.between(0, 1e14) & ~dates)
    seconds = number.where(number < 1e11, number / 1000)
    since_1970 = pd.to_datetime(seconds * 1e6, unit="us", utc=True).astype(UTC)
    written = column.where(number.isna()).map(lambda v: None if v is None else str(v).removesuffix(".0"))
    parsed = pd.to_datetime(written, utc=True, errors="coerce", format="ISO8601").astype(UTC)
    found = since_1970.fillna(parsed)
    return found.where(found.dt.year.between(1970, 2261))


def records(path: str) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """(number, row, what is wrong) of each row of a file."""
    format, compression = split_suffix(path)
    if format == ".txt":
        raise UnreadableFile(f"{path} has no columns; posts are .jsonl, .csv or .parquet")
    try:
        with fsspec.open(path, "rb") as raw:
            stream = cast(BinaryIO, raw)
            if format == ".parquet":
                rows = pq.read_table(stream).to_pylist()
                yield from ((number, row, None) for number, row in enumerate(rows, 1))
            else:
                data = decompressed(stream, compression).read()
                yield from (json_records if format == ".jsonl" else csv_records)(data)
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException, OSError) as error:
        raise UnreadableFile(f"{path} can't be read ({str(error).partition(chr(10))[0]}); get it again") from None


def json_records(data: bytes) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """An object per line. A last line that is not yet whole waits for its end."""
    number = 0
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True):
        if not line.strip():
            continue
        number += 1
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if line.endswith(b"\n"):
                yield number, {}, "not JSON"
            continue
        yield (number, row, None) if isinstance(row, dict) else (number, {}, f"{type(row).__name__}, not an object")


def csv_records(data: bytes) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """A record per post, under a header (RFC 4180); UTF-8, or Latin-1 where it is not."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    csv.field_size_limit(len(text) + 1)
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    for number, fields in enumerate((f for f in reader if f), 1):
        wrong = None if len(fields) == len(header) else f"{len(fields)} fields, the header has {len(header)}"
        yield number, dict(zip(header, fields, strict=False)), wrong
