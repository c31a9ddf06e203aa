"""Settings of the cluster: workers, devices and ZeRO, and a user's own keys of DeepSpeed's configuration.

None of them changes the trained model, so none is part of an id; `CHANGING` names the exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gpt2.settings import Settings

ZERO = "zero_optimization."
STAGE_3 = (
    f"{ZERO}stage3_",
    *(f"{ZERO}{name}" for name in ("zero_", "memory_efficient_linear", "override_module_apply", "sub_group_size")),
)
"""What keys begin with that DeepSpeed reads at ZeRO 3 alone."""
OPERATIONAL: dict[str, type] = {
    **dict.fromkeys(
        (
            *("wall_clock_breakdown", "memory_breakdown", "disable_python_gc"),
            *("comms_logger.enabled", "comms_logger.verbose", "comms_logger.prof_all", "comms_logger.debug"),
            *(f"{ZERO}offload_optimizer.pin_memory", f"{ZERO}offload_param.pin_memory"),
            *(f"{ZERO}allgather_partitions", f"{ZERO}contiguous_gradients", f"{ZERO}enable_sanity_checks"),
            *(f"{ZERO}log_trace_cache_warnings", f"{ZERO}memory_efficient_linear", f"{ZERO}overlap_comm"),
            *(f"{ZERO}override_module_apply", f"{ZERO}parameter_alignment", f"{ZERO}reduce_scatter"),
            f"{ZERO}use_multi_rank_bucket_allreduce",
            *(f"{ZERO}stage3_allgather_sequential", f"{ZERO}stage3_use_all_reduce_for_fetch_params"),
        ),
        bool,
    ),
    **dict.fromkeys(
        (
            *(f"{ZERO}allgather_bucket_size", f"{ZERO}reduce_bucket_size", f"{ZERO}sub_group_size"),
            *(f"{ZERO}stage3_max_live_parameters", f"{ZERO}stage3_max_reuse_distance"),
            *(f"{ZERO}stage3_model_persistence_threshold", f"{ZERO}stage3_param_persistence_threshold"),
            *(f"{ZERO}stage3_module_granularity_threshold", f"{ZERO}stage3_prefetch_bucket_size"),
            f"{ZERO}zero_hpz_partition_size",
        ),
        int,
    ),
}
"""DeepSpeed's keys that say what is sent when, and what is told of it: the model is the same."""
CHANGING: dict[str, type] = {
    "communication_data_type": str,
    **dict.fromkeys(("prescale_gradients", "fp16.consecutive_hysteresis"), bool),
    **dict.fromkeys((f"{ZERO}zero_quantized_weights", f"{ZERO}zero_quantized_gradients"), bool),
    f"{ZERO}zero_quantized_nontrainable_weights": bool,
    "gradient_predivide_factor": float,
    **{f"fp16.{n}": int for n in ("initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale")},
    "fp16.loss_scale": float,
}
"""DeepSpeed's keys that round or scale otherwise, so that they count in the id of a training."""
IN_MEMORY = "checkpoints are read from fp32 states in memory"
DECIDED = {
    "train_batch_size": "set the training's batch_size",
    "train_micro_batch_size_per_gpu": "set the training's micro_batch_size",
    "gradient_accumulation_steps": "it follows from the training's batch_size and micro_batch_size, and num_workers",
    "gradient_allreduce_op": "the loss is a mean over the batch; set the training's batch_size or learning_rate",
    "gradient_clipping": "set the training's optimizer.clip",
    "optimizer": "set the training's optimizer.kind, optimizer.learning_rate and so on",
    "scheduler": "set the training's optimizer.schedule",
    "zero_allow_untested_optimizer": "set the training's optimizer.kind",
    "zero_force_ds_cpu_optimizer": "set the training's optimizer.kind",
    "bf16": f"set the training's precision; {IN_MEMORY}",
    "bfloat16": "set the training's precision",
    "fp16.enabled": "set the training's precision",
    "fp16.auto_cast": "set the training's precision",
    "fp16.fp16_master_weights_and_grads": f"set the training's precision; {IN_MEMORY}",
    "amp": "set the training's precision",
    "torch_autocast": "set the training's precision",
    "data_types": "gradients are added up in fp32; set the training's precision",
    "activation_checkpointing": "set the training's activation_checkpointing",
    "compile": "set the training's compile",
    "checkpoint": "set the training's checkpoint_every and keep_checkpoints",
    "steps_per_print": "set the training's log_every",
    "aio": f"nothing is offloaded to a disk; {IN_MEMORY}",
    f"{ZERO}stage": "set cluster.zero_stage",
    f"{ZERO}offload_optimizer.device": f"set cluster.offload_optimizer; {IN_MEMORY}",
    f"{ZERO}offload_param.device": f"set cluster.offload_parameters; {IN_MEMORY}",
    f"{ZERO}cpu_offload": "set cluster.offload_optimizer",
    f"{ZERO}cpu_offload_param": "set cluster.offload_parameters",
    f"{ZERO}zenflow": f"set cluster.offload_optimizer; {IN_MEMORY}",
    f"{ZERO}compute_grad_norm": "the norm finds bad steps; leave it out",
    f"{ZERO}ignore_unused_parameters": "a parameter without gradient is allowed; leave it out",
    f"{ZERO}elastic_checkpoint": "any number of workers reads a checkpoint; leave it out",
    f"{ZERO}round_robin_gradients": "a checkpoint's pieces are found in the model's order; leave it out",
    f"{ZERO}load_from_fp32_weights": "checkpoints hold fp32 weights; leave it out",
}
"""DeepSpeed's keys that our own settings decide: what to set instead."""


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of nested keys; an empty section is none."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inverse of `flat`."""
    whole: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        inner = whole
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return whole


def checked(name: str, value: Any) -> Any:
    """Return the value of a key of DeepSpeed's; raises `ValueError` if it is not one to pass on."""
    parts = name.split(".")
    for above in (".".join(parts[:count]) for count in range(1, len(parts) + 1)):
        if above in DECIDED:
            raise ValueError(f"deepspeed.{name}={value!r}: is decided by our own settings: {DECIDED[above]}")
    known = OPERATIONAL | CHANGING
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(known))}"
        raise ValueError(f"deepspeed.{name}={value!r}: is no key that is passed on to DeepSpeed; {hint}")
    kind = known[name]
    if name == "communication_data_type":
        if value not in ("fp32", "bf16", "fp16"):
            raise ValueError(f"deepspeed.{name}={value!r}: give fp32, bf16 or fp16")
    elif kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"deepspeed.{name}={value!r}: give true or false")
    elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e18:
        raise ValueError(f"deepspeed.{name}={value!r}: give a number, 0 or more")
    elif kind is int:
        if value != int(value):
            raise ValueError(f"deepspeed.{name}={value!r}: give a whole number")
        return int(value)
    return value


class ClusterConfig(Settings):
    """Workers, devices and DeepSpeed's ZeRO."""

    num_workers: int = Field(2, ge=1, le=4096)
    """Number of training processes: each has one GPU, or a share of the CPU cores."""
    cpus_per_worker: float = Field(1, gt=0, le=1024)
    """CPU cores that Ray reserves for each worker, and its number of threads."""
    use_gpu: bool = False
    """One GPU per worker (NCCL); without it CPU workers (gloo)."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage, which says what is sharded over the workers: 1 optimizer states, 2 also gradients, 3 also
    parameters."""
    offload_optimizer: bool = False
    """Keep optimizer states in CPU memory (ZeRO 1 to 3)."""
    offload_parameters: bool = False
    """Keep parameters in CPU memory (ZeRO 3)."""
    max_failures: int = Field(10, ge=0, le=1000)
    """Most restarts of a failed training. Each restart begins at the last complete checkpoint."""
    hang_seconds: float = Field(40, ge=1, le=86400)
    """Seconds without progress, and also ten times its slowest step, after which a worker counts as hung and is
    restarted."""
    verify_replicas: bool = True
    """Compare the workers' copies of the parameters before each step, so that a flipped bit stops the training."""
    checkpoint_url: str | None = Field(None, min_length=1)
    """An fsspec address to which complete checkpoints are copied as well, such as s3://bucket/ckpt. The copies survive
    the loss of this disk. Where `GPT2_STORE` is such an address, the checkpoints are there anyway."""
    start_timeout_seconds: int = Field(120, ge=10, le=86400)
    """Seconds that workers may take to start."""
    deepspeed: dict[str, Any] = Field({})
    """Keys of DeepSpeed's own configuration, such as `zero_optimization: {reduce_bucket_size: 50000000}`. Those that
    another setting decides are refused."""

    @field_validator("deepspeed")
    @classmethod
    def _is_passed_on(cls, given: dict[str, Any]) -> dict[str, Any]:
        return nested({name: checked(name, value) for name, value in flat(given)})

    @model_validator(mode="after")
    def _offload_needs_zero(self):
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer=true: needs ZeRO; set zero_stage to 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters=true: needs ZeRO stage 3, not {self.zero_stage}; set zero_stage to 3")
        return self

    @model_validator(mode="after")
    def _has_an_effect(self):
        for name, value in flat(self.deepspeed):
            said = f"deepspeed.{name}={value!r}"
            if name.startswith(ZERO) and self.zero_stage == 0:
                raise ValueError(f"{said}: needs ZeRO; set zero_stage to 1, 2 or 3")
            if name.startswith(STAGE_3) and self.zero_stage != 3:
                raise ValueError(f"{said}: needs ZeRO stage 3, not {self.zero_stage}; set zero_stage to 3")
            if "quantized" in name and not self.use_gpu:
                raise ValueError(f"{said}: needs a GPU; set use_gpu: true")
            for section, setting in (
                ("offload_optimizer", "offload_optimizer"),
                ("offload_param", "offload_parameters"),
            ):
                if name.startswith(f"{ZERO}{section}.") and not getattr(self, setting):
                    raise ValueError(f"{said}: needs offloading; set {setting}: true")
        return self

    def changing(self) -> dict[str, Any]:
        """Return what of these settings may change the trained model, for the key of its artifact; {} by default."""
        counted = {name: value for name, value in flat(self.deepspeed) if name in CHANGING}
        return {"deepspeed": counted} if counted else {}
