"""What Ray Train's controller knows of failed workers, told as events of the training."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from ray.train import UserCallback

from gpt2.training.journal import Events

PER_MINUTE = 10
"""Lines that a worker tells in a minute; of more, their number."""
LONGEST = 500
"""Characters of a line."""


class WarningForwarder(logging.Handler):
    """Tells warnings and errors, and the last line of a traceback that comes with one; the same line once a minute."""

    def __init__(self, events: Events, rank: int):
        super().__init__(logging.WARNING)
        self.events, self.rank = events, rank
        self.begun, self.seen, self.dropped = time.monotonic(), set[str](), 0

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a remark is no reason to fail
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
        """Tell how many lines were not told."""
        if self.dropped:
            self.events.tell("remark", rank=self.rank, level="warning", text=f"{self.dropped} more such lines")
            self.dropped = 0


@contextlib.contextmanager
def forwarded_warnings(events: Events, rank: int) -> Iterator[None]:
    """Around a worker's work: its warnings and errors are told."""
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
    """The last line of the first failed worker's own error."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = sorted(failures.items())[0]
        return f"worker {rank}: {last_line(failure)}"
    return last_line(error)


def last_line(error: BaseException) -> str:
    """The last line of an error's message, where Python names its class."""
    lines = str(error).strip().splitlines()
    if any(line.startswith("The actor is dead") for line in lines):  # Ray's guesses at why would fill a screen
        return "its process died (killed, out of memory or crashed)"
    if lines and "WORKER_HEALTH_CHECK_TIMEOUT" in lines[-1]:
        return "it does not answer"
    return lines[-1] if lines else type(error).__name__


class TellFailures(UserCallback):
    """Lives in Ray Train's controller."""

    def __init__(self, folder: str):
        self.folder = folder

    def after_exception(self, run_context, worker_exceptions) -> None:
        causes = {str(rank): last_line(error) for rank, error in sorted(worker_exceptions.items())}
        Events(Path(self.folder)).tell("failure", workers=causes)
