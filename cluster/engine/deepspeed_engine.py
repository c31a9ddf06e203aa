"""The training loop's engine on DeepSpeed ZeRO, and our settings in DeepSpeed's terms.

The configuration is computed here; there is no JSON file of it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.config import ClusterConfig, flat, nested
from cluster.engine.fragments import Fragments
from cluster.engine.guard import Replicas, SkipStep
from cluster.engine.muon import Exchange
from gpt2.model.hardware import CPU, to_device
from gpt2.training.config import TrainConfig
from gpt2.training.engine import decided, trained
from gpt2.training.optimizer import Muon, optimizer, set_rate


def accumulation_steps(train: TrainConfig, world_size: int) -> int:
    """Return the micro-batches per worker and step; raises `ValueError` if the global batch is not divisible."""
    share = train.micro_batch_size * world_size
    if train.batch_size % share:
        raise ValueError(
            f"batch_size={train.batch_size}: is not divisible by micro_batch_size={train.micro_batch_size} x "
            f"num_workers={world_size}; choose a global batch that is a multiple of {share}"
        )
    return train.batch_size // share


def adds_up_bf16(train: TrainConfig, world_size: int) -> bool:
    """Return whether bf16 gradients of several micro-batches are added up, which must happen in fp32."""
    return train.precision == "bf16" and accumulation_steps(train, world_size) > 1


def deepspeed_config(train: TrainConfig, cluster: ClusterConfig, world_size: int) -> dict[str, Any]:
    """Return the configuration for `deepspeed.initialize`, the user's own keys included.

    Learning rates are set by our loop, step by step.
    """
    zero: dict[str, Any] = {"stage": cluster.zero_stage, "overlap_comm": cluster.use_gpu, "contiguous_gradients": True}
    if cluster.offload_optimizer:
        zero["offload_optimizer"] = {"device": CPU, "pin_memory": cluster.use_gpu}
    if cluster.offload_parameters:
        zero["offload_param"] = {"device": CPU, "pin_memory": cluster.use_gpu}
    if cluster.zero_stage == 3:
        # Small parameters stay unsharded: gathering them costs more time than the memory is worth.
        zero["stage3_param_persistence_threshold"] = 10_000
    adds_up = adds_up_bf16(train, world_size)
    ours = {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(train, world_size),
        "gradient_clipping": train.optimizer.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        # Refused at stage 0, and at 1 another optimizer: there `DeepSpeedEngine.wide` does it.
        "data_types": {"grad_accum_dtype": "fp32" if adds_up and cluster.zero_stage > 1 else None},
        "checkpoint": {"tag_validation": "Fail"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    return nested({**dict(flat(ours)), **dict(flat(cluster.deepspeed))})


def prepare_environment(use_gpu: bool, compile: bool) -> None:
    """Set the environment that DeepSpeed reads at its import. Call it in a worker before `DeepSpeedEngine`."""
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    if not compile:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # DeepSpeed's Muon, which we don't use, would load the compiler (2 s)
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = CPU
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    if "mlflow" not in sys.modules:
        sys.modules["mlflow"] = None  # type: ignore[assignment] # DeepSpeed's autotuner would load it (1 s)
    import deepspeed

    if sys.modules["mlflow"] is None:
        del sys.modules["mlflow"]
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not use_gpu:
        # DeepSpeed would compile this op, for inference only, which needs a compiler and 90 s.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedEngine:
    """`gpt2.training.engine.Engine` on `deepspeed.initialize`; torch.distributed must be initialised."""

    def __init__(
        self,
        module: nn.Module,
        train: TrainConfig,
        cluster: ClusterConfig,
        alive: Callable[[], None] = lambda: None,
    ):
        """`alive` is called after each micro-batch."""
        import deepspeed

        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        train = decided(train, cluster.use_gpu)
        config = deepspeed_config(train, cluster, self.world_size)
        if cluster.offload_optimizer:
            # torch's AdamW updates offloaded states on the CPU without a compiled extension.
            config["zero_force_ds_cpu_optimizer"] = False
        inner = optimizer(module, train.optimizer)
        matrices = {p: p.shape for group in inner.param_groups if group.get("parts") for p in group["params"]}
        for group in inner.param_groups:
            group["lr"] = 0.0  # at stage 0 in half precision DeepSpeed takes a step to make moments
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=inner, config=config, dist_init_required=False
        )
        self.wide: list[nn.Parameter] = []
        """bf16 parameters whose gradients PyTorch adds up in fp32: at stages 0 and 1, where DeepSpeed does not."""
        if adds_up_bf16(train, self.world_size) and cluster.zero_stage < 2:
            self.wide = [parameter for _, parameter in trained(self.engine.module)]
        for parameter in self.wide:
            parameter.grad_dtype = torch.float32
        self.device = self.engine.device
        self.fragments = Fragments(self.engine)
        self.fragments.forget_steps()
        if isinstance(inner, Muon):
            inner.directions = Exchange(self.fragments, matrices, self.device)
        self.skip_step = SkipStep(self.engine)
        self.replicas = Replicas(self.engine) if cluster.verify_replicas else None
        self.alive = alive

    def backward(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.engine(**to_device(batch, self.device))
        if self.engine.is_gradient_accumulation_boundary():
            for parameter in self.wide:
                if parameter.grad is None:  # DeepSpeed would give unused ones zeros in bf16, which PyTorch refuses
                    parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # only counts the micro-batch
        self.alive()
        return loss.detach().float()

    def update(self, learning_rate: float, limit: float = math.inf) -> float:
        if self.replicas:
            self.replicas.verify()
        set_rate(self.optimizer, learning_rate)
        return self.skip_step.step(limit)

    @torch.no_grad()
    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        self.engine.eval()
        try:
            return self.engine(**to_device(batch, self.device)).float()
        finally:
            self.engine.train()
            self.alive()

    def sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device, torch.float64)
        torch.distributed.all_reduce(values)
        return values.cpu()

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        masters = self.fragments.masters()
        full = {}
        for name, parameter in trained(self.engine.module):
            value = masters.get(parameter)
            if value is None and self.engine.zero_optimization():
                value = safe_get_full_fp32_param(parameter)  # a collective: all ranks call it
            full[name] = (parameter if value is None else value).detach().float().cpu()
        return full

    def snapshot(self) -> Callable[[Path], Path]:
        return self.fragments.snapshot()

    def load(self, directory: Path) -> None:
        self.fragments.load(directory)
