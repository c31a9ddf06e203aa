"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum with all singular values made equal.

For the matrices inside the blocks; AdamW takes the rest. Each update is scaled to the size of AdamW's (Liu et al. 2025,
arXiv:2502.16982), so that one learning rate and one weight decay serve both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt2.peak import quickest

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic; steepest at zero, so that five steps are enough. It ends near 1, not at it."""
ITERATIONS = 5
EPSILON = 1e-7
RMS = 0.2
"""Of an update's entries before the learning rate: what AdamW's usually is (Liu et al. 2025, section 2.2)."""


def orthogonalise(x: Tensor) -> Tensor:
    """(n, rows, columns) to bf16 with the same singular vectors and singular values near 1.

    By Newton-Schulz iteration in bf16; on a CPU that only emulates it in fp32, several times as fast there. Those above
    1/200 of a matrix's norm end between 0.68 and 1.16.
    """
    a, b, c = COEFFICIENTS
    precision = quickest() if x.device.type == "cpu" else torch.bfloat16
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = (y / y.float().square().sum((-2, -1), keepdim=True).sqrt().clamp_min(EPSILON)).to(precision)
    for _ in range(ITERATIONS):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).bfloat16()


def direction(momentum: Tensor, parts: int = 1) -> Tensor:
    """The update, in bf16, of a (rows, columns) matrix that is `parts` matrices one above another."""
    stacked = momentum.unflatten(0, (parts, -1))
    return orthogonalise(stacked).flatten(0, 1) * (RMS * math.sqrt(max(stacked.shape[-2:])))


def directions(parameters: list[Tensor], momenta: list[Tensor], parts: int) -> list[Tensor]:
    """Each parameter's update from its momentum, where both are whole."""
    return [direction(momentum, parts) for momentum in momenta]


class Muon(torch.optim.AdamW):
    """Muon on the groups with `parts` above 0, of matrices that are so many one above another; AdamW on the others.

    Its state is `exp_avg`, the momentum. `directions` can be replaced by one that puts matrices together of which
    this process steps on pieces only: (parameters, bf16 momenta of the same shapes, parts) to updates of those shapes.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, **adamw: Any):
        super().__init__([{"parts": 0, "momentum": momentum, **group} for group in groups], **adamw)
        self.directions: Callable[[list[Tensor], list[Tensor], int], list[Tensor]] = directions

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["parts"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["parts"]:
                parameters = [p for p in group["params"] if p.grad is not None]
                momenta = [self._momentum(p, group["momentum"]) for p in parameters]
                for p, update in zip(parameters, self.directions(parameters, momenta, group["parts"]), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        return loss

    def _momentum(self, parameter: Tensor, decay: float) -> Tensor:
        """Nesterov's, after this step's gradient, in bf16: what is orthogonalised."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(parameter)
        state["step"] += 1
        return parameter.grad.lerp(state["exp_avg"].lerp_(parameter.grad, 1 - decay), decay).bfloat16()
