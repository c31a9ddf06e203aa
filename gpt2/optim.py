"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from gpt2.config import OptimizerConfig


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for AdamW: matrices decay; biases, gains and position embeddings do not."""
    decayed, plain = [], []
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
    decay = max(1, round(config.decay_share * total_steps))
    progress = (step - (last - decay)) / decay
    return peak + (final - peak) * min(1.0, max(0.0, progress))
