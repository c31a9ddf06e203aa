"""Three ways in which a training stops before its end, each after a checkpoint or from the last one.

* The budget: at the limit of this run's trainings they save and stop.
* The watchdog: a worker without progress writes its stacks and ends, so that the training is restarted.
* SIGTERM, sent by a preempted machine or a cancelled run: trainings save and stop at their next step first.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cluster.config import ClusterConfig
from gpt2.training.config import BudgetConfig
from gpt2.training.guard import Preempted
from gpt2.training.journal import Events

TICK = 0.5


class BudgetExceeded(ValueError):
    """The budget of this run is used up; what was trained is in a checkpoint."""


@dataclass
class Spent:
    """What the trainings of this process have taken, workers' start included."""

    seconds: float = 0.0
    cost: float = 0.0


_spent = Spent()
_adding = threading.Lock()


def exceeded(budget: BudgetConfig) -> str | None:
    """What is used up, and of which setting; None while there is something left."""
    if budget.max_seconds is not None and _spent.seconds >= budget.max_seconds:
        return f"budget.max_seconds={budget.max_seconds:g} is used up by {_spent.seconds:.0f} s of training"
    if budget.max_cost is not None and _spent.cost >= budget.max_cost:
        return f"budget.max_cost={budget.max_cost:g} {budget.currency} is used up: {_spent.cost:.4g} were spent"
    return None


@contextlib.contextmanager
def within(budget: BudgetConfig, cluster: ClusterConfig, stop: Path) -> Iterator[Callable[[], None]]:
    """Around a training that stops when the file `stop` appears; the yielded call raises `BudgetExceeded` where the
    budget is why it stopped."""
    check(budget)
    ended = threading.Event()
    cpus = cluster.num_workers * cluster.cpus_per_worker
    gpus = cluster.num_workers * cluster.use_gpu

    def watch() -> None:
        last = time.monotonic()
        while not ended.wait(TICK):
            now = time.monotonic()
            with _adding:
                _spent.seconds += now - last
                _spent.cost += budget.price(cpus * (now - last), gpus * (now - last))
            last = now
            if exceeded(budget):
                stop.touch()

    thread = threading.Thread(target=watch, daemon=True, name="budget")
    thread.start()
    try:
        yield lambda: check(budget)
    finally:
        ended.set()
        thread.join()


def check(budget: BudgetConfig) -> None:
    """Raise `BudgetExceeded` where nothing is left."""
    if reason := exceeded(budget):
        raise BudgetExceeded(
            f"{reason}; what was trained is in a checkpoint: run the same command to go on for as long again, or raise "
            f"the budget"
        )


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


_files: set[Path] = set()
"""What asks each training of this process to stop."""
_asked = threading.Event()


@contextlib.contextmanager
def politely() -> Iterator[None]:
    """In the main thread: a SIGTERM during a training first stops it; then, as at any other time, what it did before
    happens. A second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def handler(number: int, frame: FrameType | None) -> None:
        if _files and not _asked.is_set():
            _asked.set()
            for file in _files:
                file.touch()
            return
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if _asked.is_set():
            _asked.clear()
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def stopping(file: Path) -> Iterator[Callable[[], None]]:
    """Around a training that stops when `file` appears; the yielded call raises `Preempted`."""
    file.unlink(missing_ok=True)
    _files.add(file)
    if _asked.is_set():
        file.touch()

    def stopped() -> None:
        raise Preempted("stopped as asked; its state is in a checkpoint: run the same command to go on")

    try:
        yield stopped
    finally:
        _files.discard(file)
        file.unlink(missing_ok=True)
