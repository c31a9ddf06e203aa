"""Where training runs: workers, devices and ZeRO. None of it changes what is learned, so none is part of an id."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gpt2.settings import Settings


class ClusterConfig(Settings):
    """Workers, devices and DeepSpeed's ZeRO."""

    num_workers: int = Field(2, ge=1, le=4096)
    """Training processes: one per GPU, or a share of the CPU cores each."""
    cpus_per_worker: float = Field(1, gt=0, le=1024)
    """CPU cores that Ray reserves for a worker; also its number of threads."""
    use_gpu: bool = False
    """One GPU per worker (NCCL); without it CPU workers (gloo)."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What ZeRO shards over the workers: 1 optimizer states, 2 gradients too, 3 parameters too."""
    offload_optimizer: bool = False
    """Keep optimizer states in CPU memory (ZeRO 1 to 3)."""
    offload_parameters: bool = False
    """Keep parameters in CPU memory (ZeRO 3)."""
    max_failures: int = Field(10, ge=0, le=1000)
    """Restarts of a failed training, each from the last complete checkpoint."""
    hang_seconds: float = Field(40, ge=1, le=86400)
    """A worker without progress for so long, and for ten times its slowest step, is taken for hung and restarted."""
    verify_replicas: bool = True
    """Compare the workers' copies of the parameters before each step: a flipped bit is found, not trained on."""
    checkpoint_url: str | None = Field(None, min_length=1)
    """Where whole checkpoints are copied to as well, any fsspec address: they outlive this disk, as in s3://bucket/ckpt."""
    start_timeout_seconds: int = Field(120, ge=10, le=86400)
    """How long workers may take to start."""

    @model_validator(mode="after")
    def _offload_needs_zero(self):
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("offload_optimizer=true needs ZeRO; set zero_stage to 1, 2 or 3")
        if self.offload_parameters and self.zero_stage != 3:
            raise ValueError(f"offload_parameters=true needs zero_stage: 3, not {self.zero_stage}")
        return self
