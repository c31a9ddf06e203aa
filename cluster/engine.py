"""The training loop's engine on DeepSpeed ZeRO."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cluster.config import ClusterConfig
from cluster.zero import deepspeed_config
from gpt2.config import TrainConfig
from gpt2.engine import adamw, to_device

TAG = "state"


def prepare_environment(use_gpu: bool, compile: bool) -> None:
    """Set what DeepSpeed reads at its import; in a worker, before `DeepSpeedEngine`."""
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    if not compile:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # DeepSpeed's Muon, unused here, would load the compiler for 2 s
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning)
    if "mlflow" not in sys.modules:
        sys.modules["mlflow"] = None  # type: ignore[assignment] # DeepSpeed's autotuner would load it for 1 s
    import deepspeed

    if sys.modules["mlflow"] is None:
        del sys.modules["mlflow"]
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if not use_gpu:
        # An op of inference only, that DeepSpeed would compile here at the cost of a compiler and 90 s.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class DeepSpeedEngine:
    """`gpt2.engine.Engine` on `deepspeed.initialize`; torch.distributed must be initialised."""

    def __init__(self, module: nn.Module, train: TrainConfig, cluster: ClusterConfig):
        import deepspeed

        self.rank = torch.distributed.get_rank()
        self.world_size = torch.distributed.get_world_size()
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
        config = deepspeed_config(train, cluster, self.world_size)
        if cluster.offload_optimizer:
            # Offloaded states step on the CPU: torch's AdamW does it without a compiled extension.
            config["zero_force_ds_cpu_optimizer"] = False
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=module, optimizer=adamw(module, train.optimizer), config=config, dist_init_required=False
        )
        self.device = self.engine.device

    def backward(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.engine(**to_device(batch, self.device))
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # only counts the micro-batch
        return loss.detach().float()

    def update(self, learning_rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None if self.engine.zero_optimization() else self._plain_norm()
        self.engine.step()
        told = self.engine.get_global_grad_norm()
        return float((norm if told is None else told) or 0.0)

    def _plain_norm(self) -> Tensor | None:
        """ZeRO 0 in fp32 reports no norm; the gradients are averaged already, and not clipped yet."""
        gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(gradients) if gradients else None

    @torch.no_grad()
    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        self.engine.eval()
        try:
            return self.engine(**to_device(batch, self.device)).float()
        finally:
            self.engine.train()

    def sum(self, values: Tensor) -> Tensor:
        values = values.to(self.device, torch.float64)
        torch.distributed.all_reduce(values)
        return values.cpu()

    def weights(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        masters = self._unsharded_masters()
        full = {}
        for name, parameter in self.engine.module.named_parameters():
            value = masters.get(parameter)
            if value is None and self.engine.zero_optimization():
                value = safe_get_full_fp32_param(parameter)  # a collective: all ranks call it
            full[name] = (parameter if value is None else value).detach().float().cpu()
        return full

    def _unsharded_masters(self) -> dict[nn.Parameter, Tensor]:
        """ZeRO 0 at 16 bits keeps fp32 copies that DeepSpeed's own accessor does not know."""
        low, high = getattr(self.optimizer, "fp16_groups", None), getattr(self.optimizer, "fp32_groups", None)
        if self.engine.zero_optimization() or low is None or high is None:
            return {}
        return {p: m for ps, ms in zip(low, high, strict=True) for p, m in zip(ps, ms, strict=True)}

    def save(self, directory: Path) -> None:
        self.engine.save_checkpoint(str(directory), tag=TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        path, _ = self.engine.load_checkpoint(str(directory), tag=TAG)
        if path is None:  # DeepSpeed only warns, and would start over silently
            raise RuntimeError(f"DeepSpeed found no checkpoint in {directory}")
