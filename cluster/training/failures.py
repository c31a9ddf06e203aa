"""Failures of workers as Ray Train's controller sees them, and warnings of their libraries, as training events."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from ray.train import UserCallback

from gpt2.training.journal import Events

PER_MINUTE = 10
"""Lines that a worker forwards in a minute. Of further lines only the number is forwarded."""
LONGEST = 500
"""Most characters of a forwarded line."""


class WarningForwarder(logging.Handler):
    """Logging handler that forwards warnings and errors as training events, with the last line of their traceback.

    It forwards the same line at most once a minute.
    """

    def __init__(self, events: Events, rank: int):
        super().__init__(logging.WARNING)
        self.events, self.rank = events, rank
        self.begun, self.seen, self.dropped = time.monotonic(), set[str](), 0

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a warning is no reason to fail
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            self._forward(record.levelname.lower(), " ".join(text.split())[:LONGEST])

    def _forward(self, level: str, text: str) -> None:
        if time.monotonic() - self.begun > 60:
            self.flush_dropped()
            self.begun, self.seen = time.monotonic(), set()
        if text in self.seen or len(self.seen) >= PER_MINUTE:
            self.dropped += 1
            return
        self.seen.add(text)
        self.events.tell("remark", rank=self.rank, level=level, text=text)

    def flush_dropped(self) -> None:
        """Forward the number of lines that were dropped."""
        if self.dropped:
            self.events.tell("remark", rank=self.rank, level="warning", text=f"{self.dropped} more such lines")
            self.dropped = 0


@contextlib.contextmanager
def forwarded_warnings(events: Events, rank: int) -> Iterator[None]:
    """Forward the warnings and errors of a worker's libraries to the driver's log, as training events with the rank."""
    forwarder = WarningForwarder(events, rank)
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.addHandler(forwarder)
    try:
        yield
    finally:
        root.removeHandler(forwarder)
        forwarder.flush_dropped()


def cause(error: BaseException) -> str:
    """Return the last line of the error of the first worker that failed, or else of `error`."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = sorted(failures.items())[0]
        return f"worker {rank}: {last_line(failure)}"
    return last_line(error)


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, where Python names its class."""
    lines = str(error).strip().splitlines()
    if any(line.startswith("The actor is dead") for line in lines):  # Ray lists possible causes over a whole screen
        return "its process died (killed, out of memory or crashed)"
    if lines and "WORKER_HEALTH_CHECK_TIMEOUT" in lines[-1]:
        return "it does not answer"
    return lines[-1] if lines else type(error).__name__


class TellFailures(UserCallback):
    """Callback of Ray Train's controller that records failures of workers as training events."""

    def __init__(self, folder: str):
        self.folder = folder

    def after_exception(self, run_context, worker_exceptions) -> None:
        causes = {str(rank): last_line(error) for rank, error in sorted(worker_exceptions.items())}
        Events(Path(self.folder)).tell("failure", workers=causes)
