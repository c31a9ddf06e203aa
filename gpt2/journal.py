"""A training run's figures as they come: what MLflow, the logs and the curves are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Journal:
    """The run's figures, a line of JSON each, written by rank 0: what MLflow, the logs and the curves are made of.

    On a resume the lines of steps that will be done again are dropped, so every step is there once.
    """

    def __init__(self, path: Path, start_step: int):
        kept = [line for line in read_journal(path) if line["step"] <= start_step]
        self.stream = open(path, "w", buffering=1)  # noqa: SIM115 - open as long as the run
        for line in kept:
            self.write(line)

    def write(self, record: dict[str, Any]) -> None:
        self.stream.write(json.dumps(record) + "\n")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a journal, [] where there is none."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    records = []
    for line in lines:
        if line.endswith("\n"):
            try:
                records.append(json.loads(line))
            except ValueError:  # a line that a kill cut, with another attempt's after it
                continue
    return records
