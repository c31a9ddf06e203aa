"""New samples and replayed old ones in one order that follows from the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2.batches import in_turn
from gpt2.task import Dataset

if TYPE_CHECKING:
    from torch import Tensor


OLD = 2**31
"""Added to the seed for the order of old samples, beyond all seeds of settings: not the order of the first training."""


class Mixture:
    """A dataset of `total` samples: every sample of `new` exactly `epochs` times, the rest of them from `old`.

    The new ones lie evenly among the old: the first p samples hold floor(p epochs |new| / total) of them, so each
    batch has its share. Both are read in the order of their own keyed permutation, pass after pass (the old ones
    begin again only where there are too few). Nothing but the position decides, so that it resumes at any step and
    is the same at any world size. Indices below |new| are new samples, those from |new| on old ones.
    """

    def __init__(self, new: Dataset, old: Dataset, epochs: int, total: int):
        """`ValueError` where `total` has no room for the new samples, or one of the two is empty."""
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
        """The (batch_size,) samples of a step, in order, int64."""
        first = step * batch_size
        until = [p * self.new_total // self.total for p in range(first, first + batch_size + 1)]  # exact: Python's ints
        before = np.array(until[:-1], dtype=np.int64)
        is_new, old_before = np.diff(until) > 0, np.arange(first, first + batch_size) - before
        out = np.empty(batch_size, dtype=np.int64)
        out[is_new] = in_turn(before[is_new], len(self.new), seed)
        out[~is_new] = len(self.new) + in_turn(old_before[~is_new], len(self.old), seed + OLD)
        return out

    def batch(self, indices: Sequence[int], seed: int) -> dict[str, Tensor]:
        """The samples as CPU tensors, in the order of `indices`."""
        import torch

        n = len(self.new)
        rows = [self.new.batch([i], seed) if i < n else self.old.batch([i - n], seed) for i in indices]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
