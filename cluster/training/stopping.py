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
    """Raised where the budget of this run is used up. The training's state is in a checkpoint."""


@dataclass
class Spent:
    """Time (s) and money that the trainings of this process have used, including the start of the workers."""

    seconds: float = 0.0
    cost: float = 0.0


_spent = Spent()
_adding = threading.Lock()


def exceeded(budget: BudgetConfig) -> str | None:
    """Return a sentence on the setting of the budget that is used up; None while the budget lasts."""
    if budget.max_seconds is not None and _spent.seconds >= budget.max_seconds:
        return f"budget.max_seconds={budget.max_seconds:g}: used up by {_spent.seconds:.0f} s of training"
    if budget.max_cost is not None and _spent.cost >= budget.max_cost:
        return (
            f"budget.max_cost={budget.max_cost:g} {budget.currency}: used up by trainings that cost {_spent.cost:.4g}"
        )
    return None


@contextlib.contextmanager
def within(budget: BudgetConfig, cluster: ClusterConfig, stop: Path) -> Iterator[Callable[[], None]]:
    """Count time and cost of the enclosed training, and create the file `stop` where the budget is used up.

    Yields a function that raises `BudgetExceeded` if the budget is used up.
    """
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
    """Raise `BudgetExceeded` if the budget is used up."""
    if reason := exceeded(budget):
        raise BudgetExceeded(
            f"{reason}; the state is in a checkpoint: run the same command to go on with as much again, or raise the "
            f"budget"
        )


SLACK = 10.0
"""A gap counts as hung after this many times the longest gap so far, so that a slow run is not taken for a hung one."""
GRACE = 5.0
"""Seconds after the limit at which a timer in C ends the process, for threads that hold the interpreter's lock."""


class Watchdog(threading.Thread):
    """Thread that ends this process if `alive` is not called for `seconds` and for ten times the longest gap so far.

    It writes the stacks of all threads to `folder/rank-R.txt`. It watches from the second call on, because the first
    step may compile.
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
        """Report progress."""
        now = time.monotonic()
        if self.calls:
            self.longest = max(self.longest, now - self.last)
        self.last, self.calls = now, self.calls + 1
        if self.calls > 1 and not self.ended.is_set():
            faulthandler.dump_traceback_later(self.limit + GRACE, exit=True, file=self.stacks)

    def end(self) -> None:
        """Stop watching."""
        self.ended.set()
        faulthandler.cancel_dump_traceback_later()

    def run(self) -> None:
        while not self.ended.wait(min(1.0, self.seconds / 4)):
            idle = time.monotonic() - self.last
            if self.calls > 1 and idle > self.limit:
                faulthandler.dump_traceback(self.stacks)
                self.stacks.flush()
                self.events.tell("hang", rank=self.rank, seconds=round(idle, 1), stacks=str(self.path))
                time.sleep(1.0)  # the other ranks wait for this one and need time to write their stacks
                os._exit(1)


_files: set[Path] = set()
"""The stop file of each training of this process."""
_asked = threading.Event()


@contextlib.contextmanager
def politely() -> Iterator[None]:
    """Let a SIGTERM stop the trainings of the enclosed block first, and then do what it did before.

    Works in the main thread only. A second SIGTERM does not wait for the trainings.
    """
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
    """Let a SIGTERM create `file`, at which the enclosed training stops. Yields a function that raises `Preempted`."""
    file.unlink(missing_ok=True)
    _files.add(file)
    if _asked.is_set():
        file.touch()

    def stopped() -> None:
        raise Preempted("stopped by SIGTERM; the state is in a checkpoint: run the same command to go on")

    try:
        yield stopped
    finally:
        _files.discard(file)
        file.unlink(missing_ok=True)
