"""The journal and the events of a training, read by the driver while workers write them, and described in words."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2.training.cost import describe_failure
from gpt2.training.journal import parse


def describe_event(event: dict[str, Any]) -> str | None:
    """Return a sentence on a training event for the log; None if nothing is unusual."""
    match event["event"]:
        case "begin" if event["step"]:
            again = max(0, event["reached"] - event["step"])
            return f"goes on from the checkpoint of step {event['step']}; {again} steps are repeated"
        case "failure":
            return f"{describe_failure(event)}; starting again from the last checkpoint"
        case "hang":
            return f"{describe_failure(event)}; its stacks are in {event['stacks']}"
        case "bad step":
            return f"step {event['step']} left out: gradient norm {event['norm']}, limit {event['limit']}"
        case "rollback":
            first, last = event["batches"][0], event["batches"][-1]
            return f"back to step {event['to']}; batches {first} to {last} are not read again"
        case "damaged checkpoint":
            return f"checkpoint refused: {event['reason']}; going back to the one before"
        case "not mirrored":
            return f"{event['path']} was not copied to {event['url']}: {event['reason']}; training goes on without"
        case "fetched":
            return f"{event['path']} fetched from {event['url']}"
        case "changed":
            changes = {k: v for k, v in event.items() if k not in ("event", "time", "step")}
            return "goes on with " + ", ".join(f"{k} {now} (was {was})" for k, (was, now) in changes.items())
        case "remark":
            return f"worker {event['rank']}: {event['level']}: {event['text']}"
        case "preempted":
            return f"stopped by request: saved at step {event['step']}"
    return None


def record_key(record: dict[str, Any]) -> tuple:
    return record["step"], "validation_loss" in record


def event_key(event: dict[str, Any]) -> tuple:
    return event["event"], event["time"]


class JournalFollower:
    """Thread that reads a file of JSON lines while workers write it, and calls `on_record` once per key.

    A restart that writes the same steps again repeats no key.
    """

    def __init__(
        self,
        path: Path,
        key: Callable[[dict[str, Any]], tuple] | None,
        on_record: Callable[[dict[str, Any]], None],
        every: float = 1.0,
    ):
        """`key` identifies a record; None passes on every line. `every`: seconds between two readings."""
        self.path, self.key, self.on_record, self.every = path, key, on_record, every
        self.seen: set[tuple] = set()
        self.file, self.offset = 0, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> JournalFollower:
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop.set()
        self.thread.join()
        self._read()

    def _follow(self) -> None:
        while not self.stop.wait(self.every):
            self._read()

    def _read(self) -> None:
        for record in self._new():
            key = self.key(record) if self.key else None
            if key not in self.seen:
                if key:
                    self.seen.add(key)
                self.on_record(record)

    def _new(self) -> list[dict[str, Any]]:
        """Return the records written since the last call; all of them if the file was replaced."""
        try:
            stream = open(self.path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return []
        with stream:
            file = os.fstat(stream.fileno()).st_ino
            if file != self.file:
                self.file, self.offset = file, 0
            stream.seek(self.offset)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return parse(whole)
