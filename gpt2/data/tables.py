"""Tables in .csv, .jsonl and .parquet files, read whole (a fault refuses the file) or by row (a fault leaves it out).

Ids and labels stay what the file has: a cell of a csv is text, and a whole number is never made a float.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2.data.readers import UnreadableFile, decompressed, split_suffix

UTC = "datetime64[us, UTC]"
MAX_UNTIMED = 0.1
"""Largest tolerated share of rows without a time, where the file has times."""
EXACT = 2**53
"""The largest whole number up to which a float has all of them."""
STRINGS = (
    pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary, pa.types.is_large_binary,
    pa.types.is_binary_view, pa.types.is_fixed_size_binary,
)  # fmt: skip
"""Tests of the types of strings and bytes."""
Record = tuple[int, dict[str, Any], str | None]
"""Number of the row from 1, the row, and its fault or None."""


def read_table(source: Path) -> pd.DataFrame:
    """Read a whole table; `ValueError` if the file or a row of it can't be read.

    A cell of a csv is text, and only an empty one is missing: `None` and `NA` may be labels. A record of a csv with a
    stray quote is a row of missing cells, so that each reader counts it.
    """
    try:
        if source.suffix == ".parquet" or source.name.endswith(".parquet.brotli"):
            # pandas' own metadata would make columns of its nullable types, in which NA is neither true nor false
            return parquet_table(source).to_pandas(integer_object_nulls=True, ignore_metadata=True)
        if source.suffix == ".jsonl":
            return frame(objects(source.read_bytes()))
        if source.suffix == ".csv":
            return csv_table(source)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parsers raise subclasses of these
        raise ValueError(f"{source} can't be read as a table: {str(error).splitlines()[0]}") from None
    raise ValueError(f"{source} is not .csv, .jsonl or .parquet; convert it")


def parquet_table(source: Path | BinaryIO) -> pa.Table:
    """Read a Parquet file without pandas' unnamed index.

    All types of strings, and bytes that are UTF-8 (Impala and Hive write no more), are text. Categories are their
    values.
    """
    table = pq.read_table(source)
    table = table.select([name for name in table.column_names if not re.fullmatch(r"__index_level_\d+__", name)])
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        table = table.set_column(place, name, textual(column))
    return table


def textual(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of strings or bytes as text, or as bytes if a value is not UTF-8; any other unchanged."""
    if not any(is_of(column.type) for is_of in STRINGS):
        return column
    values = column.cast(pa.large_binary())
    try:
        return values.cast(pa.large_string())
    except pa.ArrowInvalid:
        return values


def csv_table(source: Path) -> pd.DataFrame:
    """Read a csv with pandas: four times as fast as `csv_records`, in a third of the memory."""
    options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_values": [""]}
    try:
        table = pd.read_csv(source, encoding="utf-8", **options)
    except UnicodeDecodeError:
        table = pd.read_csv(source, encoding="latin-1", **options)
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus fields for an index
        raise ValueError("its rows have more fields than its header; put texts with commas in quotes")
    return table


def objects(data: bytes) -> list[dict[str, Any]]:
    """Return the objects of JSON lines; `ValueError` names the first row that is not one."""
    rows = []
    for number, row, wrong in json_records(data, whole=True):
        if wrong:
            raise ValueError(f"row {number} is {wrong}")
        rows.append(row)
    return rows


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return a table of the rows. Whole numbers stay exact; pandas would make floats of those beside an empty cell."""
    table = pd.DataFrame(rows)
    for name in table.select_dtypes("float"):
        values = [row.get(name) for row in rows]
        exact = all(value is None or type(value) is int for value in values)
        if exact or any(type(value) is int and abs(value) > EXACT for value in values):
            table[name] = pd.Series(values, dtype=object)
    return table


def records(path: str) -> Iterator[Record]:
    """Yield the records of a file, local or at an fsspec URL, plain or compressed; raise `UnreadableFile`."""
    format, compression = split_suffix(path)
    if format == ".txt":
        raise UnreadableFile(f"{path} has no columns; give .jsonl, .csv or .parquet")
    try:
        with fsspec.open(path, "rb") as raw:
            stream = cast(BinaryIO, raw)
            if format == ".parquet":
                rows = parquet_table(stream).to_pylist()
                yield from ((number, row, None) for number, row in enumerate(rows, 1))
            else:
                data = decompressed(stream, compression).read()
                yield from (json_records if format == ".jsonl" else csv_records)(data)
    except (EOFError, zlib.error, gzip.BadGzipFile, pa.ArrowException, OSError) as error:
        raise UnreadableFile(f"{path} can't be read ({str(error).partition(chr(10))[0]}); get it again") from None


def json_records(data: bytes, whole: bool = False) -> Iterator[Record]:
    """Yield the objects of JSON lines as records."""
    for number, row, wrong in json_values(data, whole):
        if wrong is None and not isinstance(row, dict):
            wrong = f"{type(row).__name__}, not an object"
        yield (number, {}, wrong) if wrong else (number, row, None)


def json_values(data: bytes, whole: bool) -> Iterator[tuple[int, Any, str | None]]:
    """Yield (number, value, fault or None) of each line that is not empty.

    Unless the file is `whole`, a last line that has no line end and is not JSON is skipped: its end may be still to
    come.
    """
    number = 0
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True):
        if not line.strip():
            continue
        number += 1
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            if whole or line.endswith(b"\n"):
                yield number, None, "not JSON"
            continue
        yield number, value, None


def csv_records(data: bytes) -> Iterator[Record]:
    """Yield the records under a header (RFC 4180); UTF-8, else Latin-1."""
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


def listed(columns: Iterable[str]) -> str:
    """Return the names of columns, joined with commas."""
    return ", ".join(map(str, columns))


def missing(columns: Iterable[str], wanted: Mapping[str, str | None]) -> str | None:
    """Return the fault if a wanted column is not among `columns`, else None; `wanted` maps settings to columns."""
    have = list(columns)
    for setting, column in wanted.items():
        if column is not None and column not in have:
            return f"no column {column!r}; it has {listed(have)}: set {setting}"
    return None


def cell(value: Any) -> str | None:
    """Return a cell as stripped text, None for one without: empty, a list, an object, or bytes that are not UTF-8.

    A whole number has no decimal point.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if value is None or value is pd.NA or isinstance(value, list | tuple | dict | np.ndarray) or value != value:
        return None
    if isinstance(value, float | np.floating) and value.is_integer():
        value = int(value)
    return str(value).encode("utf-8", "replace").decode("utf-8").strip() or None


def times(column: pd.Series) -> pd.Series:
    """Return a column's times in UTC, NaT if a cell is no time: ISO 8601, or seconds or milliseconds since 1970."""
    if pd.api.types.is_datetime64_any_dtype(column):
        return pd.to_datetime(column, utc=True).astype(UTC)
    number = pd.to_numeric(column, errors="coerce")
    dates = number.between(19000101, 22001231)  # 20240131, the basic form of ISO 8601
    number = number.where(number.between(0, 1e14) & ~dates)
    seconds = number.where(number < 1e11, number / 1000)
    since_1970 = pd.to_datetime(seconds * 1e6, unit="us", utc=True).astype(UTC)
    written = column.where(number.isna()).map(lambda v: None if v is None else str(v).removesuffix(".0"))
    parsed = pd.to_datetime(written, utc=True, errors="coerce", format="ISO8601").astype(UTC)
    utc = since_1970.fillna(parsed)
    return utc.where(utc.dt.year.between(1970, 2261))
