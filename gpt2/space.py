"""A space of settings to search: paths with ranges or choices, and settings drawn from it by a seed alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import Field, ValidationError, model_validator

from gpt2.config import Settings


class Range(Settings):
    """Numbers from `low` to `high`, each as likely; with `log` each ratio."""

    low: float
    high: float
    log: bool = Field(False)

    @model_validator(mode="after")
    def _is_one(self):
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}; exchange them, or give one choice")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g} has no logarithm; set low above 0, or log: false")
        return self


Dimension = Range | list[Any]
"""What a setting may be: a range, or a list of choices."""


def dimensions(space: Any, prefix: str = "") -> dict[str, Dimension]:
    """{path: dimension} of settings by dotted paths, nested sections, or both; `ValueError` names what is neither."""
    if not isinstance(space, Mapping):
        where = f"{prefix} = " if prefix else ""
        raise ValueError(
            f"{where}{space!r:.80} is no range and no choices; give {{low: 1e-4, high: 1e-2, log: true}}, or a list"
        )
    found: dict[str, Dimension] = {}
    for name, value in space.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        new: dict[str, Dimension]
        if isinstance(value, list):
            new = {path: choices(path, value)}
        elif isinstance(value, Mapping) and ({"low", "high"} & set(value)):
            new = {path: ranged(path, value)}
        else:
            new = dimensions(value, path)
        for twice in found.keys() & new.keys():
            raise ValueError(f"{twice} is there twice; leave one out")
        found |= new
    return dict(sorted(found.items()))


def choices(path: str, values: list[Any]) -> list[Any]:
    """The values; `ValueError` where there are none, or one twice."""
    if not values:
        raise ValueError(f"{path} = []: there is nothing to choose from; give values, or leave it out")
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{path} = {values}: {value!r} is there twice; leave one out")
    return values


def ranged(path: str, given: Mapping[str, Any]) -> Range:
    """The range; `ValueError` says what is wrong with it."""
    try:
        return Range.model_validate(given)
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join([path, *map(str, item["loc"])])
        message = item["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where}: {message}; a range is {{low: 1e-4, high: 1e-2, log: true}}") from None


def plain(space: Mapping[str, Dimension]) -> dict[str, Any]:
    """The space as JSON; `dimensions` reads it."""
    return {path: d.model_dump() if isinstance(d, Range) else d for path, d in space.items()}


def ends(dimension: Dimension, whole: bool) -> list[Any]:
    """The values that decide whether all of them are allowed: the ends of a range, or all choices."""
    if isinstance(dimension, Range):
        return [round(dimension.low), round(dimension.high)] if whole else [dimension.low, dimension.high]
    return dimension


def draw(space: Mapping[str, Dimension], whole: Collection[str], seed: int, number: int) -> dict[str, Any]:
    """{path: value}, each by itself at random (Bergstra and Bengio 2012); those at `whole` paths are integers.

    It follows from the space, the seed and its number: more draws leave the earlier ones as they are. Numbers have
    three digits, so that what is written is what was tried.
    """
    import numpy as np

    generator = np.random.default_rng([seed, number])
    found: dict[str, Any] = {}
    for path, dimension in sorted(space.items()):
        share = float(generator.random())
        if isinstance(dimension, Range):
            found[path] = within(dimension, share, path in whole)
        else:
            found[path] = dimension[int(share * len(dimension))]
    return found


def within(dimension: Range, share: float, whole: bool) -> float | int:
    """The number at this share, in [0, 1), of the way through a range."""
    low, high = dimension.low, dimension.high
    if whole:  # each integer has a piece of the way
        low, high = round(low), round(high) + 1
    value = low * math.exp(share * math.log(high / low)) if dimension.log else low + share * (high - low)
    if whole:
        return min(max(math.floor(value), round(dimension.low)), round(dimension.high))
    return min(max(float(f"{value:.3g}"), low), high)
