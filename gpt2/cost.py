"""What a training took: reserved and used seconds, tokens, energy where it can be read, money at a given price."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median
from typing import Any

from pydantic import Field, model_validator

from gpt2.config import Settings


class BudgetConfig(Settings):
    """What trainings may take in one run, and what their time costs."""

    max_seconds: float | None = Field(None, gt=0)
    """Seconds that the trainings of one run may last, added up. Then they save a checkpoint and stop."""
    max_cost: float | None = Field(None, gt=0)
    """Money, at the prices below, that the trainings of one run may cost. Then they save a checkpoint and stop."""
    price_per_cpu_hour: float = Field(0, ge=0)
    """Price of an hour of a reserved CPU core."""
    price_per_gpu_hour: float = Field(0, ge=0)
    """Price of an hour of a reserved GPU."""
    currency: str = Field("EUR", min_length=1, max_length=8)
    """The unit of prices and costs."""

    @model_validator(mode="after")
    def _cost_needs_a_price(self):
        if self.max_cost is not None and not self.price_per_cpu_hour and not self.price_per_gpu_hour:
            raise ValueError(f"max_cost={self.max_cost:g} needs a price; set price_per_cpu_hour or price_per_gpu_hour")
        return self

    def price(self, cpu_seconds: float, gpu_seconds: float) -> float:
        """The price of reserved core seconds and GPU seconds."""
        return (cpu_seconds * self.price_per_cpu_hour + gpu_seconds * self.price_per_gpu_hour) / 3600

    @property
    def priced(self) -> bool:
        return self.price_per_cpu_hour > 0 or self.price_per_gpu_hour > 0


@dataclass(frozen=True)
class Cost:
    """What a training took, of all its attempts."""

    cpu_seconds: float
    """Reserved for its workers: cores x time."""
    gpu_seconds: float
    used_cpu_seconds: float
    """Of them, computed."""
    tokens: int
    """Read in steps that count."""
    joules: float | None
    """Of the whole machines and GPUs, None where it can't be read."""
    money: float | None
    """None without a price."""
    currency: str

    def metrics(self) -> dict[str, float]:
        """For MLflow and the artifact's manifest."""
        found: dict[str, float | None] = {
            "cpu_seconds": round(self.cpu_seconds, 1),
            "gpu_seconds": round(self.gpu_seconds, 1),
            "used_cpu_seconds": round(self.used_cpu_seconds, 1),
            "tokens": self.tokens,
            "joules": self.joules,
            "cost": self.money,
        }
        return {name: value for name, value in found.items() if value is not None}

    def __str__(self) -> str:
        """In a line."""
        gpus = f"{self.gpu_seconds:,.0f} GPU seconds and " if self.gpu_seconds else ""
        energy = "energy can't be read here" if self.joules is None else f"{self.joules / 3600:,.1f} Wh"
        money = "" if self.money is None else f", {self.money:,.4g} {self.currency}"
        return (
            f"{gpus}{self.cpu_seconds:,.0f} CPU seconds reserved, {self.used_cpu_seconds:,.0f} used, "
            f"{self.tokens:,} tokens, {energy}{money}"
        )


def cost(usage: Iterable[Mapping[str, Any]], journal: Iterable[Mapping[str, Any]], budget: BudgetConfig) -> Cost:
    """The cost of a training from the samples of its processes (`cluster.usage`) and its journal."""
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
    """By how much a counter rose between samples; where it began again, nothing."""
    values = [s[name] for s in samples if name in s]
    return [max(0.0, b - a) for a, b in pairwise(values)]


def of_prediction(predictor: Any, module: Any, example: Sequence[Any], tries: int = 11) -> dict[str, float]:
    """What a model's use costs: its `parameters`, and `latency_ms`, the median time of an answer to one input."""
    taken = []
    for _ in range(tries):
        began = time.perf_counter()
        predictor.predict(example, {})
        taken.append(time.perf_counter() - began)
    parameters = sum(p.numel() for p in module.parameters())
    return {"parameters": parameters, "latency_ms": round(1000 * median(taken), 3)}
