"""Optimizers with their parameter groups, and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gpt2.config import OptimizerConfig
from gpt2.model import MLP, Attention
from gpt2.muon import Muon


def optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) with weight decay on matrices only; or Muon for the blocks' matrices."""
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
    """Give each group the learning rate, times its own `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def muon_groups(module: nn.Module, weight_decay: float, embedding_rate: float = 1.0) -> list[dict[str, Any]]:
    """AdamW's groups without the blocks' matrices, and these, by how many matrices each is: queries, keys and values
    are three, and SwiGLU's first two."""
    parts = {p: n for m in module.modules() for p, n in matrices(m) if p.requires_grad}
    groups = [
        {**group, "params": [p for p in group["params"] if p not in parts]}
        for group in parameter_groups(module, weight_decay, embedding_rate)
    ]
    for n in sorted(set(parts.values())):
        groups.append({"params": [p for p in parts if parts[p] == n], "weight_decay": weight_decay, "parts": n})
    return [group for group in groups if group["params"]]


def matrices(module: nn.Module) -> list[tuple[Tensor, int]]:
    """The matrices of an attention or an MLP itself, with how many each is made of."""
    if isinstance(module, Attention):
        return [(module.qkv.weight, 3), (module.proj.weight, 1)]
    if isinstance(module, MLP):
        return [(module.fc.weight, module.fc.out_features // module.proj.in_features), (module.proj.weight, 1)]
    return []


def parameter_groups(module: nn.Module, weight_decay: float, embedding_rate: float = 1.0) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices decay; biases, gains and position embeddings do not (as nanoGPT, Megatron-LM).

    Token embeddings with a rate of their own are a third. Frozen parameters are in none; an empty group is left out.
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
    """The rate of step `step` (from 0): linear warm-up, then the schedule; the last step has the final rate.

    Cosine after Loshchilov and Hutter (2017); warm-up, stable, decay after Hu et al. (2024, MiniCPM).
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
