"""A limit to what the trainings of one run take: at it they save a checkpoint and stop."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.config import ClusterConfig
from gpt2.cost import BudgetConfig

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
