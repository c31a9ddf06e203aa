"""Where a model computes: the device, its fastest precision, how many rows at once, and its peak rate.

No other file names a device. What is asked of Ray is in `cluster.connect`: a process sees the GPU that it was given.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

DATASHEET = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "V100": 125e12}
"""Dense bf16 or fp16 FLOP/s from the vendors' data sheets, by a part of the device's name."""
CPU, GPU = "cpu", "cuda"
CHOSEN = "MLFLOW_DEFAULT_PREDICTION_DEVICE"
"""MLflow's variable for the device of models that are used, such as `cpu` or `cuda:1`."""
MORE_ON_GPU = 16
"""Times as many rows at once on a GPU as on a CPU: its cores need them, and its memory holds them."""
Module = TypeVar("Module", bound=nn.Module)


def fastest_device() -> torch.device:
    """Return the GPU that this process was given, else the CPU."""
    return torch.device(GPU if gpus() else CPU)


def device_for_use() -> torch.device:
    """Return the device of a model that is used, not trained: what `CHOSEN` names, else the fastest.

    Raises `ValueError` for a name that PyTorch does not know, or a GPU that is not here.
    """
    name = os.environ.get(CHOSEN, "").strip()
    if not name:
        return fastest_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"{CHOSEN}={name!r}: is no device of PyTorch; give {CPU} or {GPU}, or leave it out") from None
    if device.type not in (CPU, GPU) or (on_gpu(device) and (device.index or 0) >= gpus()):
        raise ValueError(f"{CHOSEN}={name!r}: this process sees {gpus()} GPUs; give {CPU}, or leave it out")
    return device


def ready(module: Module, low: bool = False, fixed: bool = False) -> Module:
    """Return the module on the device for use, in the precision for use, and in evaluation mode.

    On the CPU it is fp32, or with `low` the fastest precision, which suits labels. On a GPU it is bf16 where that is
    native, or with `fixed` fp32, which suits scores that are compared closely.
    """
    device = device_for_use()
    if on_gpu(device):
        native = not fixed and torch.cuda.get_device_capability(device) >= (8, 0)
        dtype = torch.bfloat16 if native else torch.float32
    else:
        dtype = quickest() if low else torch.float32
    return module.to(device, dtype).eval()


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters."""
    return next(module.parameters()).device


def at_once(module: nn.Module, on_cpu: int) -> int:
    """Return how many rows the module computes at once, from the number for a CPU."""
    return on_cpu * MORE_ON_GPU if on_gpu(device_of(module)) else on_cpu


def on_gpu(device: torch.device) -> bool:
    """Return whether a device is a GPU."""
    return device.type == GPU


def on_cpu(tensor: Tensor) -> bool:
    """Return whether a tensor lies in the CPU's memory."""
    return tensor.device.type == CPU


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the batch's tensors on the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def gpus() -> int:
    """Return the number of GPUs that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_names() -> list[str]:
    """Return the names of the GPUs that this process sees."""
    return [torch.cuda.get_device_name(i) for i in range(gpus())]


def gpu_id() -> str:
    """Return NVML's name of the current GPU, independent of CUDA_VISIBLE_DEVICES."""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def quickest() -> torch.dtype:
    """Return the fastest dtype of this CPU: bf16 if it multiplies bf16 natively, else fp32."""
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def peak_flops(dtype: torch.dtype, device: torch.device, seconds: float = 0.3) -> float:
    """Return the peak FLOP/s of one device: from the data sheet of a known GPU, else the best of repeated 1024^3
    products."""
    if on_gpu(device) and dtype != torch.float32:
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
        if on_gpu(device):
            torch.cuda.synchronize(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - before))
    return best
