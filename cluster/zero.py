"""Our settings in DeepSpeed's terms: computed here, never a JSON file of its own."""

from __future__ import annotations

from typing import Any

from cluster.config import ClusterConfig
from gpt2.config import TrainConfig


def accumulation_steps(train: TrainConfig, world_size: int) -> int:
    """Micro-batches per worker and step; `ValueError` where the global batch does not divide."""
    share = train.micro_batch_size * world_size
    if train.batch_size % share:
        raise ValueError(
            f"batch_size={train.batch_size} is not divisible by micro_batch_size={train.micro_batch_size} x "
            f"num_workers={world_size}; choose a global batch that is a multiple of {share}"
        )
    return train.batch_size // share


def deepspeed_config(train: TrainConfig, cluster: ClusterConfig, world_size: int) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`. Learning rates are set by our loop, step by step."""
    zero: dict[str, Any] = {"stage": cluster.zero_stage, "overlap_comm": cluster.use_gpu, "contiguous_gradients": True}
    if cluster.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cluster.use_gpu}
    if cluster.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": cluster.use_gpu}
    if cluster.zero_stage == 3:
        # Small parameters stay whole: gathering them costs more than they weigh.
        zero["stage3_param_persistence_threshold"] = 10_000
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(train, world_size),
        "gradient_clipping": train.optimizer.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        "checkpoint": {"tag_validation": "Fail"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
