"""Sample the resources that each process of a training uses: a line in a file every ten seconds, for MLflow and the
cost."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from gpt2.training.journal import append

USAGE = "usage.jsonl"
MEMORY = "process_memory_usage_megabytes"
EVERY = 10.0
"""Seconds between two samples."""
RAPL = Path("/sys/class/powercap")
"""Folder of Linux with the energy counters of processor packages, often readable by root only."""


class Usage(threading.Thread):
    """Context around the work of one process, which it samples at the start, every `EVERY` seconds, and at the end.

    A line has `who` (`driver` or `rank0` ...), `pid`, `node`, `time` (s since 1970), the reserved `cpus` and
    `gpus`, `cpu_seconds` (used by the process since its start), `memory_mb`, the machine's `machine_cpu_percent` and
    `machine_memory_percent` and, where they can be read, `machine_joules` and `gpu_joules` (counters), `gpu_percent`
    and `gpu_memory_mb`.
    """

    def __init__(self, folder: Path, who: str, cpus: float = 0, use_gpu: bool = False):
        """`use_gpu`: this process uses CUDA's current device."""
        super().__init__(daemon=True, name="usage")
        self.path, self.process = folder / USAGE, psutil.Process()
        self.gpu = None
        if use_gpu:
            from gpt2.model.hardware import gpu_id

            self.gpu = gpu_id()
        self.fixed = {
            "who": who,
            "pid": self.process.pid,
            "node": hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8],  # not the host's name
            "cpus": cpus,
            "gpus": int(use_gpu),
        }
        self.ended = threading.Event()

    def __enter__(self) -> Usage:
        self.write_sample()
        self.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.ended.set()
        self.join()
        with contextlib.suppress(OSError):  # the disk may be full; the work's own error is reported elsewhere
            self.write_sample()

    def run(self) -> None:
        while not self.ended.wait(EVERY):
            with contextlib.suppress(OSError):
                self.write_sample()

    def write_sample(self) -> None:
        append(self.path, self.sample())

    def sample(self) -> dict[str, Any]:
        times = self.process.cpu_times()
        measured = {
            "time": time.time(),
            "cpu_seconds": round(times.user + times.system, 2),
            "memory_mb": round(self.process.memory_info().rss / 2**20, 1),
            "machine_cpu_percent": psutil.cpu_percent(),
            "machine_memory_percent": psutil.virtual_memory().percent,
        }
        joules = machine_joules()
        return {**self.fixed, **measured, **({"machine_joules": joules} if joules is not None else {}), **self._gpu()}

    def _gpu(self) -> dict[str, float]:
        if self.gpu is None:
            return {}
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(self.gpu)
            measured = {
                "gpu_percent": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
                "gpu_memory_mb": pynvml.nvmlDeviceGetMemoryInfo(handle).used / 2**20,
            }
            with contextlib.suppress(pynvml.NVMLError):  # GPUs before Volta have no counter
                measured["gpu_joules"] = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
            return measured
        except Exception:  # not installed, or not supported by the driver: nothing depends on it
            return {}


def machine_joules() -> float | None:
    """Return the sum (J) of the energy counters of the machine's processor packages; None if they can't be read."""
    try:
        packages = [p for p in RAPL.glob("*-rapl:*") if (p / "name").read_text().startswith("package")]
        return sum(int((p / "energy_uj").read_text()) for p in packages) / 1e6 if packages else None
    except (OSError, ValueError):
        return None


def metrics(sample: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, float]:
    """Return a sample as MLflow system metrics (`system/WHO/...`, which MLflow shows in their own tab)."""
    named = {
        MEMORY: "memory_mb",
        "system_cpu_utilization_percentage": "machine_cpu_percent",
        "system_memory_usage_percentage": "machine_memory_percent",
        "gpu_utilization_percentage": "gpu_percent",
        "gpu_memory_usage_megabytes": "gpu_memory_mb",
    }
    values = {name: float(sample[key]) for name, key in named.items() if key in sample}
    if before and before["pid"] == sample["pid"] and sample["time"] > before["time"]:
        used = sample["cpu_seconds"] - before["cpu_seconds"]
        values["cpu_utilization_percentage"] = 100 * used / (sample["time"] - before["time"])
    return {f"system/{sample['who']}/{name}": value for name, value in values.items()}
