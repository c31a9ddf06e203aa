"""Files of inputs and of predictions, for the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.tables import json_values, listed, read_table

if TYPE_CHECKING:
    import pandas as pd


def read_inputs(path: Path) -> list[Any]:
    """Inputs of `predict`: .txt a text per line; .jsonl a string or object per line; .csv, .parquet column `text`."""
    if path.suffix not in (".txt", ".jsonl", ".csv", ".parquet"):
        raise ValueError(f"--input {path}: {path.suffix!r} is not .txt, .jsonl, .csv or .parquet")
    if not path.exists():
        raise ValueError(f"--input {path}: there is no such file")
    inputs = column(path) if path.suffix in (".csv", ".parquet") else lines(path)
    if not inputs:
        raise ValueError(f"--input {path} is empty")
    return inputs


def lines(path: Path) -> list[Any]:
    """Return an input for each line that is not empty: its text, or the value of a line of JSON."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--input {path} is not UTF-8 at byte {error.start}; convert it") from None
    if path.suffix == ".txt":
        return [line for line in text.splitlines() if line.strip()]
    return [value_of(f"--input {path} row {number}", *found) for number, *found in json_values(data, whole=True)]


def value_of(place: str, value: Any, wrong: str | None) -> Any:
    """Return the input that a line of JSON stands for; `ValueError` where it is none."""
    if wrong:
        raise ValueError(f"{place} is {wrong}")
    if isinstance(value, dict) and set(value) == {"text"}:
        value = value["text"]
    if not isinstance(value, (str, dict)):
        raise ValueError(f"{place} is neither a string nor an object")
    return value


def column(path: Path) -> list[Any]:
    """Return the column `text` of a table."""
    try:
        table = read_table(path)
    except ValueError as error:
        raise ValueError(f"--input {error}") from None
    if "text" not in table:
        raise ValueError(f"--input {path} has no column `text`; it has {listed(table)}")
    return table["text"].tolist()


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write predictions, whole or not at all."""
    aside = path.with_name(f".{path.name}.tmp")
    if path.suffix == ".jsonl":
        table.to_json(aside, orient="records", lines=True, force_ascii=False)
    elif path.suffix == ".csv":
        table.to_csv(aside, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(aside, index=False)
    else:
        raise ValueError(f"--output {path}: {path.suffix!r} is not .jsonl, .csv or .parquet")
    os.replace(aside, path)
