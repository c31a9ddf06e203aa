"""The gate's policy: what a model must show to become the champion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gpt2.settings import Settings


class GateConfig(Settings):
    """What a model must show to become the champion; the verdict says how each point was met.

    Without a champion, beating the simple baseline within the limits is enough. Margins are shares of the champion's
    value unless they say otherwise, since metrics have different scales.
    """

    probability: float = Field(0.975, ge=0.5, lt=1)
    """How sure it must be that the model is better than the champion, and than the baselines, on the task's metric: the
    share of paired bootstrap draws; of fewer than 500 units, one less the p of a paired permutation test. At 0.975 the
    95 % interval of the difference is above zero, and of models that are only as good 1 in 40 is promoted."""
    margin: float = Field(0.02, ge=0, le=0.5)
    """A cheaper model, or one that knows items which the champion can't recommend, may also be worse by less than this
    share, if it is as sure as that. Fewer than a few hundred units can't show it."""
    cheaper_by: float = Field(0.1, gt=0, lt=1)
    """By which share a model must be smaller, or quicker, to count as cheaper."""
    cheaper_in: Literal["parameters", "latency"] = "parameters"
    """What counts as cheaper. Times are of the machine where each was measured: only compare them where it is idle."""
    slice_margin: float = Field(0.05, ge=0, le=1)
    """No part of the examples (topic, length, class) may be worse than the champion by more than this share, so surely
    that it is no chance among so many parts (Holm)."""
    min_slice: int = Field(50, ge=2)
    """Parts of fewer units are shown but not judged."""
    calibration_margin: float = Field(0.02, ge=0, le=1)
    """By how much the expected calibration error may be more than the champion's, as it is, not as a share."""
    forgetting_margin: float = Field(0.02, ge=0, le=1)
    """By which share the bits per byte of old text may be more than the champion's after a refresh."""
    max_contamination: float = Field(0.05, ge=0, le=1)
    """The largest share of held-out texts that the training text may have (13 words in a row, or nearly the same text).
    Were all of these known by heart, 0.05 would make an accuracy of 0.75 too good by 0.0125: less than `margin`."""
    max_parameters: int | None = Field(None, ge=1)
    """The largest model that may be promoted; without it, any."""
    max_latency_ms: float | None = Field(None, gt=0)
    """The longest that one answer (of the base model, one token) may take where it was measured; without it, any."""
    must_beat: list[str] = Field(default=[])
    """Baselines, by the reports' names, that a model must beat besides the simplest of its task."""
