"""The machine's speed: its peak rate of matrix products, the reference for training, and its fastest precision."""

from __future__ import annotations

import time

import torch

from gpt2.training.config import TrainConfig

DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}
"""Dense bf16 or fp16 FLOP/s from the vendors' data sheets, by a part of the device's name."""


def quickest() -> torch.dtype:
    """Return the fastest dtype of this CPU: bf16 if it multiplies bf16 natively, else fp32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def decided(train: TrainConfig, gpu: bool) -> TrainConfig:
    """Return the settings with `precision: auto` resolved, for GPUs or for CPUs like this machine's."""
    if train.precision != "auto":
        return train
    precision = "bf16" if gpu or quickest() == torch.bfloat16 else "fp32"
    return TrainConfig.model_validate({**train.model_dump(), "precision": precision})


def peak_flops(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    """Return the peak FLOP/s of one device: from the data sheet of a known GPU, else the best of repeated 1024^3
    products."""
    if device.type == "cuda" and dtype != torch.float32:
        name = torch.cuda.get_device_name(device)
        for part, flops in DATASHEET.items():
            if part in name:
                return flops
    n = 1024
    a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
    best, started = 0.0, time.perf_counter()
    a @ b
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - before))
    return best
