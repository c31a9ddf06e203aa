"""The gate's policy: the criteria for promoting a model to champion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gpt2.settings import Settings


class GateConfig(Settings):
    """Criteria for promoting a model to champion; the verdict reports each of them.

    Without a champion, beating the simple baseline within the limits is enough. Margins are shares of the champion's
    value unless stated otherwise, since metrics have different scales.
    """

    probability: float = Field(0.975, ge=0.5, lt=1)
    """Required probability that the model is better than the champion, and than the baselines, on the task's metric:
    the share of paired bootstrap draws; below 500 units, 1 - p of a paired permutation test. At 0.975 the 95 % interval
    of the difference is above zero, and 1 in 40 models that are only equally good is promoted."""
    margin: float = Field(0.02, ge=0, le=0.5)
    """Non-inferiority margin (share of the champion's value). A cheaper model, or one that knows items which the
    champion can't recommend, may be worse by less than this with the same `probability`. A few hundred units are needed
    to show it."""
    cheaper_by: float = Field(0.1, gt=0, lt=1)
    """Share by which a model must be smaller, or faster, to count as cheaper."""
    cheaper_in: Literal["parameters", "latency"] = "parameters"
    """The cost that makes a model cheaper. Latency depends on the machine where each model was measured; compare it
    only if that machine is idle."""
    slice_margin: float = Field(0.05, ge=0, le=1)
    """No slice of the examples (topic, length, class) may be significantly worse than the champion by more than this
    share, after Holm's correction for the number of slices."""
    min_slice: int = Field(50, ge=2)
    """Slices with fewer units are shown but not judged (unit: units, such as posts)."""
    calibration_margin: float = Field(0.02, ge=0, le=1)
    """Allowed increase of the expected calibration error over the champion's: an absolute difference, not a share."""
    forgetting_margin: float = Field(0.02, ge=0, le=1)
    """Allowed increase of the bits per byte of old text over the champion's after a refresh (share)."""
    max_contamination: float = Field(0.05, ge=0, le=1)
    """Largest share of held-out texts that may occur in the training text (13 words in a row, or a near-duplicate). If
    the model knew all of these by heart, 0.05 would raise an accuracy of 0.75 by 0.0125: less than `margin`."""
    max_parameters: int | None = Field(None, ge=1)
    """Largest number of parameters that may be promoted; without it, any."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Longest time for one answer (for the base model, one token) on the machine that measured it (unit: ms); without
    it, any."""
    must_beat: list[str] = Field(default=[])
    """Names of baselines in the reports that a model must beat besides the simplest one of its task."""
