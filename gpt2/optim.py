"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from gpt2.config import OptimizerConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices decay; biases, gains and position embeddings do not (as nanoGPT, Megatron-LM).

    Frozen parameters are in neither; an empty group is left out.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (decayed if parameter.ndim >= 2 and "wpe" not in name else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
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
