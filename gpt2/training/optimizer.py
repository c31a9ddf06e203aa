"""Optimizers with their parameter groups, and learning-rate schedules.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) is momentum with all singular values made equal,
for the matrices inside the blocks; AdamW takes the rest. Each update is scaled to the size of AdamW's (Liu et al. 2025,
arXiv:2502.16982), so that one learning rate and one weight decay serve both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.model.hardware import on_cpu, quickest
from gpt2.model.transformer import MLP, Attention
from gpt2.training.config import OptimizerConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic. It is steepest at zero, so that five iterations suffice; it ends near 1, not exactly at
it."""
ITERATIONS = 5
EPSILON = 1e-7
RMS = 0.2
"""RMS of an update's entries before the learning rate: the usual value of AdamW (Liu et al. 2025, section 2.2)."""


def orthogonalise(x: Tensor) -> Tensor:
    """Return (n, rows, columns) bf16 with the same singular vectors as `x` and singular values near 1.

    It uses a Newton-Schulz iteration in bf16, or in fp32 on a CPU that only emulates bf16, where fp32 is several times
    as fast. Singular values above 1/200 of a matrix's norm end between 0.68 and 1.16.
    """
    a, b, c = COEFFICIENTS
    precision = quickest() if on_cpu(x) else torch.bfloat16
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = (y / y.float().square().sum((-2, -1), keepdim=True).sqrt().clamp_min(EPSILON)).to(precision)
    for _ in range(ITERATIONS):
        gram = y @ y.mT
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if tall else y).bfloat16()


def direction(momentum: Tensor, parts: int = 1) -> Tensor:
    """Return the update, bf16, of a (rows, columns) matrix that consists of `parts` stacked matrices."""
    stacked = momentum.unflatten(0, (parts, -1))
    return orthogonalise(stacked).flatten(0, 1) * (RMS * math.sqrt(max(stacked.shape[-2:])))


def directions(parameters: list[Tensor], momenta: list[Tensor], parts: int) -> list[Tensor]:
    """Return each parameter's update from its momentum, if both are whole on this process."""
    return [direction(momentum, parts) for momentum in momenta]


class Muon(torch.optim.AdamW):
    """Muon for groups with `parts` above 0, whose matrices are that many stacked matrices; AdamW for the others.

    Its state is `exp_avg`, the momentum. If this process holds only pieces of matrices, replace `directions` by a
    function that joins them. It maps (parameters, bf16 momenta of the same shapes, parts) to updates of those shapes.
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
        """Return Nesterov's momentum after this step's gradient, bf16: the matrix to orthogonalise."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["step"], state["exp_avg"] = torch.zeros(()), torch.zeros_like(parameter)
        state["step"] += 1
        return parameter.grad.lerp(state["exp_avg"].lerp_(parameter.grad, 1 - decay), decay).bfloat16()


def optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) with weight decay on matrices, or Muon for the blocks' matrices."""
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
        "fused": True,
    }
    if config.kind == "adamw":
        return torch.optim.AdamW(parameter_groups(module, config.weight_decay, config.embedding_rate), **options)
    groups = muon_groups(module, config.weight_decay, config.embedding_rate)
    return Muon(groups, momentum=config.momentum, **options)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set each group's learning rate, multiplied by the group's own `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def muon_groups(module: nn.Module, weight_decay: float, embedding_rate: float = 1.0) -> list[dict[str, Any]]:
    """Return AdamW's groups without the blocks' matrices, and groups of these by their number of parts.

    Queries, keys and values are three parts, and SwiGLU's first matrix is two.
    """
    parts = {p: n for m in module.modules() for p, n in matrices(m) if p.requires_grad}
    groups = [
        {**group, "params": [p for p in group["params"] if p not in parts]}
        for group in parameter_groups(module, weight_decay, embedding_rate)
    ]
    for n in sorted(set(parts.values())):
        groups.append({"params": [p for p in parts if parts[p] == n], "weight_decay": weight_decay, "parts": n})
    return [group for group in groups if group["params"]]


def matrices(module: nn.Module) -> list[tuple[Tensor, int]]:
    """Return the matrices of an attention or an MLP itself, each with its number of parts."""
    if isinstance(module, Attention):
        return [(module.qkv.weight, 3), (module.proj.weight, 1)]
    if isinstance(module, MLP):
        return [(module.fc.weight, module.fc.out_features // module.proj.in_features), (module.proj.weight, 1)]
    return []


def parameter_groups(module: nn.Module, weight_decay: float, embedding_rate: float = 1.0) -> list[dict[str, Any]]:
    """Return the groups for AdamW: matrices decay; biases, gains and position embeddings do not.

    This is as in nanoGPT and Megatron-LM. Token embeddings with a learning rate of their own are a third group. Frozen
    parameters are in none; an empty group is left out.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    tokens: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            own = embedding_rate != 1 and name.endswith("wte.weight")
            (tokens if own else decayed if parameter.ndim >= 2 and "wpe" not in name else plain).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": tokens, "weight_decay": weight_decay, "rate": embedding_rate},
    ]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of step `step` (from 0): linear warm-up, then the schedule; the last step has the final
    rate.

    Cosine is after Loshchilov and Hutter (2017), and warm-up, stable, decay after Hu et al. (2024, MiniCPM).
    """
    peak, final, warmup = config.learning_rate, config.learning_rate * config.final_ratio, config.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    last = max(total_steps - 1, warmup)
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, last - warmup)
        return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    start = max(warmup, last - round(config.decay_share * total_steps))  # wsd: stable up to here
    progress = (step - start) / max(1, last - start)
    return peak + (final - peak) * min(1.0, max(0.0, progress))
