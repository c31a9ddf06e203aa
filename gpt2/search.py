"""Hyperparameter search: the space of settings, and one trial.

A space is paths with ranges or choices; settings are drawn from it by a seed alone. A trial is a fine-tuning with the
plain engine that reports its validation loss at intervals. Its reports are kept beside it: a trial that starts again
repeats them first, and trains only where more is asked for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from gpt2.settings import Settings
from gpt2.store.artifact import write_atomically
from gpt2.training.config import TrainConfig
from gpt2.training.guard import GaveUp
from gpt2.training_job import TrainingJob

FILE = "curve.json"
WORST = 1e6
"""Reported instead of a loss that is not finite or is above it, so that trials can be compared."""


@dataclass
class Curve:
    """The validation losses of a trial so far."""

    points: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean validation loss in nats per sample, as the task defines it)."""
    ended: bool = False
    """True if the trial reached its last step or gave up."""
    reason: str | None = None
    """The reason for giving up, or None."""

    @staticmethod
    def read(folder: Path) -> Curve:
        """Return the curve of the trial in a folder; an empty one if there is none yet."""
        path = folder / FILE
        if not path.exists():
            return Curve()
        saved = json.loads(path.read_text())
        return Curve([(step, loss) for step, loss in saved["points"]], saved["ended"], saved["reason"])

    def write(self, folder: Path) -> None:
        write_atomically(folder / FILE, json.dumps(asdict(self)).encode())


def interval(steps: int, reduction: int) -> int:
    """Return the fewest steps between evaluations that make at most `reduction` squared evaluations, the last step's
    included."""
    return math.ceil(steps / reduction**2)


def watched(train: TrainConfig, every: int, eval_samples: int) -> TrainConfig:
    """Return a trial's training settings, with an evaluation every `every` steps on `eval_samples` samples."""
    own = {"eval_every": every, "checkpoint_every": every, "eval_samples": eval_samples, "keep_state": False}
    return TrainConfig.model_validate({**train.model_dump(), **own})


def without_test(examples: Path, out: Path) -> Path:
    """Fill a folder with links to the examples' files, except those of the test split; return it."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(examples.iterdir()):
        link = out / path.name
        link.unlink(missing_ok=True)
        if not path.name.startswith("test"):
            os.symlink(path.resolve(), link)
    return out


class LossReporter:
    """Stands in for a checkpointer: at each evaluation it records the loss and reports it. Nothing else is kept."""

    def __init__(self, curve: Curve, steps: int, folder: Path, tell: Callable[[int, float], Any]):
        self.curve, self.steps, self.folder, self.tell = curve, steps, folder, tell
        self.known = curve.points[-1][0] if curve.points else 0

    def load(self, engine: Any) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def save(self, engine: Any, step: int, state: dict[str, Any], loss: float | None) -> None:
        if step <= self.known or loss is None:
            return
        self.curve.points.append((step, comparable(loss)))
        self.curve.ended = step >= self.steps  # before the report, whose receiver may end the trial at its last step
        self.curve.write(self.folder)
        self.tell(*self.curve.points[-1])

    def wait(self) -> None:
        pass


def comparable(loss: float) -> float:
    return min(loss, WORST) if math.isfinite(loss) else WORST


def run(job: TrainingJob, steps: int, tell: Callable[[int, float], Any], threads: int = 1) -> Curve:
    """Train the job's module for `steps` steps; `tell(step, validation loss)` may end it by an exception.

    Return the curve. If training gives up, or can't begin with these settings (`ValueError`), the curve ends with a
    reason and the worst loss: other trials go on.
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

    from gpt2.training.engine import TorchEngine
    from gpt2.training.loop import fit
    from gpt2.training_job import build

    torch.set_num_threads(threads)
    try:
        parts = build(job)
        engine = TorchEngine(parts.module.train(), job.train)
        fit(engine, parts.training, parts.validation, job.train, folder, LossReporter(curve, steps, folder, tell))
    except (GaveUp, ValueError) as error:
        curve.ended, curve.reason = True, str(error).splitlines()[0]
        curve.write(folder)
        tell(steps, WORST)
    return curve


class Range(Settings):
    """Numbers from `low` to `high`, uniform; log-uniform with `log`."""

    low: float
    high: float
    log: bool = Field(False)

    @model_validator(mode="after")
    def _is_one(self):
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}; swap them, or give one choice")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g} has no logarithm; set low above 0, or log: false")
        return self


Dimension = Range | list[Any]
"""The values of a setting to search: a range, or a list of choices."""


def dimensions(space: Any, prefix: str = "") -> dict[str, Dimension]:
    """Return {dotted path: dimension} of a space, given by dotted paths, nested sections, or both.

    `ValueError` names a value that is neither a range nor a list of choices.
    """
    if not isinstance(space, Mapping):
        where = f"{prefix} = " if prefix else ""
        raise ValueError(
            f"{where}{space!r:.80} is neither a range nor choices; give {{low: 1e-4, high: 1e-2, log: true}}, or a list"
        )
    flat: dict[str, Dimension] = {}
    for name, value in space.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        new: dict[str, Dimension]
        if isinstance(value, list):
            new = {path: choices(path, value)}
        elif isinstance(value, Mapping) and ({"low", "high"} & set(value)):
            new = {path: ranged(path, value)}
        else:
            new = dimensions(value, path)
        for twice in flat.keys() & new.keys():
            raise ValueError(f"{twice} is given twice; leave one out")
        flat |= new
    return dict(sorted(flat.items()))


def choices(path: str, values: list[Any]) -> list[Any]:
    """Return the values; `ValueError` if there are none, or if one is there twice."""
    if not values:
        raise ValueError(f"{path} = []: there is nothing to choose from; give values, or leave it out")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{path} = {values}: {value!r} is given twice; leave one out")
    return values


def ranged(path: str, given: Mapping[str, Any]) -> Range:
    """Return the range; `ValueError` says what is wrong with it."""
    try:
        return Range.model_validate(given)
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join([path, *map(str, item["loc"])])
        message = item["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {message}; a range is {{low: 1e-4, high: 1e-2, log: true}}") from None


def plain(space: Mapping[str, Dimension]) -> dict[str, Any]:
    """Return the space as JSON, which `dimensions` reads."""
    return {path: d.model_dump() if isinstance(d, Range) else d for path, d in space.items()}


def ends(dimension: Dimension, whole: bool) -> list[Any]:
    """Return the values to validate: the ends of a range (rounded if `whole`), or all choices."""
    if isinstance(dimension, Range):
        return [round(dimension.low), round(dimension.high)] if whole else [dimension.low, dimension.high]
    return dimension


def draw(space: Mapping[str, Dimension], whole: Collection[str], seed: int, number: int) -> dict[str, Any]:
    """Return {path: value}, drawn independently (random search, Bergstra and Bengio 2012); `whole` paths get integers.

    The draw depends on the space, the seed and its number alone, so more draws leave the earlier ones unchanged.
    Numbers have three digits: the recorded value is exactly the value tried.
    """
    import numpy as np

    generator = np.random.default_rng([seed, number])
    drawn: dict[str, Any] = {}
    for path, dimension in sorted(space.items()):
        share = float(generator.random())
        if isinstance(dimension, Range):
            drawn[path] = within(dimension, share, path in whole)
        else:
            drawn[path] = dimension[int(share * len(dimension))]
    return drawn


def within(dimension: Range, share: float, whole: bool) -> float | int:
    """Return the number at a share, in [0, 1), of the way through a range."""
    low, high = dimension.low, dimension.high
    if whole:  # each integer has an equal piece of the range
        low, high = round(low), round(high) + 1
    value = low * math.exp(share * math.log(high / low)) if dimension.log else low + share * (high - low)
    if whole:
        return min(max(math.floor(value), round(dimension.low)), round(dimension.high))
    return min(max(float(f"{value:.3g}"), low), high)
