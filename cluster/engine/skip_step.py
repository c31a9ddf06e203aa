"""An optimizer step that is skipped, on all ranks alike and at every ZeRO stage, where the gradient norm is too large.

DeepSpeed skips a step whose gradient norm is not finite, but it does not check the norm at every stage. `SkipStep`
makes it check everywhere, and reports a norm above the limit to it as not finite.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

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
