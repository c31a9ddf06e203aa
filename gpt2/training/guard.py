"""Steps with bad gradients are skipped; and the exceptions that end a training.

A step whose gradient norm is not finite, or far above the usual, is skipped on all ranks alike. Several in a row
are taken for bad data or a damaged state: training goes back, and the samples are never read again. PaLM's authors did
this by hand (Chowdhery et al. 2022, section 5.1).
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

from gpt2.training.config import GuardConfig


class GaveUp(RuntimeError):
    """Training can't continue, and a retry would not help."""


class NotWritten(OSError):
    """A checkpoint could not be written; the one before it is intact."""


class Preempted(RuntimeError):
    """Training stopped on request; all progress is in a checkpoint."""


WINDOW, WARM = 100, 20
"""Number of gradient norms remembered, and the number needed before a norm can count as far above the usual."""


class Guard:
    """Judges each step. Its state is part of a checkpoint, so that a resumed run judges in the same way."""

    def __init__(self, config: GuardConfig, state: dict[str, Any] | None = None):
        state = state or {}
        self.config = config
        self.norms: deque[float] = deque(state.get("norms", []), maxlen=WINDOW)
        self.skipped: int = state.get("skipped", 0)
        self.bad: list[int] = state.get("bad", [])
        """Windows of the latest steps, all of them bad."""
        self.quarantined: set[int] = set(state.get("quarantined", []))
        """Windows of the token stream that are not read again. A window is a global batch, numbered from 0."""
        self.rollbacks: int = state.get("rollbacks", 0)

    def state(self) -> dict[str, Any]:
        """Return the state as JSON, from which an equal guard is made."""
        return {
            "norms": list(self.norms),
            "skipped": self.skipped,
            "bad": self.bad,
            "quarantined": sorted(self.quarantined),
            "rollbacks": self.rollbacks,
        }

    def window(self, step: int) -> int:
        """Return the window that a step reads: the step-th, from 0, of those that are not in quarantine."""
        window = step
        for barred in sorted(self.quarantined):
            if barred > window:
                break
            window += 1
        return window

    @property
    def limit(self) -> float:
        """Largest gradient norm to apply."""
        if not self.config.max_norm_ratio or len(self.norms) < WARM:
            return math.inf
        return self.config.max_norm_ratio * median(self.norms)

    def judge(self, norm: float, window: int) -> bool:
        """Return True if the step with that gradient norm counts, and remember it."""
        if norm == 0:  # no step was due, or fp16 lowered its loss scale: not a typical norm
            return True
        good = math.isfinite(norm) and norm <= self.limit
        if good:
            self.norms.append(norm)
            self.bad = []
        else:
            self.skipped += 1
            self.bad = [*self.bad, window]
        return good

    @property
    def must_go_back(self) -> bool:
        """True if too many steps in a row were bad."""
        return len(self.bad) >= self.config.max_bad_steps

    def quarantine(self) -> list[int]:
        """Quarantine and return the windows of the bad steps; `GaveUp` after too many rollbacks."""
        if self.rollbacks >= self.config.max_rollbacks:
            raise GaveUp(
                f"{len(self.bad)} steps in a row had gradients that are not finite or above {self.limit:.3g}, and "
                f"{self.rollbacks} rollbacks did not help; lower the learning rate or look at the samples of "
                f"batches {self.bad[0]} to {self.bad[-1]}"
            )
        barred, self.bad = self.bad, []
        self.quarantined |= set(barred)
        self.rollbacks += 1
        return barred
