"""The environment of every process, set before Prefect, Ray or MLflow is imported; versions and hardware, to record.

What is recorded names no machine and no path.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from cluster.home import SERVICES, home, ray_token, running

QUIET = {
    # No telemetry.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "on",  # `gpt2 import` and `hf://` sources lift this value and no other (`gpt2.data.samples`)
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # We handle signals; Ray's handler prints a stack of addresses and aborts.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # JSON in place of pickle.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # Local servers run no job workers. The first start runs migrations, which take long on a slow disk.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # A killed process frees its slot.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # Survive a server that is away for minutes: Prefect's client waits 2, 4, ... 256 s; `cluster.tracking.retry` waits
    # for MLflow.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # Short logs.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "ALEMBIC_LOG_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task sees no GPU but those that it was given
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a thread that outlives our connection would start another Ray
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}


def configure() -> Path:
    """Set the home, our defaults and Prefect's folder in the environment, where they are not set; return the home.

    Call it before Prefect, Ray or MLflow is imported.
    """
    path = home()
    keep_loopback_direct()
    os.environ["GPT2_HOME"] = str(path)
    if (folder := os.environ.get("GPT2_STORE")) and "://" not in folder:
        os.environ["GPT2_STORE"] = str(Path(folder).resolve())
    os.environ.setdefault("PREFECT_HOME", str(path / "prefect"))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:  # a local Ray has one node, so it need not watch for lost ones
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # it listens on loopback only
    if (state := running()) is not None:
        use(state)
    named = "RAY_ADDRESS" in os.environ or any(name.startswith("RAY_AUTH_") for name in os.environ)
    if not named and "ray" not in sys.modules:  # Ray reads these once, when it is imported
        os.environ |= ray_token()
    return path


LOOPBACK = ("127.0.0.1", "localhost", "::1")
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


def keep_loopback_direct() -> None:
    """Except loopback from the proxy that the environment names, if any: no proxy can reach our services.

    Without a proxy nothing is set, because on macOS any such variable replaces the system's settings.
    """
    if not any(os.environ.get(name) for name in os.environ if name.lower() in PROXIES):
        return
    said = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in said.split(",") if host.strip()]
    merged = ",".join([*hosts, *(host for host in LOOPBACK if host not in hosts and "*" not in hosts)])
    os.environ |= {"no_proxy": merged, "NO_PROXY": merged}


def ray_fault(address: str) -> str | None:
    """Return what is wrong with RAY_ADDRESS; None if something listens there. Ray itself would wait for minutes."""
    place = address
    if address == "auto":  # the cluster that was last started on this machine with `ray start`
        own = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # as Ray looks for it
        current = Path(os.environ.get("RAY_TMPDIR") or own or "/tmp") / "ray" / "ray_current_cluster"
        if not current.exists():
            return "auto: no cluster was started here with `ray start`"
        place = current.read_text().strip()
    kind, _, place = place.rpartition("://")
    host, _, number = place.rpartition(":")
    if address == "local" or kind not in ("", "ray", "http", "https"):
        return None
    if kind.startswith("http") or not number.isdigit():
        return f"{address}: not the address of a head"
    try:
        socket.create_connection((host.strip("[]"), int(number)), timeout=3).close()
    except (OSError, OverflowError) as error:
        return f"{address}: {error}"
    return None


RAY_REMEDY = "give RAY_ADDRESS as host:6379 of a running head, or unset it"


def use(state: dict[str, Any]) -> None:
    """Set the addresses and logins of a running `gpt2 up`, unless the environment names other services."""
    for address in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        own = state["environment"].get(address, {})
        if os.environ.get(address) in (None, own.get(address)):
            os.environ |= own
            for variable, file in state["secrets"].get(address, {}).items():
                os.environ[variable] = (home() / SERVICES / file).read_text()


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
