"""What guards a step of DeepSpeed's engine, on all ranks alike: a bad step is skipped, corruption found before it.

DeepSpeed skips a step whose gradient norm is not finite, but it does not check the norm at every stage. `SkipStep`
makes it check everywhere, and reports a norm above the limit to it as not finite.

`Replicas` detects silent data corruption: before each step, the ranks compare checksums of their copies of the
parameters. Each rank sums the bits of its copy, piece by piece, and those of its own piece as its fp32 masters give it.
A copy that differs from the sum of the piece's owner is wrong, so the worker is known even among two. The sums need one
gather of a few integers.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from cluster.engine.fragments import Fragments

INVALID = torch.tensor(math.inf)


class SkipStep:
    """Steps a DeepSpeed engine's optimizer, and skips the step if the gradient norm is above a limit."""

    def __init__(self, engine: Any):
        self.engine, self.optimizer = engine, engine.optimizer
        self.limit, self.norm = math.inf, 0.0
        stage = engine.zero_optimization_stage()
        self.plain = stage == 0 and not hasattr(self.optimizer, "overflow_checker")
        if stage in (1, 2):
            self._measure = self.optimizer.scaled_global_norm
            self.optimizer.scaled_global_norm = self._scaled_norm
            if not engine.fp16_enabled():
                # The norm shows an overflow, so DeepSpeed need not scan every gradient before.
                self.optimizer.check_grad_overflow = True
                self.optimizer.check_overflow = lambda **_: None
        elif stage == 3:
            self._groups = self.optimizer._get_norm_groups
            self.optimizer._get_norm_groups = self._norm_groups
        elif not self.plain:
            self._overflow = self.optimizer.overflow_checker.has_overflow
            self.optimizer.overflow_checker.has_overflow = self._has_overflow

    def step(self, limit: float) -> float:
        """Apply the gradient if its norm is finite and at most `limit`; return the norm before clipping.

        Returns 0 if the loss scale of fp16 was too high.
        """
        self.limit, self.norm = limit, math.inf
        if self.plain:
            self.norm = float(self._total_norm())
            if not self._applicable(self.norm):
                self.optimizer.zero_grad(set_to_none=False)  # or the engine would clip them
                step, self.optimizer.step = self.optimizer.step, lambda *_, **__: None
                try:
                    self.engine.step()
                finally:
                    self.optimizer.step = step
                return self.norm
        scale = self._scale()
        self.engine.step()
        if scale > 1 and not math.isfinite(self.norm):
            return 0.0  # fp16 only: DeepSpeed has lowered the loss scale, which may be the only fault
        return self.norm

    def _scale(self) -> float:
        return float(getattr(self.optimizer, "loss_scale", 1.0))

    def _applicable(self, norm: float) -> bool:
        return math.isfinite(norm) and norm <= self.limit

    def _unscaled(self, norm: Any) -> float:
        value = float(norm) / self._scale()
        return value if value >= 0 else math.nan  # DeepSpeed marks a norm that is not finite so

    def _scaled_norm(self, *arguments: Any, **options: Any) -> Tensor:
        norm = self._measure(*arguments, **options)
        self.norm = self._unscaled(norm)
        return norm if self._applicable(self.norm) else INVALID.to(norm.device)

    def _norm_groups(self) -> list[Tensor]:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        groups = self._groups()
        self.norm = self._unscaled(combine_grad_norm_groups(groups))
        return groups if self._applicable(self.norm) else [INVALID.to(self.engine.device)]

    def _has_overflow(self, parameters: Any, *arguments: Any, **options: Any) -> bool:
        self.norm = float(self._total_norm()) / self._scale()
        return not self._applicable(self.norm) or self._overflow(parameters, *arguments, **options)

    def _total_norm(self) -> Tensor:
        """Return the norm of averaged gradients, of which every rank has all."""
        gradients = [p.grad.float() for p in self.engine.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


class CorruptedReplica(RuntimeError):
    """Raised where a worker's parameters differ from those of the others: bad memory, or a fault in a kernel."""


class Replicas:
    """Verifies the parameters of a DeepSpeed engine at ZeRO 0, 1 and 2. At ZeRO 3 only small parameters have copies."""

    def __init__(self, engine: Any):
        self.engine, self.wrapper = engine, engine.optimizer
        self.stage: int = engine.zero_optimization_stage()
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def verify(self) -> None:
        """Raise `CorruptedReplica` on every rank, with the workers' ranks, if copies differ."""
        own = torch.stack(self._sums())
        everyone = [torch.empty_like(own) for _ in range(self.world_size)]
        torch.distributed.all_gather(everyone, own)
        wrong = self._wrong(torch.stack(everyone).cpu())
        if wrong:
            names = ", ".join(str(rank) for rank in wrong)
            raise CorruptedReplica(
                f"worker {names}: parameters differ from the others' (silent corruption); check the machine"
            )

    def _sums(self) -> list[Tensor]:
        """Return this rank's sums: one per piece of its copy, then one of its own piece as its masters give it."""
        if self.stage in (1, 2):
            pieces = self.wrapper.parallel_partitioned_bit16_groups  # groups of parameters x ranks
            masters = self.wrapper.single_partition_of_fp32_groups
            copies = [sum_bits([group[r] for group in pieces]) for r in range(self.world_size)]
            own = [m.data.to(group[self.rank].dtype) for m, group in zip(masters, pieces, strict=True)]
            return [*copies, sum_bits([o.to(self.engine.device) for o in own])]
        if self.stage == 3:
            flats = [f for f in self.wrapper.fp16_partitioned_groups_flat if f is not None]
            masters = self.wrapper.fp32_partitioned_groups_flat
            own = [m.data.to(f.dtype).to(f.device) for m, f in zip(masters, flats, strict=False)]
            return [sum_bits(flats), sum_bits(own)]
        parameters = list(self.engine.module.parameters())
        masters = Fragments(self.engine).masters()
        return [sum_bits(parameters), sum_bits([masters.get(p, p).data.to(p.dtype) for p in parameters])]

    def _wrong(self, sums: Tensor) -> list[int]:
        """Return the ranks whose copies are wrong, from all sums (ranks x sums)."""
        if self.stage in (1, 2):
            truth = sums[:, -1]
            return [r for r in range(self.world_size) if not torch.equal(sums[r, :-1], truth)]
        disagree = [r for r in range(self.world_size) if sums[r, 0] != sums[r, 1]]
        if disagree or self.stage == 3:
            return disagree
        values = Counter(sums[:, 0].tolist())
        usual, count = values.most_common(1)[0]
        if len(values) > 1 and count * 2 <= self.world_size:
            return list(range(self.world_size))  # no majority: it is one of these
        return [r for r in range(self.world_size) if sums[r, 0] != usual]


def sum_bits(tensors: list[Tensor]) -> Tensor:
    """Return the sum of the tensors' bits as integers mod 2^64, a scalar int64. A single flipped bit always changes
    it."""
    sums = []
    for tensor in tensors:
        values = tensor.detach().flatten()
        whole = 8 // values.element_size()
        if values.storage_offset() % whole:  # a view of eight bytes must be aligned
            values = values.clone()
        body = len(values) // whole * whole
        sums.append(values[:body].view(torch.int64).sum())  # eight bytes at a time: a cast would cost more
        sums.append(values[body:].view({2: torch.int16, 4: torch.int32}[values.element_size()]).sum())
    return torch.stack(sums).sum()
