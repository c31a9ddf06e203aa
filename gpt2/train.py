"""The one training loop, over any engine, for pretraining and every task."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from gpt2.batches import rank_slices, sample_indices
from gpt2.config import TrainConfig
from gpt2.engine import Engine
from gpt2.journal import Journal
from gpt2.optim import learning_rate
from gpt2.task import Dataset


class Checkpoints(Protocol):
    """Where the loop's state is kept; `cluster.checkpoints` has the one that survives anything."""

    def load(self, engine: Engine) -> int:
        """Bring the engine to the last complete checkpoint; return the steps that it had done, 0 without one."""
        ...

    def save(self, engine: Engine, step: int) -> None:
        """Keep the engine's state after `step` steps."""
        ...


class NoCheckpoints:
    """Keeps nothing."""

    def load(self, engine: Engine) -> int:
        return 0

    def save(self, engine: Engine, step: int) -> None:
        pass


def fit(
    engine: Engine,
    training: Dataset,
    validation: Dataset,
    config: TrainConfig,
    journal_path: Path,
    checkpoints: Checkpoints | None = None,
    flops_per_token: int = 0,
    peak_flops: float = 0.0,
    on_step: Callable[[int], None] = lambda step: None,
) -> dict[str, float]:
    """Train to the end, from the last checkpoint if there is one; return the last evaluation.

    `peak_flops` (FLOP/s, of all ranks) turns throughput into a share of what the hardware can do. The samples of
    a step depend on (seed, step) alone, so a resumed run, at any world size, reads what the unbroken one reads.
    """
    checkpoints = checkpoints or NoCheckpoints()
    total = config.total_steps(len(training))
    done = checkpoints.load(engine)
    journal = Journal(journal_path, done) if engine.rank == 0 else None
    pace = Pace(engine, total, done, flops_per_token, peak_flops)
    result: dict[str, float] = {}
    if done >= total:
        result = evaluate(engine, validation, config)
    for step in range(done, total):
        rate = learning_rate(step, total, config.optimizer)
        loss, tokens = accumulate(engine, training, config, step)
        norm = engine.update(rate)
        pace.add(tokens)
        number = step + 1
        last = number == total
        if number % config.log_every == 0 or last or step == done:
            loss, all_tokens = engine.sum(torch.tensor([loss / engine.world_size, pace.tokens])).tolist()
            record = {"step": number, "loss": loss, "learning_rate": rate, "grad_norm": norm}
            record |= pace.figures(number, all_tokens)
            if journal:
                journal.write(record)
        if number % config.eval_every == 0 or last:
            result = evaluate(engine, validation, config)
            if journal:
                journal.write({"step": number, **result})
        if number % config.checkpoint_every == 0 or last:
            checkpoints.save(engine, number)
        on_step(number)
    return result


def accumulate(engine: Engine, data: Dataset, config: TrainConfig, step: int) -> tuple[float, int]:
    """Forward and backward over this rank's micro-batches of a step; returns mean loss and tokens read."""
    indices = sample_indices(step, config.batch_size, len(data), config.seed)
    micro_batches = rank_slices(
        indices, engine.rank, engine.world_size, config.micro_batch_size, getattr(data, "lengths", None)
    )
    total, tokens = torch.zeros((), device=engine.device), 0
    for samples in micro_batches:
        # Dropout follows from (seed, step, samples): resuming needs no generator state.
        torch.manual_seed(seed_of(config.seed, step, int(samples[0])))
        batch = data.batch(samples.tolist(), seed_of(config.seed, step))
        tokens += next(iter(batch.values())).numel()
        total += engine.backward(batch)
    return float(total) / len(micro_batches), tokens


def evaluate(engine: Engine, data: Dataset, config: TrainConfig) -> dict[str, float]:
    """Mean loss over the same `eval_samples` samples of the validation split each time."""
    count = min(config.eval_samples, len(data))
    chosen = np.linspace(0, len(data) - 1, count).astype(np.int64)
    total = torch.zeros(2, device=engine.device)
    # Every rank runs the same number of forward passes: ZeRO-3 gathers parameters in each.
    size = config.micro_batch_size
    for start in range(0, count, size * engine.world_size):
        offset = start + engine.rank * size
        samples = chosen[offset : offset + size]
        weight = len(samples)
        batch = data.batch((samples if weight else chosen[:1]).tolist(), seed_of(config.seed, -1))
        total += torch.stack([engine.loss(batch).float() * weight, torch.tensor(float(weight), device=engine.device)])
    loss, weight = engine.sum(total).tolist()
    return {"validation_loss": loss / weight}


def seed_of(*parts: int) -> int:
    """A 63-bit seed from integers, independent of the process."""
    words = np.random.SeedSequence([p % 2**32 for p in parts]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


class Pace:
    """Throughput and time left."""

    def __init__(self, engine: Engine, total: int, done: int, flops_per_token: int, peak_flops: float):
        self.total, self.flops_per_token, self.peak_flops = total, flops_per_token, peak_flops
        self.tokens, self.started, self.previous = 0, time.perf_counter(), done
        self.seconds_per_step: float | None = None

    def add(self, tokens: int) -> None:
        self.tokens += tokens

    def figures(self, step: int, all_tokens: float) -> dict[str, float]:
        """Since the last call, over all ranks: tokens/s, share of peak, and seconds left (smoothed)."""
        now = time.perf_counter()
        elapsed, steps = now - self.started, step - self.previous
        latest = elapsed / max(steps, 1)
        smooth = self.seconds_per_step
        self.seconds_per_step = latest if smooth is None or steps == 1 else 0.7 * smooth + 0.3 * latest
        rate = all_tokens / elapsed
        figures = {"tokens_per_second": rate, "seconds_left": self.seconds_per_step * (self.total - step)}
        if self.peak_flops:
            figures["peak_share"] = rate * self.flops_per_token / self.peak_flops
        figures["time"] = time.time()
        self.tokens, self.started, self.previous = 0, now, step
        return figures
