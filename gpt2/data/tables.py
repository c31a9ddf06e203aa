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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
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
DAMAGED, ESCAPED = re.compile("[\udc80-\udcff]"), re.compile(r'(\\+)"')
EDGES = re.compile(r"^[\s{0}]+|[\s{0}]+$".format("\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"))
"""Spaces and invisible characters at the ends of a text."""
LEAST_SECONDS = 1e8
"""The least number that is seconds since 1970: March 1973. Smaller ones count days, hours, minutes or rows."""
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
            return csv_table(decoded(source.read_bytes()))
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


def csv_table(text: str) -> pd.DataFrame:
    """Return the table of a csv; without quotes and damage by pandas, four times as fast as `csv_rows`."""
    if '"' not in text and not DAMAGED.search(text):
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_values": [""]}
        table = pd.read_csv(io.StringIO(text), **options)
        if not isinstance(table.index, pd.RangeIndex):  # pandas takes surplus fields for an index
            raise ValueError("its rows have more fields than its header; put texts with commas in quotes")
        return table
    rows = csv_rows(text)
    header = next(rows, ([], None))[0]
    columns: list[list[str | None]] = [[] for _ in header]
    for number, (fields, wrong) in enumerate(rows, 1):
        if len(fields) > len(header):
            raise ValueError(f"row {number} has {wrong}; put texts with commas in quotes")
        for column, value in zip_longest(columns, fields):
            column.append(value or None)
    line = io.StringIO()
    csv.writer(line).writerow(header)
    names = pd.read_csv(io.StringIO(line.getvalue()), nrows=0).columns  # a name that comes twice is numbered
    return pd.DataFrame({name: pd.Series(c, dtype="str") for name, c in zip(names, columns, strict=True)})


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
    except UnreadableFile as error:
        raise UnreadableFile(f"{path} can't be read: {error}") from None
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
    for line in io.StringIO(decoded(data), newline=""):
        if not line.strip():
            continue
        number += 1
        try:
            value, wrong = json.loads(line), "not UTF-8" if DAMAGED.search(line) else None
        except (ValueError, RecursionError):
            value, wrong = None, "not JSON"
        if wrong is None or whole or line.endswith("\n"):
            yield number, value, wrong


def csv_records(data: bytes) -> Iterator[Record]:
    """Yield the records under a header."""
    rows = csv_rows(decoded(data))
    header = next(rows, ([], None))[0]
    for number, (fields, wrong) in enumerate(rows, 1):
        yield number, dict(zip(header, fields, strict=False)), wrong


def csv_rows(text: str) -> Iterator[tuple[list[str], str | None]]:
    """Yield (fields, fault or None) of the records of a csv (RFC 4180), of which the first is the header.

    A quote inside quotes is written twice or, as by Spark and MySQL, after a backslash: the latter if fewer records
    have a fault then. Raises `UnreadableFile` if the header has one.
    """
    if '\\"' in text and (faults := sum(wrong is not None for _, wrong in strict_rows(text))):
        doubled = ESCAPED.sub(lambda run: "\\" * (len(run[1]) // 2) + ('""' if len(run[1]) % 2 else '"'), text)
        if sum(wrong is not None for _, wrong in strict_rows(doubled)) < faults:
            text = doubled
    for number, (fields, wrong) in enumerate(strict_rows(text)):
        if wrong and not number:
            raise UnreadableFile(f"its header can't be read ({wrong}); mend its first line")
        yield fields, wrong


def strict_rows(text: str) -> Iterator[tuple[list[str], str | None]]:
    """Yield (fields, fault or None) of the records of a csv that are not blank; quotes are written twice inside quotes.

    After a record with a stray quote, which takes following lines or never ends, reading goes on at the line after its
    first, and the lines that it had taken are records of their own, so that no line is read many times.
    """
    csv.field_size_limit(len(text) + 1)
    stream, damaged = io.StringIO(text, newline=""), DAMAGED.search(text)
    ends: list[int] = []  # where the lines of this record end
    alone = width = 0  # lines that end here or before are records of their own; number of the header's fields

    def feed() -> Iterator[str]:
        while (not ends or ends[-1] > alone) and (line := stream.readline()):
            ends.append(stream.tell())
            yield line

    reader = csv.reader(feed(), strict=True)
    while True:
        ends.clear()
        fields, wrong, stray = [], None, False
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            wrong, stray = f"a stray quote ({error})", True
        if not wrong and (not fields or (len(fields) == 1 and fields[0].isspace())):
            continue
        width = width or len(fields)
        if not wrong and len(fields) != width:
            wrong = f"{len(fields)} fields, the header has {width}"
            stray = len(ends) > 1
            fields = [] if stray else fields
        elif damaged and DAMAGED.search("".join(fields)):
            fields, wrong = [], "invalid UTF-8"
        yield fields, wrong
        if stray:
            alone = max([alone, *ends[-2:-1]])
            stream.seek(ends[0])
            reader = csv.reader(feed(), strict=True)


def decoded(data: bytes) -> str:
    """Return the text of a file: UTF-8, else Windows-1252 (curly quotes and the euro at 80 to 9F), else Latin-1.

    Bytes that are damaged in a file of UTF-8 are single surrogates (`DAMAGED`). Raises `UnreadableFile` for UTF-16.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableFile("it is UTF-16; convert it to UTF-8")
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        cut = error.end == len(data) and error.reason.startswith("unexpected end")  # a file that is being written
    text = data.decode("utf-8", "surrogateescape")
    bad = sum(1 for _ in DAMAGED.finditer(text))
    if cut or len(text) - len(text.encode("ascii", "ignore")) > 2 * bad:  # most characters beyond ASCII are UTF-8
        return text
    try:
        return data.decode("cp1252")
    except UnicodeDecodeError:  # five bytes have no meaning in it
        return data.decode("latin-1")


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


def name_in(value: Any) -> str | None:
    """Return a cell as an id or a label: its text without invisible characters at its ends, such as U+200B."""
    text = cell(value)
    return EDGES.sub("", text) or None if text else None


def mapped(column: pd.Series, function: Callable[[Any], Any]) -> pd.Series:
    """Return the function of each cell, which is called once for each distinct one: ids repeat."""
    if column.dtype == object and pd.api.types.infer_dtype(column) != "string":
        return column.map(function)  # equal values may be of different types, such as 1 and True
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return pd.Series(values).map(function).take(codes).set_axis(column.index).rename(column.name)


def cells(column: pd.Series) -> pd.Series:
    """Return each value as `cell` does."""
    if not isinstance(column.dtype, pd.StringDtype):
        return mapped(column, cell)
    plain = column.str.fullmatch("[!-~]+").fillna(False).astype(bool)  # such texts stay as they are
    return column if plain.all() else mapped(column, cell)


def times(column: pd.Series, least: float = LEAST_SECONDS) -> pd.Series:
    """Return a column's times in UTC, NaT if a cell is no time: ISO 8601, or seconds or milliseconds since 1970.

    A number below `least` is a year of ISO 8601 or no time: it may be a day number of Excel, or a month.
    """
    if pd.api.types.is_datetime64_any_dtype(column):
        return pd.to_datetime(column, utc=True).astype(UTC)
    number = pd.to_numeric(column, errors="coerce")
    dates = number.between(19000101, 22001231)  # 20240131, the basic form of ISO 8601
    number = number.where(number.between(least, 1e14) & ~dates)
    seconds = number.where(number < 1e11, number / 1000)
    since_1970 = pd.to_datetime(seconds * 1e6, unit="us", utc=True).astype(UTC)
    written = mapped(column.where(number.isna()), lambda v: None if v is None else str(v).removesuffix(".0"))
    parsed = pd.to_datetime(written, utc=True, errors="coerce", format="ISO8601").astype(UTC)
    utc = since_1970.fillna(parsed)
    return utc.where(utc.dt.year.between(1970, 2261))
