"""The journal and the events of a training run, written as it goes: the source of MLflow, logs, curves and goodput."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from gpt2.store.artifact import write_atomically

JOURNAL, EVENTS = "journal.jsonl", "events.jsonl"


class Journal:
    """A run's figures, one line of JSON each, written by rank 0.

    On a resume the lines of steps to be repeated are dropped, so that every step is there once.
    """

    def __init__(self, path: Path, start_step: int):
        self.path = path
        self.rewind(start_step)

    def rewind(self, step: int) -> None:
        """Drop the lines after a step."""
        kept = [json.dumps(line) + "\n" for line in read_journal(self.path) if line["step"] <= step]
        write_atomically(self.path, "".join(kept).encode())
        self.stream = open(self.path, "a", buffering=1)  # noqa: SIM115 - open as long as the run

    def write(self, record: dict[str, Any]) -> None:
        """Add a line, without figures that are not finite."""
        finite = {k: v for k, v in record.items() if not isinstance(v, float) or math.isfinite(v)}
        self.stream.write(json.dumps(finite) + "\n")


class Events:
    """Events of a run, in order, from any of its processes; they are never rewound."""

    def __init__(self, folder: Path | None):
        """Write to `folder`; with None nothing is written, so that only one rank writes."""
        self.folder = folder

    def tell(self, event: str, **facts: Any) -> None:
        """Add an event with the time (s since 1970)."""
        if self.folder is None:
            return
        append(self.folder / EVENTS, {"event": event, "time": time.time(), **facts})


def append(path: Path, record: dict[str, Any]) -> None:
    """Append a line to a file that several processes write."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(
            handle, (json.dumps(record) + "\n").encode()
        )  # a single write, so that lines of several processes don't mix
    finally:
        os.close(handle)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a journal or of events; [] if there is no file."""
    return parse(path.read_bytes()) if path.exists() else []


def parse(data: bytes) -> list[dict[str, Any]]:
    """Return the records of complete lines."""
    records = []
    for line in data.splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                records.append(json.loads(line))
            except ValueError:  # a line cut by a kill, which another attempt's line follows
                continue
    return records
