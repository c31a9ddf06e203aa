"""A training's figures on their way to MLflow: training never waits for the server.

The journal on disk is the truth. What a server that went away has not got is sent when it is back, or, where this
process ended before, by the next one, which goes on after the last step that MLflow has.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from typing import Any

from cluster.patience import FAILURES, unanswered
from cluster.tracking import Run

RECORDS = 100
"""At most this many records are sent at once."""
LEAVING = 5.0
"""Seconds that an ending which is not the training's own waits for what was not sent."""


class Sender:
    """Sends metrics to a run from a thread, in order: one by one, or many at once after it waited."""

    def __init__(self, run: Run):
        self.run = run
        self.waiting: queue.Queue[tuple[Mapping[str, float], int, float | None] | None] = queue.Queue()
        self.error: BaseException | None = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._send_all, daemon=True, name="mlflow-sender")

    def __enter__(self) -> Sender:
        self.thread.start()
        return self

    def put(self, values: Mapping[str, float], step: int, time: float | None) -> None:
        """Send these metrics of a step; `time` (s since 1970) makes sending them twice the same as once."""
        self.waiting.put((values, step, time))

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """At the training's end all is sent, or raises; at another end there is no long wait."""
        self.ending.set()
        self.waiting.put(None)
        self.thread.join(None if kind is None else LEAVING)
        if kind is None and self.error is not None:
            raise self.error

    def _send_all(self) -> None:
        try:
            more = True
            while more:
                batch = [self.waiting.get()]
                while len(batch) < RECORDS and not self.waiting.empty():
                    batch.append(self.waiting.get())
                more = batch[-1] is not None
                self._send([item for item in batch if item is not None])
        except BaseException as error:
            self.error = error

    def _send(self, records: list[tuple[Mapping[str, float], int, float | None]]) -> None:
        """Send, however long the server is away while the training goes on."""
        while True:
            try:
                return self.run.batch(records)
            except FAILURES as error:
                if self.ending.is_set() or not unanswered(error):
                    raise
