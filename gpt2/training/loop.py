"""The one training loop, over any engine, for pretraining and every task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from gpt2.data.batches import Dataset, rank_slices, sample_indices
from gpt2.store.artifact import write_atomically
from gpt2.training.config import TrainConfig
from gpt2.training.engine import Engine
from gpt2.training.guard import GaveUp, Guard, Preempted
from gpt2.training.journal import JOURNAL, Events, Journal, read_journal
from gpt2.training.optimizer import learning_rate

QUARANTINE = "_quarantine.json"
"""Windows of the token stream that training does not read again."""


class Checkpointer(Protocol):
    """Keeps the loop's state. The one for production is `cluster.checkpoints.checkpointer.Checkpointer`."""

    def load(self, engine: Engine) -> tuple[int, dict[str, Any]]:
        """Restore the last good checkpoint into the engine; return its step and the saved state, or (0, {}).

        (0, {}) means that there is no checkpoint.
        """
        ...

    def save(self, engine: Engine, step: int, state: dict[str, Any], loss: float | None) -> None:
        """Begin to save the engine's state after `step` steps, with the loop's own state (JSON) and the validation
        loss."""
        ...

    def wait(self) -> None:
        """Wait until all saves that have begun are complete."""
        ...


class NoCheckpoints:
    """A checkpointer that saves nothing."""

    def load(self, engine: Engine) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def save(self, engine: Engine, step: int, state: dict[str, Any], loss: float | None) -> None:
        pass

    def wait(self) -> None:
        pass


def fit(
    engine: Engine,
    training: Dataset,
    validation: Dataset,
    config: TrainConfig,
    folder: Path,
    checkpoints: Checkpointer | None = None,
    flops_per_token: int = 0,
    peak_flops: float = 0.0,
    must_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train to the end, from the last checkpoint if there is one; return the last evaluation.

    `folder` gets the journal and the events. `peak_flops` (FLOP/s, of all ranks) turns throughput into a share of the
    hardware's peak. `must_stop` is called after each step: if it is true on any rank, all ranks save and raise
    `Preempted`.

    The samples of a step depend on the seed, the step and the quarantine alone. So a resumed run reads the same samples
    as an unbroken one, at any world size. `GaveUp` if too many steps had bad gradients.
    """
    checkpoints = checkpoints or NoCheckpoints()
    total = config.total_steps(len(training))
    events = Events(folder if engine.rank == 0 else None)
    begun = time.time()
    step, state = checkpoints.load(engine)
    if step > total:
        raise GaveUp(f"the checkpoint is of step {step}, but training ends at step {total}; set more steps")
    guard = Guard(config.guard, state)
    guard.quarantined |= kept_quarantine(folder)
    earlier = read_journal(folder / JOURNAL)
    reached = max((r["step"] for r in earlier), default=0)
    latest = max((r["time"] for r in earlier if "time" in r), default=None)
    seconds = round(time.time() - begun, 3)
    facts = {"world_size": engine.world_size, "reached": reached, "last": latest, "load_seconds": seconds}
    events.tell("begin", step=step, total=total, **facts)
    journal = Journal(folder / JOURNAL, step) if engine.rank == 0 else None
    pace = Pace(engine, total, step, flops_per_token, peak_flops)
    result: dict[str, float] = {}
    first = step
    if step >= total:
        result = evaluate(engine, validation, config)
    while step < total:
        rate = learning_rate(step, total, config.optimizer)
        window = guard.window(step)
        loss, tokens = accumulate(engine, training, config, window)
        norm = engine.update(rate, guard.limit)
        good = guard.judge(norm, window)
        if not good:
            events.tell("bad step", step=step + 1, batch=window, norm=str(norm), limit=str(guard.limit))
        if guard.must_go_back:
            step = go_back(engine, checkpoints, guard, events, folder, step)
            if journal:
                journal.rewind(step)
            pace = Pace(engine, total, step, flops_per_token, peak_flops)
            first = step
            continue
        pace.add(tokens)
        step += 1
        last = step == total
        if step % config.log_every == 0 or last or step == first + 1 or not good:
            loss, all_tokens = engine.sum(torch.tensor([loss / engine.world_size, pace.tokens])).tolist()
            record = {"step": step, "loss": loss, "learning_rate": rate, "grad_norm": norm}
            record |= pace.figures(step, all_tokens)
            if journal:
                journal.write({**record, "skipped_steps": guard.skipped})
        if step % config.eval_every == 0 or last:
            result = evaluate(engine, validation, config)
            if journal:
                journal.write({"step": step, **result, "time": time.time()})
        stop = not last and bool(engine.sum(torch.tensor([float(must_stop())])).item())
        if (step % config.checkpoint_every == 0 and not guard.bad) or last or stop:
            evaluated = step % config.eval_every == 0 or last
            checkpoints.save(engine, step, guard.state(), result.get("validation_loss") if evaluated else None)
        if stop:
            checkpoints.wait()
            events.tell("preempted", step=step)
            raise Preempted(f"stopped at step {step} of {total}; run the same command to go on")
    checkpoints.wait()
    events.tell("end", step=step)
    return result


def go_back(engine: Engine, checkpoints: Checkpointer, guard: Guard, events: Events, folder: Path, step: int) -> int:
    """Exclude the samples of the bad steps, return to the last checkpoint, and return the step to resume from.

    Without a checkpoint, resume before the first bad step, as bad steps changed nothing.
    """
    barred = guard.quarantine()
    if engine.rank == 0:
        write_atomically(folder / QUARANTINE, json.dumps(sorted(guard.quarantined)).encode())
    checkpoints.wait()
    to, state = checkpoints.load(engine)
    if state:
        before = Guard(guard.config, state)
        guard.norms = before.norms
    else:
        to = step + 1 - len(barred)
    events.tell("rollback", step=step + 1, to=to, batches=barred)
    return to


def kept_quarantine(folder: Path) -> set[int]:
    """Return the windows that any attempt excluded."""
    path = folder / QUARANTINE
    return set(json.loads(path.read_text())) if path.exists() else set()


def accumulate(engine: Engine, data: Dataset, config: TrainConfig, window: int) -> tuple[float, int]:
    """Run forward and backward over this rank's micro-batches of a window; return the mean loss and the tokens read."""
    own = getattr(data, "sample_indices", None)  # a mixture has its own order
    if own:
        indices = own(window, config.batch_size, config.seed)
    else:
        indices = sample_indices(window, config.batch_size, len(data), config.seed)
    micro_batches = rank_slices(
        indices, engine.rank, engine.world_size, config.micro_batch_size, getattr(data, "lengths", None)
    )
    total, tokens = torch.zeros((), device=engine.device), 0
    for samples in micro_batches:
        # Dropout follows from (seed, window, samples): resuming needs no generator state.
        torch.manual_seed(seed_of(config.seed, window, int(samples[0])))
        batch = data.batch(samples.tolist(), seed_of(config.seed, window))
        tokens += int(batch["lengths"].sum()) if "lengths" in batch else next(iter(batch.values())).numel()
        total += engine.backward(batch)
    return float(total) / len(micro_batches), tokens


def evaluate(engine: Engine, data: Dataset, config: TrainConfig) -> dict[str, float]:
    """Return the mean loss over `eval_samples` samples of the validation split, the same ones each time."""
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
    """Return a 63-bit seed made from integers, equal in all processes."""
    words = np.random.SeedSequence([p % 2**32 for p in parts]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


class Pace:
    """Measures throughput and estimates the time left."""

    def __init__(self, engine: Engine, total: int, done: int, flops_per_token: int, peak_flops: float):
        self.total, self.flops_per_token, self.peak_flops = total, flops_per_token, peak_flops
        self.tokens, self.started, self.previous = 0, time.perf_counter(), done
        self.seconds_per_step: float | None = None

    def add(self, tokens: int) -> None:
        self.tokens += tokens

    def figures(self, step: int, all_tokens: float) -> dict[str, float]:
        """Return figures since the last call, over all ranks: tokens, tokens/s, share of peak, and seconds left
        (smoothed)."""
        now = time.perf_counter()
        elapsed, steps = now - self.started, step - self.previous
        latest = elapsed / max(steps, 1)
        smooth = self.seconds_per_step
        self.seconds_per_step = latest if smooth is None or steps == 1 else 0.7 * smooth + 0.3 * latest
        rate = all_tokens / elapsed
        figures = {
            "tokens": all_tokens,
            "tokens_per_second": rate,
            "seconds_left": self.seconds_per_step * (self.total - step),
        }
        if self.peak_flops:
            figures["peak_share"] = rate * self.flops_per_token / self.peak_flops
        figures["time"] = time.time()
        self.tokens, self.started, self.previous = 0, now, step
        return figures
