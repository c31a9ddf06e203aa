"""Every sample once per epoch, in one order at any world size; targets one token further."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.batches import TokenDataset, permute, rank_slices, sample_indices
from gpt2.data.shards import TokenStream


@given(st.integers(1, 3000), st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_permute_is_a_bijection(n, seed, epoch):
    images = permute(np.arange(n), n, seed, epoch)
    assert sorted(images.tolist()) == list(range(n))


def test_permute_mixes_and_depends_on_seed_and_epoch():
    n = 10_000
    a, b, c = permute(np.arange(n), n, 0, 0), permute(np.arange(n), n, 1, 0), permute(np.arange(n), n, 0, 1)
    for x, y in ((a, b), (a, c), (a, np.arange(n))):
        assert (x == y).mean() < 0.01
        assert abs(np.corrcoef(x, y)[0, 1]) < 0.05
    neighbours = np.abs(np.diff(a))
    assert neighbours.mean() == pytest.approx(n / 3, rel=0.05)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_every_sample_once_per_epoch_at_any_world_size(world, micro, accumulation, seed):
    batch = world * micro * accumulation
    n = 5 * batch + 3
    steps = 3 * n // batch + 1
    order = [sample_indices(step, batch, n, seed) for step in range(steps)]
    for step, indices in enumerate(order):
        parts = [rank_slices(indices, rank, world, micro) for rank in range(world)]
        assert all(len(p) == accumulation for p in parts)
        read = np.concatenate([m for p in parts for m in p])
        assert sorted(read) == sorted(indices), step
    stream = np.concatenate(order)
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_lengths_put_like_with_like():
    lengths = np.array([5, 90, 7, 80, 6, 85, 8, 95])
    parts = rank_slices(np.arange(8), 0, 1, 4, lengths)
    assert [sorted(p.tolist()) for p in parts] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="batch_size=10 is not divisible by micro_batch_size=2 x num_workers=2"):
        rank_slices(np.arange(10), 0, 2, 2)


def test_samples_are_consecutive_and_targets_one_further(tmp_path):
    whole = np.random.default_rng(0).integers(0, 60_000, 38).astype("<u2")
    whole.tofile(tmp_path / "a.bin")
    data = TokenDataset(TokenStream([tmp_path / "a.bin"], "uint16"), 5)
    assert len(data) == 7
    batch = data.batch([0, 6], 0)
    assert batch["ids"].tolist() == [whole[0:5].tolist(), whole[30:35].tolist()]
    assert batch["targets"].tolist() == [whole[1:6].tolist(), whole[31:36].tolist()]
