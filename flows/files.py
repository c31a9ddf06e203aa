"""Files of inputs and of predictions, for the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def read_inputs(path: Path) -> list[Any]:
    """Inputs of `predict`: .txt a text per line; .jsonl a string or object per line; .csv, .parquet column `text`."""
    try:
        if path.suffix == ".txt":
            inputs: list[Any] = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
        elif path.suffix == ".jsonl":
            inputs = [
                parse(path, n, line)
                for n, line in enumerate(path.read_text("utf-8-sig").split("\n"), 1)
                if line.strip()
            ]
        elif path.suffix in (".csv", ".parquet"):
            inputs = column(path)
        else:
            raise ValueError(f"--input {path}: {path.suffix!r} is not .txt, .jsonl, .csv or .parquet")
    except FileNotFoundError:
        raise ValueError(f"--input {path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"--input {path} is not UTF-8 at byte {error.start}; convert it") from None
    if not inputs:
        raise ValueError(f"--input {path} is empty")
    return inputs


def parse(path: Path, number: int, line: str) -> Any:
    """An input from a line of JSON."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"--input {path} line {number} is not JSON") from None
    if isinstance(value, dict) and set(value) == {"text"}:
        value = value["text"]
    if not isinstance(value, (str, dict)):
        raise ValueError(f"--input {path} line {number} is neither a string nor an object")
    return value


def column(path: Path) -> list[Any]:
    """The column `text` of a table, or its rows as records where there is none."""
    import pandas as pd

    try:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OSError) as error:
        raise ValueError(f"--input {path} can't be read: {error}") from None
    if "text" not in table:
        raise ValueError(f"--input {path} has no column `text`; it has {', '.join(map(str, table.columns))}")
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
