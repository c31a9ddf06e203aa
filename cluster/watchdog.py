"""A worker that makes no progress says where it stands and ends, so that the training is restarted."""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from pathlib import Path

from gpt2.journal import Events

SLACK = 10.0
"""Times the longest gap seen that a gap may last: a slow run is not a hung one."""
GRACE = 5.0
"""Seconds after which a timer in C does what a thread could not, because the interpreter's lock is held."""


class Watchdog(threading.Thread):
    """Ends this process when `alive` was not called for `seconds`, or for ten times the longest gap so far.

    The stacks of all threads go to `folder/rank-R.txt`. It watches from the second call on: the first step may
    compile, and its length is not known yet.
    """

    def __init__(self, seconds: float, folder: Path, rank: int, events: Events):
        super().__init__(daemon=True, name="watchdog")
        self.seconds, self.rank, self.events = seconds, rank, events
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"rank-{rank:05d}.txt"
        self.stacks = open(self.path, "w")  # noqa: SIM115 - faulthandler writes to it from a signal-safe place
        self.last, self.longest, self.calls = time.monotonic(), 0.0, 0
        self.ended = threading.Event()

    @property
    def limit(self) -> float:
        return max(self.seconds, SLACK * self.longest)

    def alive(self) -> None:
        """There is progress."""
        now = time.monotonic()
        if self.calls:
            self.longest = max(self.longest, now - self.last)
        self.last, self.calls = now, self.calls + 1
        if self.calls > 1 and not self.ended.is_set():
            faulthandler.dump_traceback_later(self.limit + GRACE, exit=True, file=self.stacks)

    def end(self) -> None:
        """Watch no more."""
        self.ended.set()
        faulthandler.cancel_dump_traceback_later()

    def run(self) -> None:
        while not self.ended.wait(min(1.0, self.seconds / 4)):
            idle = time.monotonic() - self.last
            if self.calls > 1 and idle > self.limit:
                faulthandler.dump_traceback(self.stacks)
                self.stacks.flush()
                self.events.tell("hang", rank=self.rank, seconds=round(idle, 1), stacks=str(self.path))
                time.sleep(1.0)  # the other ranks, stuck with this one, have their stacks to write
                os._exit(1)
