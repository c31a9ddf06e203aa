"""The environment of a run: versions and hardware, without names of machines or paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import psutil

NUMERICAL = ("torch", "numpy", "tokenizers", "tiktoken", "deepspeed", "ray", "datasets")
"""Packages whose version may change the bits of a model."""


@cache
def environment() -> dict[str, Any]:
    """Return the versions of Python and of every installed package, and this machine's processor, memory and GPUs."""
    packages = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus(),
        "packages": dict(sorted(packages.items(), key=lambda item: item[0].lower())),
    }


def numerical_environment() -> dict[str, Any]:
    """Return Python, packages and processor, on which a model's bits depend besides data, settings and code."""
    packages = {p: importlib.metadata.version(p) for p in NUMERICAL}
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "processor": processor()}
    return {"python": platform.python_version(), **packages, **machine}


def processor() -> str:
    """Return the processor's model, as Linux names it. Another processor may round differently."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def gpus() -> list[str]:
    """Return the names of NVIDIA GPUs, from `nvidia-smi` because PyTorch takes seconds to load."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
