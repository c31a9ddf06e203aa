"""Engines: the interface between the training loop and its execution, and the plain PyTorch engine.

The DeepSpeed engine in `cluster.engine.deepspeed_engine` has the same methods, and the loop treats both alike.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from gpt2.model.hardware import fastest_device, on_gpu, quickest, to_device
from gpt2.training.config import TrainConfig
from gpt2.training.optimizer import optimizer, set_rate

HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""Environment in which to start a process that trains on a CPU: glibc then keeps the memory of large tensors between
steps.

By default glibc returns it, and the kernel clears it again: a tenth of a step's time. Threads other than the main one
need the single arena, as others can't hold large tensors.
"""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Engine(Protocol):
    """The interface that the training loop needs. `rank` of `world_size` processes hold the same module."""

    rank: int
    world_size: int
    device: torch.device

    def backward(self, batch: dict[str, Tensor]) -> Tensor:
        """Add the gradients of the batch's mean loss; return that loss, detached, a scalar."""
        ...

    def update(self, learning_rate: float, limit: float = math.inf) -> float:
        """Take one optimizer step on the gradients averaged over micro-batches and ranks; return their global norm.

        If the norm is not finite or above `limit`, nothing changes on any rank. The norm is 0 if fp16's loss scale was
        lowered instead.
        """
        ...

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the batch's mean loss without gradients, a scalar."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over ranks."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return the trained fp32 parameters by name, on the CPU. Call it on all ranks; the result is complete on rank
        0."""
        ...

    def snapshot(self) -> Callable[[Path], Path]:
        """Copy this rank's share of the training state; return a function that writes it to a folder and returns the
        file."""
        ...

    def load(self, directory: Path) -> None:
        """Read the snapshots of any number of ranks."""
        ...


def decided(train: TrainConfig, gpu: bool) -> TrainConfig:
    """Return the settings with `precision: auto` resolved, for GPUs or for CPUs like this machine's."""
    if train.precision != "auto":
        return train
    precision = "bf16" if gpu or quickest() == torch.bfloat16 else "fp32"
    return TrainConfig.model_validate({**train.model_dump(), "precision": precision})


class TorchEngine:
    """An engine of one process: fp32 master weights, and a copy in the chosen precision for the arithmetic.

    It works as in Micikevicius et al. (2018) and DeepSpeed. It is faster than autocast, which rounds the weights at
    each use.
    """

    rank = 0
    world_size = 1

    def __init__(self, module: nn.Module, config: TrainConfig, device: str | None = None):
        self.device = torch.device(device) if device else fastest_device()
        config = decided(config, on_gpu(self.device))
        if config.precision == "fp16":
            raise ValueError("precision=fp16 needs loss scaling, which the plain engine lacks; use bf16")
        self.module = module.to(self.device)
        self.copy = self.module  # the module that computes
        if config.precision != "fp32":
            self.copy = copy.deepcopy(self.module).to(DTYPES[config.precision])
        pairs = zip(self.module.parameters(), self.copy.parameters(), strict=True)
        self.pairs = [(master, low) for master, low in pairs if master.requires_grad]
        for _, low in self.pairs:
            low.grad_dtype = torch.float32  # micro-batches add up in fp32
        self.config = config
        self.accumulation = config.batch_size // config.micro_batch_size
        self.optimizer = optimizer(module, config.optimizer)

    def backward(self, batch: dict[str, Tensor]) -> Tensor:
        loss = self.copy(**to_device(batch, self.device))
        (loss / self.accumulation).backward()
        return loss.detach()

    def update(self, learning_rate: float, limit: float = math.inf) -> float:
        for master, low in self.pairs:
            master.grad = low.grad
        clip = self.config.optimizer.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), clip)
        set_rate(self.optimizer, learning_rate)
        if torch.isfinite(norm) and norm <= limit:
            self.optimizer.step()
            self._refresh()
        for master, low in self.pairs:
            master.grad = low.grad = None
        return float(norm)

    @torch.no_grad()
    def _refresh(self) -> None:
        """Copy the master weights into the low-precision copy."""
        if self.copy is not self.module:
            torch._foreach_copy_([low for _, low in self.pairs], [master for master, _ in self.pairs])

    @torch.no_grad()
    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        self.copy.eval()
        try:
            return self.copy(**to_device(batch, self.device)).float()
        finally:
            self.copy.train()

    def sum(self, values: Tensor) -> Tensor:
        return values

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().float().cpu() for name, p in trained(self.module)}

    def snapshot(self) -> Callable[[Path], Path]:
        state = copy.deepcopy({"module": self.module.state_dict(), "optimizer": self.optimizer.state_dict()})

        def write(directory: Path) -> Path:
            torch.save(state, directory / "state.pt")
            return directory / "state.pt"

        return write

    def load(self, directory: Path) -> None:
        state = torch.load(directory / "state.pt", map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._refresh()


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of the trained parameters; the others come from the pretrained model."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
