"""The samples that each rank reads at each step: of one dataset, or of new and old text mixed.

A keyed permutation of the sample indices per epoch (a Feistel network with cycle walking, Black and Rogaway 2002)
has no state but (seed, epoch, position): a resume costs nothing, the order is the same at any world size, and every
sample is read exactly once per epoch. A mixture has no other state either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:  # tasks are listed and validated without loading PyTorch
    from torch import Tensor

    from gpt2.data.shards import TokenStream


class Dataset(Protocol):
    """Samples that are read by index. The training loop decides which indices a rank reads at a step."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Return the samples as CPU tensors by name: the keyword arguments of the module's `forward`.

        The first tensor is the model's input. `seed` is the same on all ranks at a step, so randomness drawn from it
        (negatives, for example) is shared.
        """
        ...


ROUNDS = 6


def permute(index: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the images of `index` (values in [0, n)) under the epoch's bijection of [0, n), int64."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(ROUNDS, np.uint64)
    value = np.asarray(index, dtype=np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():  # walk the cycle until the value is in range: fewer than four steps on average
        value = np.where(outside, feistel(value, keys, half, mask), value)
        outside = value >= n
    return value.astype(np.int64)


def feistel(value: np.ndarray, keys: np.ndarray, half: int, mask: np.uint64) -> np.ndarray:
    """Apply a Feistel network: a bijection of [0, 4^half), whatever the round function."""
    shift = np.uint64(half)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return (left << shift) | right


def mix(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finaliser to uint64 values (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample_indices(step: int, batch_size: int, n: int, seed: int) -> np.ndarray:
    """Return the sample indices of a step, (batch_size,) int64: positions from step * batch_size, epoch after epoch."""
    return in_turn(np.arange(step * batch_size, (step + 1) * batch_size), n, seed)


def in_turn(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return the samples at `positions` when `n` samples are read endlessly, each epoch in its own order."""
    epochs, offsets = np.divmod(positions, n)
    out = np.empty(len(positions), dtype=np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        out[here] = permute(offsets[here], n, seed, int(epoch))
    return out


def rank_slices(
    indices: np.ndarray, rank: int, world_size: int, micro_batch_size: int, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return the micro-batches of a rank, each (micro_batch_size,), dealt in turn from the global batch.

    With the samples' `lengths` the batch is first sorted by length, which saves padding. `ValueError` if the batch does
    not divide evenly.
    """
    share = micro_batch_size * world_size
    if len(indices) % share:
        raise ValueError(
            f"batch_size={len(indices)} is not divisible by micro_batch_size={micro_batch_size} x "
            f"num_workers={world_size}; choose a multiple of {share}"
        )
    if lengths is not None:
        indices = indices[np.argsort(lengths[indices], kind="stable")]
    return list(indices.reshape(-1, micro_batch_size)[rank::world_size])


class TokenDataset:
    """Samples of `context` tokens from a stream of documents, each with the tokens that follow."""

    def __init__(self, stream: TokenStream, context: int):
        self.stream, self.context = stream, context

    def __len__(self) -> int:
        return max(0, len(self.stream) - 1) // self.context

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Return `ids` and `targets`, (B, T) int64. Sample i is tokens i T to (i + 1) T; its targets are one token
        further."""
        import torch

        rows = np.stack([self.stream.read(i * self.context, self.context + 1) for i in indices])
        tokens = torch.from_numpy(rows)
        return {"ids": tokens[:, :-1], "targets": tokens[:, 1:]}


OLD = 2**31
"""Added to the seed for the order of old samples. It is larger than any seed in settings, so the order differs from
that of the first training."""


class Mixture:
    """A dataset of `total` samples: every sample of `new` exactly `epochs` times, and samples of `old` for the rest.

    New samples are spread evenly: the first p samples hold floor(p epochs |new| / total) of them, so each batch has its
    share. Each of the two is read in the order of its own keyed permutation, pass after pass. Old samples repeat only
    if there are too few. The order depends on the position alone, so it resumes at any step and is the same at any
    world size. Indices below |new| are new samples, and the others are old ones.
    """

    def __init__(self, new: Dataset, old: Dataset, epochs: int, total: int):
        """Raise `ValueError` if `total` has no room for the new samples, or if `new` or `old` is empty."""
        self.new, self.old, self.total, self.new_total = new, old, total, epochs * len(new)
        if not len(new) or not len(old):
            raise ValueError(f"{len(new)} new and {len(old)} old samples can't be mixed; shorten the context")
        if self.new_total > total:
            raise ValueError(
                f"{epochs} passes over {len(new)} new samples are more than the training's {total}; set more steps"
            )

    def __len__(self) -> int:
        return self.total

    def sample_indices(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        """Return the sample indices of a step, (batch_size,) int64, in order."""
        first = step * batch_size
        until = [p * self.new_total // self.total for p in range(first, first + batch_size + 1)]  # exact integers
        before = np.array(until[:-1], dtype=np.int64)
        is_new, old_before = np.diff(until) > 0, np.arange(first, first + batch_size) - before
        out = np.empty(batch_size, dtype=np.int64)
        out[is_new] = in_turn(before[is_new], len(self.new), seed)
        out[~is_new] = len(self.new) + in_turn(old_before[~is_new], len(self.old), seed + OLD)
        return out

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        """Return the samples as CPU tensors, in the order of `indices`."""
        import torch

        n = len(self.new)
        rows = [self.new.batch([i], seed) if i < n else self.old.batch([i - n], seed) for i in indices]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
