"""Settings of the cluster: workers, devices and ZeRO. None of them changes the trained model, so none is part of an
id."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gpt2.settings import Settings


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

    @model_validator(mode="after")
    def _offload_needs_zero(self):
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer=true: needs ZeRO; set zero_stage to 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters=true: needs ZeRO stage 3, not {self.zero_stage}; set zero_stage to 3")
        return self
