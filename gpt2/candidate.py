"""One candidate of a search: a fine-tuning with the plain engine, that tells its validation loss at intervals.

What it has told is kept beside it: one that is begun again tells that first, and trains only where more is asked.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt2.artifact import write_atomically
from gpt2.config import TrainConfig
from gpt2.endings import GaveUp
from gpt2.jobs import Job

FILE = "curve.json"
WORST = 1e6
"""Told in place of a loss that is no number, or above: it can be compared."""


@dataclass
class Curve:
    """What a candidate has told so far."""

    points: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean validation loss in nats per sample, as the task has it)."""
    ended: bool = False
    """It reached its last step, or gave up."""
    reason: str | None = None
    """Why it gave up."""

    @staticmethod
    def read(folder: Path) -> Curve:
        """Of the candidate in a folder; an empty one where it has told nothing."""
        path = folder / FILE
        if not path.exists():
            return Curve()
        found = json.loads(path.read_text())
        return Curve([(step, loss) for step, loss in found["points"]], found["ended"], found["reason"])

    def write(self, folder: Path) -> None:
        write_atomically(folder / FILE, json.dumps(asdict(self)).encode())


def interval(steps: int, reduction: int) -> int:
    """Steps between two looks, of about `reduction` squared: the least that leaves none to the last step alone."""
    return math.ceil(steps / reduction**2)


def watched(train: TrainConfig, every: int, eval_samples: int) -> TrainConfig:
    """The training of a candidate, with a look at the validation split every so many steps."""
    own = {"eval_every": every, "checkpoint_every": every, "eval_samples": eval_samples, "keep_state": False}
    return TrainConfig.model_validate({**train.model_dump(), **own})


def without_test(examples: Path, out: Path) -> Path:
    """A new folder with links to the examples' files, but not to those of the test split."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(examples.iterdir()):
        link = out / path.name
        link.unlink(missing_ok=True)
        if not path.name.startswith("test"):
            os.symlink(path.resolve(), link)
    return out


class Telling:
    """In place of checkpoints, which come with each look at the validation split: the loss is kept and told."""

    def __init__(self, curve: Curve, steps: int, folder: Path, tell: Callable[[int, float], Any]):
        self.curve, self.steps, self.folder, self.tell = curve, steps, folder, tell
        self.known = curve.points[-1][0] if curve.points else 0

    def load(self, engine: Any) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def save(self, engine: Any, step: int, state: dict[str, Any], loss: float | None) -> None:
        if step <= self.known or loss is None:
            return
        self.curve.points.append((step, comparable(loss)))
        self.curve.ended = step >= self.steps  # before it is told, as who hears of the last step may end it
        self.curve.write(self.folder)
        self.tell(*self.curve.points[-1])

    def wait(self) -> None:
        pass


def comparable(loss: float) -> float:
    return min(loss, WORST) if math.isfinite(loss) else WORST


def run(job: Job, steps: int, tell: Callable[[int, float], Any], device: str = "cpu", threads: int = 1) -> Curve:
    """Train the job's module for `steps` steps; `tell(step, validation loss)` may end it by an exception.

    A training that can't go on, or can't begin with these settings (`ValueError`), ends with a reason and the worst
    loss: other candidates go on.
    """
    folder = Path(job.output)
    folder.mkdir(parents=True, exist_ok=True)
    curve = Curve.read(folder)
    for step, loss in list(curve.points):
        tell(step, loss)
    if curve.reason:
        tell(steps, WORST)
    if curve.ended:
        return curve
    import torch

    from gpt2.engine import TorchEngine
    from gpt2.jobs import build
    from gpt2.train import fit

    torch.set_num_threads(threads)
    try:
        parts = build(job)
        engine = TorchEngine(parts.module.train(), job.train, device)
        fit(engine, parts.training, parts.validation, job.train, folder, Telling(curve, steps, folder, tell))
    except (GaveUp, ValueError) as error:
        curve.ended, curve.reason = True, str(error).splitlines()[0]
        curve.write(folder)
        tell(steps, WORST)
    return curve
