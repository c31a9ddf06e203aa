"""The training loop on the plain engine: samples once and only once through kills, bad steps, going back, stopping."""

import json
import math
import random
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from gpt2.training.config import GuardConfig, OptimizerConfig, TrainConfig
from gpt2.training.engine import TorchEngine
from gpt2.training.guard import GaveUp, Preempted
from gpt2.training.journal import EVENTS, JOURNAL, read_journal
from gpt2.training.loop import fit


class Line(nn.Module):
    """A line through points; a sample marked bad makes its gradient NaN."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Linear(4, 1)

    def forward(self, x, bad):
        loss = (self.weight(x).squeeze(-1) - x.sum(-1)).square().mean()
        return loss * torch.where(bad.any(), math.nan, 1.0)


class Points:
    """Made-up samples that follow from their index; tells who was read."""

    def __init__(self, count: int, bad=(), read=None):
        self.count, self.bad, self.read = count, set(bad), read

    def __len__(self):
        return self.count

    def batch(self, indices, seed):
        if self.read is not None:
            self.read(indices)
        rows = [torch.randn(4, generator=torch.Generator().manual_seed(int(i))) for i in indices]
        return {"x": torch.stack(rows), "bad": torch.tensor([int(i) in self.bad for i in indices])}


class Files:
    """Checkpoints in folders."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.saved: list[tuple[int, str]] = []

    def load(self, engine):
        if not self.saved:
            return 0, {}
        step, state = self.saved[-1]
        engine.load(self.folder / f"checkpoint-{step}")
        return step, json.loads(state)

    def save(self, engine, step, state, loss):
        self.saved.append((step, json.dumps(state)))
        folder = self.folder / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        engine.snapshot()(folder)

    def wait(self):
        pass


def config(**changes) -> TrainConfig:
    settings = {
        "steps": 40,
        "batch_size": 8,
        "micro_batch_size": 4,
        "context": 8,
        "precision": "fp32",
        "optimizer": OptimizerConfig(learning_rate=1e-2, weight_decay=0),
        "log_every": 1,
        "eval_every": 10,
        "checkpoint_every": 5,
        "eval_samples": 4,
        "guard": GuardConfig(max_bad_steps=3, max_rollbacks=2),
    }
    return TrainConfig.model_validate({**settings, **changes})


def run(folder: Path, settings: TrainConfig, points: Points, checkpoints=None, **options):
    folder.mkdir(exist_ok=True)
    engine = TorchEngine(Line(), settings, "cpu")
    fit(engine, points, Points(20), settings, folder, checkpoints or Files(folder), **options)
    return [r["loss"] for r in read_journal(folder / JOURNAL) if "loss" in r], engine.weights()


def events(folder: Path, kind: str) -> list[dict]:
    return [e for e in read_journal(folder / EVENTS) if e["event"] == kind]


def window_of(settings: TrainConfig, count: int, window: int) -> list[int]:
    from gpt2.data.batches import sample_indices

    return sample_indices(window, settings.batch_size, count, settings.seed).tolist()


def test_one_bad_step_is_left_out_and_told(tmp_path):
    settings = config()
    poison = window_of(settings, 400, 7)[:1]
    losses, weights = run(tmp_path, settings, Points(400, bad=poison))
    assert [e["step"] for e in events(tmp_path, "bad step")] == [8]
    records = {r["step"]: r for r in read_journal(tmp_path / JOURNAL) if "learning_rate" in r}
    assert records[7]["skipped_steps"] == 0 and records[8]["skipped_steps"] == records[40]["skipped_steps"] == 1
    assert "loss" not in records[8] and len(losses) == 39
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_several_bad_steps_are_rolled_back_and_their_samples_never_read_again(tmp_path):
    settings = config()
    windows = [12, 13, 14]
    poison = [window_of(settings, 400, w)[0] for w in windows]
    read: Counter = Counter()
    losses, weights = run(tmp_path, settings, Points(400, bad=poison, read=read.update))
    (back,) = events(tmp_path, "rollback")
    assert back["to"] == 10 and back["batches"] == windows
    assert read[poison[0]] == 1  # once, to find it
    steps = [r["step"] for r in read_journal(tmp_path / JOURNAL) if "loss" in r]
    assert steps == list(range(1, 41))
    # The same as a run that knew it from the start.
    (tmp_path / "wise").mkdir()
    (tmp_path / "wise" / "_quarantine.json").write_text(json.dumps(windows))
    expected, same = run(tmp_path / "wise", settings, Points(400, bad=poison))
    assert losses == expected and all(torch.equal(weights[k], same[k]) for k in same)


def test_without_a_checkpoint_it_goes_on_from_before_the_first_bad_step(tmp_path):
    settings = config(checkpoint_every=100)
    poison = [window_of(settings, 400, w)[0] for w in (2, 3, 4)]
    losses, _ = run(tmp_path, settings, Points(400, bad=poison))
    assert events(tmp_path, "rollback")[0]["to"] == 2
    (tmp_path / "wise").mkdir()
    (tmp_path / "wise" / "_quarantine.json").write_text("[2, 3, 4]")
    assert losses == run(tmp_path / "wise", settings, Points(400, bad=poison))[0]


def test_data_that_is_bad_throughout_is_given_up(tmp_path):
    with pytest.raises(GaveUp, match="2 rollbacks did not help; lower the learning rate"):
        run(tmp_path, config(), Points(400, bad=range(100, 400)))


def test_a_stop_saves_first_and_loses_nothing(tmp_path):
    settings, files = config(), Files(tmp_path)
    asked = iter([False] * 6 + [True])
    with pytest.raises(Preempted, match="stopped at step 7 of 40; run the same command"):
        run(tmp_path / "a", settings, Points(400), files, must_stop=lambda: next(asked))
    assert files.saved[-1][0] == 7
    broken = run(tmp_path / "a", settings, Points(400), files)
    whole = run(tmp_path / "b", settings, Points(400))
    assert broken[0] == whole[0] and all(torch.equal(broken[1][k], whole[1][k]) for k in whole[1])


class Killed(Exception):
    pass


class Ranks:
    """`size` engines in threads that add up each other's figures; none computes anything."""

    device = torch.device("cpu")

    def __init__(self, rank: int, size: int, shared: dict):
        self.rank, self.world_size, self.shared, self.calls = rank, size, shared, 0

    def backward(self, batch):
        return torch.zeros(())

    def update(self, rate, limit=math.inf):
        self.shared["barrier"].wait()
        if self.rank == 0:
            self.shared["steps"] += 1
        self.shared["barrier"].wait()
        if self.shared["steps"] == self.shared["dies_at"]:
            raise Killed
        return 1.0

    def loss(self, batch):
        return torch.zeros(())

    def sum(self, values):
        self.shared[self.rank] = values
        self.shared["barrier"].wait()
        total = sum(self.shared[r] for r in range(self.world_size))
        self.shared["barrier"].wait()
        return total


class Ledger:
    """Checkpoints that keep, with each step, the samples read up to it."""

    def __init__(self):
        self.kept: tuple[int, str, list] = (0, "{}", [])
        self.read: list = []
        self.lock = threading.Lock()

    def add(self, indices):
        with self.lock:
            self.read += [int(i) for i in indices]

    def load(self, engine):
        return self.kept[0], json.loads(self.kept[1])

    def save(self, engine, step, state, loss):
        engine.shared["barrier"].wait()
        if engine.rank == 0:
            self.kept = (step, json.dumps(state), list(self.read))
        engine.shared["barrier"].wait()

    def wait(self):
        pass


@pytest.mark.parametrize("seed", [s if s < 10 else pytest.param(s, marks=pytest.mark.chaos) for s in range(100)])
def test_every_sample_exactly_once_through_kills_and_resizes(tmp_path, seed):
    """Two epochs, killed at least three times in each and gone on with other numbers of workers."""
    choice = random.Random(seed)
    count, batch = 8 * choice.randint(12, 20), 8
    steps = 2 * count // batch
    settings = config(
        steps=None, epochs=2, batch_size=batch, micro_batch_size=1, checkpoint_every=choice.randint(1, 4), seed=seed
    )
    ledger = Ledger()
    kills, attempts = 0, 0
    while ledger.kept[0] < steps:
        attempts += 1
        assert attempts < 200
        size = choice.choice([1, 2, 4, 8])
        ledger.read = list(ledger.kept[2])
        lives = choice.randint(1, 4) + settings.checkpoint_every
        shared = {"barrier": threading.Barrier(size), "steps": 0, "dies_at": lives}
        died = []

        def rank(number, size=size, shared=shared, died=died):
            engine = Ranks(number, size, shared)
            try:
                points = Points(count, read=ledger.add)
                fit(engine, points, Points(4), settings, tmp_path, ledger)
            except (Killed, threading.BrokenBarrierError):
                died.append(number)

        threads = [threading.Thread(target=rank, args=(r,)) for r in range(size)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        kills += bool(died)
    assert kills >= 6 or steps < 30
    assert len(ledger.kept[2]) == 2 * count
    assert set(Counter(ledger.kept[2]).values()) == {2}
    first = ledger.kept[2][:count]
    assert len(set(first)) == count
