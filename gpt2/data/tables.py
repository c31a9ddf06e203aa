"""Rows of .csv, .tsv, .jsonl and .parquet files, as tables (a fault refuses the file) or one by one (it is counted).

Ids and labels stay what the file has: a cell of a csv is text, and a whole number is never made a float. Sources are
files, folders, globs and fsspec addresses.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gpt2.data.config import PLAIN, FileForm
from gpt2.data.forms import csv_file, json_lines, lines_of, parquet_file, textual
from gpt2.data.sources import UnreadableFile, expand, split_suffix

UTC = "datetime64[us, UTC]"
MAX_UNTIMED = 0.1
"""Largest tolerated share of rows without a time, where the file has times."""
EDGES = re.compile(r"^[\s{0}]+|[\s{0}]+$".format("\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"))
"""Spaces and invisible characters at the ends of a text."""
LEAST_SECONDS = 1e8
"""The least number that is seconds since 1970: March 1973. Smaller ones count days, hours, minutes or rows."""
EXACT = 2**53
"""The largest whole number up to which a float has all of them."""
SLICE = 1000
"""Rows of Parquet read at a time."""
Record = tuple[int, dict[str, Any], str | None]
"""Number of the row from 1, the row, and its fault or None."""


def read_table(source: str | Path, form: FileForm = PLAIN, wanted: Collection[str] | None = None) -> pd.DataFrame:
    """Read the tables of a source as one; `ValueError` if a file or a row of it can't be read.

    A cell of a csv is text, and only an empty one is missing: `None` and `NA` may be labels. A record of a csv with a
    stray quote, or with damaged bytes, is a row of missing cells, so that each reader counts it. Of Parquet only the
    `wanted` columns are read; `missing` and `place` know the others and the files.
    """
    parts, starts, names, rows = [], [], dict[str, None](), 0
    for path in expand([str(source)]):
        part, have = file_table(path, form, wanted)
        names |= dict.fromkeys(have)
        starts.append((rows, path))
        parts.append(part)
        rows += len(part)
    table = joined(parts)
    table.attrs |= {"columns": list(names), "files": starts}
    return table


def file_table(path: str, form: FileForm, wanted: Collection[str] | None) -> tuple[pd.DataFrame, list[str]]:
    """Return (the table of one file, the names of all its columns)."""
    try:
        match split_suffix(path)[0]:
            case ".parquet":
                with parquet_file(path) as file:
                    have = named_columns(file.schema_arrow)
                    table = as_text(file.read([name for name in have if wanted is None or name in wanted]))
                    # pandas' own metadata would make columns of its nullable types, in which NA is neither true nor
                    # false
                    return table.to_pandas(integer_object_nulls=True, ignore_metadata=True), have
            case ".jsonl":
                table = frame(objects(path, form))
            case ".csv" | ".tsv":
                table = csv_table(path, form)
            case _:
                raise UnreadableFile(f"{path} has no columns; give .jsonl, .csv or .parquet")
    except UnreadableFile as error:
        raise ValueError(str(error)) from None
    return table, list(map(str, table))


def joined(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return tables under each other. A column of different types keeps each value's own."""
    if len(parts) == 1:
        return parts[0]
    for name in {name: None for part in parts for name in part}:
        if len({str(part[name].dtype) if name in part else None for part in parts if len(part)}) > 1:
            parts = [part.astype({name: object}) if name in part else part.assign(**{name: None}) for part in parts]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def named_columns(schema: pa.Schema) -> list[str]:
    """Return the columns of a Parquet file without pandas' unnamed index."""
    return [name for name in schema.names if not re.fullmatch(r"__index_level_\d+__", name)]


def as_text(table: pa.Table) -> pa.Table:
    """Return a table in which strings, and bytes that are UTF-8, are text. Categories are their values."""
    for place, name in enumerate(table.column_names):
        column = table.column(place)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if textual(column.type):
            column = column.cast(pa.large_binary())
            with contextlib.suppress(pa.ArrowInvalid):  # some are no text
                column = column.cast(pa.large_string())
        table = table.set_column(place, name, column)
    return table


def csv_table(path: str, form: FileForm) -> pd.DataFrame:
    """Return the table of a csv; a short record has empty cells at its end."""
    blocks, before = [], 0
    with lines_of(path, form) as lines:
        header, records = csv_file(lines, form)
        schema, empty = pa.schema([(name, pa.large_string()) for name in header]), [""] * len(header)
        while rows := list(islice(records, SLICE)):
            fields = [record.fields if record.wrong is None and not record.bad else empty for record in rows]
            for number, record in enumerate(rows if empty in fields else (), before + 1):
                if len(record.fields) > len(header):
                    raise ValueError(f"{path} row {number} has {record.wrong}; put texts with commas in quotes")
            cells, before = zip(*fields, strict=True), before + len(rows)
            blocks.append(pa.record_batch([pa.array(column, pa.large_string()) for column in cells], schema))
    table = pa.Table.from_batches(blocks, schema)
    for place, name in enumerate(header):
        column = table.column(place)
        table = table.set_column(place, name, pc.if_else(pc.equal(column, ""), None, column))
    return table.to_pandas(types_mapper={pa.large_string(): pd.StringDtype(na_value=np.nan)}.get)


def objects(path: str, form: FileForm) -> list[dict[str, Any]]:
    """Return the objects of JSON lines; `ValueError` names the first row that is not one."""
    rows = []
    for number, row, wrong in json_records(path, form, whole=True):
        if wrong:
            raise ValueError(f"{path} row {number} is {wrong}")
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


def records(path: str, form: FileForm = PLAIN, wanted: Mapping[str, str | None] | None = None) -> Iterator[Record]:
    """Yield the records of a file; raise `UnreadableFile`, also where it lacks a column.

    `wanted` maps settings to columns; of Parquet no others are read. No file is held whole.
    """
    format, _ = split_suffix(path)
    if format == ".txt":
        raise UnreadableFile(f"{path} has no columns; give .jsonl, .csv or .parquet")
    if format == ".parquet":
        yield from parquet_records(path, wanted or {})
    elif format == ".jsonl":
        yield from json_records(path, form, wanted=wanted)
    else:
        yield from csv_records(path, form, wanted or {})


def require(path: str, columns: Collection[str], wanted: Mapping[str, str | None]) -> None:
    """Raise `UnreadableFile` if a wanted column is missing; a file without columns has no rows."""
    if columns and (fault := missing(columns, wanted)):
        raise UnreadableFile(f"{path} has {fault}")


def parquet_records(path: str, wanted: Mapping[str, str | None]) -> Iterator[Record]:
    """Yield the rows of a Parquet file, read in slices."""
    number = 0
    with parquet_file(path) as file:
        have = named_columns(file.schema_arrow)
        require(path, have, wanted)
        columns = [name for name in have if not wanted or name in wanted.values()]
        for batch in file.iter_batches(SLICE, columns=columns, use_threads=False):
            for row in as_text(pa.Table.from_batches([batch])).to_pylist():
                number += 1
                yield number, row, None


def json_records(
    path: str, form: FileForm, whole: bool = False, wanted: Mapping[str, str | None] | None = None
) -> Iterator[Record]:
    """Yield the objects of JSON lines as records."""
    columns: dict[str, None] = {}
    for number, row, wrong in json_values(path, form, whole):
        if wrong is None and not isinstance(row, dict):
            wrong = f"{type(row).__name__}, not an object"
        columns |= {} if wrong else dict.fromkeys(row)
        yield (number, {}, wrong) if wrong else (number, row, None)
    require(path, columns, wanted or {})


def json_values(path: str, form: FileForm, whole: bool) -> Iterator[tuple[int, Any, str | None]]:
    """Yield (number, value, fault or None) of each line that is not blank.

    Unless the file is `whole`, a last line that has no line end and is not JSON is skipped: its end may be still to
    come.
    """
    with lines_of(path, form) as lines:
        for number, line in enumerate(json_lines(lines), 1):
            text, wrong = lines.decoded(line.data)
            try:
                value = json.loads(text)
                if "\\ud" in text.lower():
                    json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError:
                value, wrong = None, "cut within a character (a lone surrogate)"
            except (ValueError, RecursionError):
                value, wrong = None, wrong or "not JSON"
            if wrong is None or whole or line.end:
                yield number, value, wrong


def csv_records(path: str, form: FileForm, wanted: Mapping[str, str | None]) -> Iterator[Record]:
    """Yield the records under a header."""
    with lines_of(path, form) as lines:
        header, records = csv_file(lines, form)
        require(path, header, wanted)
        for number, record in enumerate(records, 1):
            wrong = record.wrong or next(iter(record.bad.values()), None)
            yield number, dict(zip(header, record.fields, strict=False)), wrong


def texts(path: str, form: FileForm = PLAIN) -> Iterator[tuple[int, str]]:
    """Yield (number of the line, text) of each line of a .txt that is not blank; `ValueError` names a damaged one."""
    with lines_of(path, form) as lines:
        for line in lines:
            text, wrong = lines.decoded(line.data)
            if wrong:
                raise ValueError(f"{path} line {line.number} has {wrong}; mend it, or set encoding")
            if text.strip():
                yield line.number, text


def place(source: str | Path, table: pd.DataFrame, number: int) -> str:
    """Return the words for a row of a table, by its number from 1: its file, and its number there."""
    start, path = max([entry for entry in table.attrs.get("files", ()) if entry[0] < number], default=(0, source))
    return f"{path} row {number - start}"


def listed(columns: Iterable[str]) -> str:
    """Return the names of columns, joined with commas, on one line."""
    return ", ".join(" ".join(str(name).split()) for name in columns)[:500]


def missing(columns: Iterable[str], wanted: Mapping[str, str | None]) -> str | None:
    """Return the fault if a wanted column is not among `columns`, else None; `wanted` maps settings to columns."""
    have = getattr(columns, "attrs", {}).get("columns") or list(columns)
    for setting, column in wanted.items():
        if column is not None and column not in have:
            return f"no column {column!r}; it has {listed(have) or 'none'}: set {setting}"
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
