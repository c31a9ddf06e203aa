"""Goodput and cost of a training: where its time went, CPU and GPU seconds, energy, money at a given price."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from gpt2.training.config import BudgetConfig

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
    """One interruption of a training. The phases are in seconds."""

    time: float
    """The time at which it was noticed (s since 1970)."""
    cause: str
    detect: float
    restart: float
    reload: float
    recompute: float

    @property
    def seconds(self) -> float:
        """Seconds from the last progress before it to the first new progress after it."""
        return self.detect + self.restart + self.reload + self.recompute


@dataclass(frozen=True)
class Account:
    """Seconds of a training's wall time, by use."""

    wall: float
    lost: dict[str, float]
    restarts: list[Restart]
    bad_steps: int

    @property
    def goodput(self) -> float:
        """Share of the wall time spent on steps that count."""
        return max(0.0, 1 - sum(self.lost.values()) / self.wall) if self.wall > 0 else 0.0

    def metrics(self) -> dict[str, float]:
        """Return the figures for MLflow."""
        return {"goodput": self.goodput, "restarts": len(self.restarts), "skipped_steps": self.bad_steps}


def account(journal: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> Account:
    """Return the account of a training, from its journal and its events (`gpt2.training.journal`)."""
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
            repeated = _recompute(journal, event, events)
            if failed is not None:
                detect = max(0.0, failed[0] - last) if last else 0.0
                restarts.append(Restart(failed[0], failed[1], detect, max(0.0, begun - failed[0]), reload, repeated))
            elif last is not None and launched is not None:  # the driver died or was stopped
                lost[DOWN] += max(0.0, launched - last)
                lost[STARTS] += begun - launched
                lost[RELOAD] += reload
                lost[RECOMPUTE] += repeated
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
    """Return the seconds until a restarted training reached the step that it had reached before."""
    if begin["reached"] <= begin["step"]:
        return 0.0
    after = [r["time"] for r in journal if r.get("time", 0) > begin["time"] and r["step"] >= begin["reached"]]
    ends = [e["time"] for e in events if e["time"] > begin["time"] and e["event"] in ("failure", "launch")]
    return max(0.0, min([*after, *ends], default=begin["time"]) - begin["time"])


def describe_failure(event: dict[str, Any]) -> str:
    """Return a sentence for a failure event."""
    if event["event"] == "hang":
        return f"worker {event['rank']} made no progress for {event['seconds']:g} s"
    reasons = {rank: LOST if "by peer" in reason else reason for rank, reason in event["workers"].items()}
    causes = {rank: reason for rank, reason in reasons.items() if reason != LOST} or reasons  # the others are effects
    return "; ".join(f"worker {rank}: {reason}" for rank, reason in causes.items())


@dataclass(frozen=True)
class Cost:
    """Resources that a training used, over all of its attempts."""

    cpu_seconds: float
    """Reserved CPU time of its workers: cores x seconds."""
    gpu_seconds: float
    used_cpu_seconds: float
    """The part of `cpu_seconds` that was spent computing."""
    tokens: int
    """Tokens read in steps that count."""
    joules: float | None
    """Energy of the whole machines and GPUs; None if it can't be read."""
    money: float | None
    """Cost in `currency`; None without a price."""
    currency: str

    def metrics(self) -> dict[str, float]:
        """Return the known figures for MLflow and the artifact's manifest."""
        figures: dict[str, float | None] = {
            "cpu_seconds": round(self.cpu_seconds, 1),
            "gpu_seconds": round(self.gpu_seconds, 1),
            "used_cpu_seconds": round(self.used_cpu_seconds, 1),
            "tokens": self.tokens,
            "joules": self.joules,
            "cost": self.money,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def __str__(self) -> str:
        """Return the cost as one line of text."""
        gpus = f"{self.gpu_seconds:,.0f} GPU seconds and " if self.gpu_seconds else ""
        energy = "energy can't be read here" if self.joules is None else f"{self.joules / 3600:,.1f} Wh"
        money = "" if self.money is None else f", {self.money:,.4g} {self.currency}"
        return (
            f"{gpus}{self.cpu_seconds:,.0f} CPU seconds reserved, {self.used_cpu_seconds:,.0f} used, "
            f"{self.tokens:,} tokens, {energy}{money}"
        )


def cost(usage: Iterable[Mapping[str, Any]], journal: Iterable[Mapping[str, Any]], budget: BudgetConfig) -> Cost:
    """Return the cost of a training, from the samples of its processes (`cluster.training.usage`) and its journal."""
    samples = sorted(usage, key=lambda s: (s["who"], s["pid"], s["time"]))
    cpu = gpu = used = 0.0
    energy: list[float] = []
    for _, group in groupby(samples, key=lambda s: (s["who"], s["pid"])):
        own = list(group)
        seconds = own[-1]["time"] - own[0]["time"]
        cpu += own[0]["cpus"] * seconds
        gpu += own[0]["gpus"] * seconds
        if own[0]["cpus"]:
            used += own[-1]["cpu_seconds"] - own[0]["cpu_seconds"]
        energy += rises(own, "gpu_joules")
    by_node = sorted((s for s in samples if s["cpus"]), key=lambda s: (s["node"], s["time"]))
    for _, group in groupby(by_node, key=lambda s: s["node"]):
        energy += rises(list(group), "machine_joules")
    tokens = sum(int(r.get("tokens", 0)) for r in journal)
    money = budget.price(cpu, gpu) if budget.priced else None
    return Cost(cpu, gpu, used, tokens, sum(energy) if energy else None, money, budget.currency)


def rises(samples: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return the increases of a counter between samples; 0 if the counter was reset."""
    values = [s[name] for s in samples if name in s]
    return [max(0.0, b - a) for a, b in pairwise(values)]


def expected(past: Sequence[Mapping[str, Any]], samples: int | None, size: float = 1.0) -> dict[str, float]:
    """Return what making an artifact is expected to take, from the figures of past ones of its kind, newest first.

    A training, which has `steps`, takes its start and, for each token, the time of the past one, `size` times as long
    for a model of as many times the arithmetic. `samples` is steps x batch x context of the training to come, and
    `samples` of a past one says which share of that were tokens. Energy and cost grow alike. All else takes what it
    took at the median of the last five. Returns {} if nothing is known.
    """
    past = past[:5]
    if not past:
        return {}
    last = past[0]
    if samples is None or "tokens_per_second" not in last:
        seconds = sorted(info["seconds"] for info in past)
        return {"seconds": seconds[len(seconds) // 2]}
    tokens = samples * min(1.0, last["tokens"] / last["samples"])
    computing = last["tokens"] / last["tokens_per_second"]
    more = tokens / last["tokens"] * size
    figures = {"seconds": max(0.0, last["seconds"] - computing) + computing * more, "tokens": tokens}
    return figures | {name: last[name] * more for name in ("joules", "cost") if name in last}
