"""Where a training's time went: goodput, and what each restart cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STARTS = "starting workers"
DOWN = "not running"
DETECT = "until a failure was noticed"
RESTART = "restarting workers"
RELOAD = "loading checkpoints"
RECOMPUTE = "steps done again"
SAVE = "waiting for checkpoints"
LOST = "lost its connection to another worker"


@dataclass(frozen=True)
class Restart:
    """One interruption of a training."""

    time: float
    """When it was noticed (s since 1970)."""
    cause: str
    detect: float
    restart: float
    reload: float
    recompute: float

    @property
    def seconds(self) -> float:
        """From the last progress before it to the first new progress after it."""
        return self.detect + self.restart + self.reload + self.recompute


@dataclass(frozen=True)
class Account:
    """Seconds of a training's life, by use."""

    wall: float
    lost: dict[str, float]
    restarts: list[Restart]
    bad_steps: int

    @property
    def goodput(self) -> float:
        """Share of the wall time spent in steps that count."""
        return max(0.0, 1 - sum(self.lost.values()) / self.wall) if self.wall > 0 else 0.0

    def metrics(self) -> dict[str, float]:
        """For MLflow."""
        return {"goodput": self.goodput, "restarts": len(self.restarts), "skipped_steps": self.bad_steps}


def account(journal: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> Account:
    """The account of a training, from its journal and its events (`gpt2.journal`)."""
    lost = dict.fromkeys((STARTS, DOWN, DETECT, RESTART, RELOAD, RECOMPUTE, SAVE), 0.0)
    times = [e["time"] for e in events] + [r["time"] for r in journal if "time" in r]
    restarts: list[Restart] = []
    launched: float | None = None
    failed: tuple[float, str] | None = None
    for event in events:
        kind, now = event["event"], event["time"]
        if kind == "launch":
            launched, failed = now, None
        elif kind in ("failure", "hang") and failed is None:
            failed = (now, describe_failure(event))
        elif kind == "checkpoint":
            lost[SAVE] += event["stall"]
        elif kind == "begin":
            reload, last = event["load_seconds"], event.get("last")
            begun = now - reload
            again = _recompute(journal, event, events)
            if failed is not None:
                detect = max(0.0, failed[0] - last) if last else 0.0
                restarts.append(Restart(failed[0], failed[1], detect, max(0.0, begun - failed[0]), reload, again))
            elif last is not None and launched is not None:  # the driver had died, or was stopped
                lost[DOWN] += max(0.0, launched - last)
                lost[STARTS] += begun - launched
                lost[RELOAD] += reload
                lost[RECOMPUTE] += again
            elif launched is not None:
                lost[STARTS] += begun - launched
            failed = None
    for restart in restarts:
        lost[DETECT] += restart.detect
        lost[RESTART] += restart.restart
        lost[RELOAD] += restart.reload
        lost[RECOMPUTE] += restart.recompute
    wall = max(times) - min(times) if times else 0.0
    return Account(wall, lost, restarts, sum(e["event"] == "bad step" for e in events))


def _recompute(journal: Sequence[dict[str, Any]], begin: dict[str, Any], events: Sequence[dict[str, Any]]) -> float:
    """Seconds until a training that began again had the step that it had reached before."""
    if begin["reached"] <= begin["step"]:
        return 0.0
    after = [r["time"] for r in journal if r.get("time", 0) > begin["time"] and r["step"] >= begin["reached"]]
    ends = [e["time"] for e in events if e["time"] > begin["time"] and e["event"] in ("failure", "launch")]
    return max(0.0, min([*after, *ends], default=begin["time"]) - begin["time"])


def describe_failure(event: dict[str, Any]) -> str:
    """A failure in words."""
    if event["event"] == "hang":
        return f"worker {event['rank']} made no progress for {event['seconds']:g} s"
    told = {rank: LOST if "by peer" in reason else reason for rank, reason in event["workers"].items()}
    causes = {rank: reason for rank, reason in told.items() if reason != LOST} or told  # the others only follow
    return "; ".join(f"worker {rank}: {reason}" for rank, reason in causes.items())
