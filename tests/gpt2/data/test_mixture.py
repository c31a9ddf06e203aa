"""A refresh's order: every new sample so often and no more, old ones at their share, alike at any world size."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.batches import Mixture, TokenDataset, rank_slices
from gpt2.data.shards import TokenStream
from gpt2.data.tokenizer import Tokenizer
from gpt2.training.config import OptimizerConfig, RefreshConfig, TrainConfig
from gpt2.training.engine import TorchEngine
from gpt2.training.guard import Preempted
from gpt2.training.journal import JOURNAL, read_journal
from gpt2.training.loop import fit
from gpt2.training_job import TokenFiles, TrainingJob, build


class Numbers:
    """A dataset of so many samples, each its own number."""

    def __init__(self, count: int, start: int = 0):
        self.count, self.start = count, start

    def __len__(self):
        return self.count

    def batch(self, indices, seed):
        return {"x": torch.tensor([self.start + i for i in indices])}


SIZES = st.integers(1, 80)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 3), st.floats(0, 0.95), st.integers(1, 24), st.integers(0, 2**31 - 1))
def test_every_new_sample_exactly_so_often_and_old_ones_at_their_share(new, old, epochs, share, batch, seed):
    steps = RefreshConfig(replay_share=share, epochs=epochs).steps(new, batch)
    mixture = Mixture(Numbers(new), Numbers(old), epochs, steps * batch)
    assert len(mixture) == steps * batch
    stream = np.concatenate([mixture.sample_indices(step, batch, seed) for step in range(steps)])
    counts = Counter(stream.tolist())
    assert {i: counts[i] for i in range(new)} == dict.fromkeys(range(new), epochs)
    replayed = stream[stream >= new] - new
    # The share, and no more of it than what fills the last batch.
    assert share * len(stream) - 1e-6 <= len(replayed) < share * len(stream) + batch
    passes, rest = divmod(len(replayed), old)
    assert set(Counter(replayed.tolist()).values()) <= {passes, passes + 1}
    assert sum(c == passes + 1 for c in Counter(replayed.tolist()).values()) == rest
    # Evenly: any first p samples have their share to within one.
    new_so_far = np.cumsum(stream < new)
    even = np.arange(1, len(stream) + 1) * (epochs * new) / len(stream)
    assert np.abs(new_so_far - even).max() <= 1
    # A pass over the new text ends before the next begins.
    firsts = stream[stream < new]
    assert all(sorted(firsts[e * new : (e + 1) * new].tolist()) == list(range(new)) for e in range(epochs))


@settings(max_examples=50, deadline=None)
@given(SIZES, SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_the_ranks_of_any_world_size_read_the_step_together(new, old, world, micro, accumulation, step):
    batch = world * micro * accumulation
    steps = RefreshConfig().steps(new, batch)
    mixture = Mixture(Numbers(new), Numbers(old), 1, steps * batch)
    whole = mixture.sample_indices(step, batch, 7)  # also beyond the end, where barred windows lead
    assert ((whole >= 0) & (whole < new + old)).all()
    read = [m for rank in range(world) for m in rank_slices(whole, rank, world, micro)]
    assert sorted(np.concatenate(read)) == sorted(whole)
    again = Mixture(Numbers(new), Numbers(old), 1, steps * batch)  # no state: another process at that step
    assert again.sample_indices(step, batch, 7).tolist() == whole.tolist()


def test_positions_of_a_large_training_are_exact():
    """position x new samples is beyond 64 bits."""
    n = 6_000_000_000
    mixture = Mixture(Numbers(n), Numbers(9 * n), 1, 10 * n)
    last = mixture.sample_indices(10 * n // 100 - 1, 100, 0)
    assert (last < n).sum() == 10
    assert len(set(last.tolist())) == 100


def test_old_text_is_replayed_in_another_order_than_it_was_learned_in():
    from gpt2.data.batches import sample_indices

    mixture = Mixture(Numbers(500), Numbers(500), 1, 1000)
    replayed = [i - 500 for step in range(10) for i in mixture.sample_indices(step, 100, 3) if i >= 500]
    learned = np.concatenate([sample_indices(step, 100, 500, 3) for step in range(5)])
    assert (np.array(replayed) == learned).mean() < 0.05


def test_a_batch_has_the_samples_of_both_in_order():
    mixture = Mixture(Numbers(3), Numbers(5, start=100), 1, 8)
    assert mixture.batch([0, 3, 2, 7], 0)["x"].tolist() == [0, 100, 2, 104]


def test_what_can_not_be_mixed_is_refused():
    with pytest.raises(ValueError, match="2 passes over 5 new samples are more than the training's 9"):
        Mixture(Numbers(5), Numbers(5), 2, 9)
    with pytest.raises(ValueError, match="0 new and 5 old samples"):
        Mixture(Numbers(0), Numbers(5), 1, 9)


@given(SIZES, st.floats(0, 0.95), st.integers(1, 64), st.floats(0, 1))
def test_the_warm_up_fits_however_little_is_new(new, share, batch, warmup):
    pretrain = TrainConfig(steps=100, batch_size=batch, micro_batch_size=1, optimizer={"warmup_steps": 50})
    refresh = RefreshConfig(replay_share=share, warmup_share=warmup)
    train = refresh.training(pretrain, new)
    assert train.total_steps(train.steps * batch) == train.steps
    assert train.optimizer.learning_rate == pretrain.optimizer.learning_rate / 2
    assert RefreshConfig(learning_rate=0.01).training(pretrain, new).optimizer.learning_rate == 0.01


def job_in(tmp_path: Path) -> TrainingJob:
    """A tiny pretrained model and a job that goes on from it with new tokens."""
    generator = np.random.default_rng(0)
    Tokenizer.train(["some words to learn from, and some more words"], 280).save(tmp_path / "tokenizer")
    files = {"train": [], "validation": []}
    for part, count in (("old", 3000), ("more", 2000), ("new", 1500)):
        for split, names in files.items():
            path = tmp_path / f"{part}-{split}.bin"
            generator.integers(0, 280, count if split == "train" else 200).astype("<u2").tofile(path)
            names.append(str(path))
    common = {"batch_size": 8, "micro_batch_size": 4, "context": 16, "precision": "fp32", "checkpoint_every": 4}
    common |= {"eval_every": 100, "eval_samples": 4, "log_every": 1}
    pretrain = TrainConfig(steps=2, optimizer=OptimizerConfig(learning_rate=1e-2), **common)
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 280}
    first = TrainingJob(
        name="base", train=pretrain, tokenizer=str(tmp_path / "tokenizer"), output="", model=model,
        tokens=TokenFiles(train=files["train"][:1], validation=files["validation"][:1], dtype="uint16"),
    )  # fmt: skip
    build(first).save(tmp_path / "model")
    train = RefreshConfig(epochs=2).training(pretrain, (1500 - 1) // 16)
    tokens = TokenFiles(**files, dtype="uint16", replayed=2)
    return TrainingJob.model_validate(
        {**first.model_dump(), "train": train, "tokens": tokens, "base": str(tmp_path / "model"), "new_epochs": 2}
    )


@pytest.fixture
def refresh_job(tmp_path):
    return job_in(tmp_path)


def test_a_refresh_begins_with_the_parent_and_reads_all_of_both(refresh_job, tmp_path):
    parts = build(refresh_job)
    assert isinstance(parts.training, Mixture)
    new = (1500 - 1) // 16
    assert (len(parts.training.new), len(parts.training.old), parts.training.new_total) == (new, 4999 // 16, 2 * new)
    whole = TokenStream([tmp_path / f"{p}-validation.bin" for p in ("old", "more", "new")], "uint16")
    assert isinstance(parts.validation, TokenDataset) and len(parts.validation.stream) == len(whole)
    from gpt2 import weights

    parent = weights.load(tmp_path / "model").state_dict()
    assert all(torch.equal(parent[k], v) for k, v in parts.gpt2.state_dict().items())


def test_a_stopped_refresh_goes_on_bitwise(refresh_job, tmp_path):
    class Files:
        """Checkpoints in memory and a folder."""

        def __init__(self, folder):
            self.folder, self.saved = folder, []

        def load(self, engine):
            if not self.saved:
                return 0, {}
            engine.load(self.folder)
            return self.saved[-1][0], json.loads(self.saved[-1][1])

        def save(self, engine, step, state, loss):
            self.saved.append((step, json.dumps(state)))
            engine.snapshot()(self.folder)

        def wait(self):
            pass

    def run(name, files, must_stop=lambda: False):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        parts = build(refresh_job)
        engine = TorchEngine(parts.module, refresh_job.train, "cpu")
        fit(engine, parts.training, parts.validation, refresh_job.train, folder, files, must_stop=must_stop)
        return [r["loss"] for r in read_journal(folder / JOURNAL) if "loss" in r], engine.weights()

    files = Files(tmp_path)
    asked = iter([False] * 9 + [True])
    with pytest.raises(Preempted):
        run("broken", files, lambda: next(asked))
    losses, weights = run("broken", files)
    expected, whole = run("whole", Files(tmp_path))
    assert losses == expected and len(losses) == refresh_job.train.steps > 20
    assert all(torch.equal(weights[k], whole[k]) for k in whole)
