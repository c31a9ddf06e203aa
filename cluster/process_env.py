"""The environment of every process, set before Prefect, Ray or MLflow is imported."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from cluster.home import SERVICES, home, ray_token, running

QUIET = {
    # Nothing phones home.
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_MODEL_CATALOG_URI": "",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # Signals are ours to handle: Ray's own handler prints a stack of addresses and aborts.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # Nothing is pickled where JSON will do.
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # Local servers are light, and the first start, with its migrations, takes long on a slow disk.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # A killed process frees its slot.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # A server that goes away for minutes fails nothing: Prefect's client waits 2, 4, ... 256 s; we do it for MLflow's.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # Logs are read by people.
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",
    "ALEMBIC_LOG_LEVEL": "WARNING",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # we connect; a thread that outlives the connection would start another Ray
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
}


def configure() -> Path:
    """Set what is not yet set in the environment: the home, the quiet defaults, Prefect's folder. Before any import
    of Prefect, Ray or MLflow. Returns the home."""
    path = home()
    os.environ["GPT2_HOME"] = str(path)
    os.environ.setdefault("PREFECT_HOME", str(path / "prefect"))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" not in os.environ:  # a local Ray has no node to lose: it need not pay for watching
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # it listens on loopback alone
    if (state := running()) is not None:
        use(state)
    named = "RAY_ADDRESS" in os.environ or any(name.startswith("RAY_AUTH_") for name in os.environ)
    if not named and "ray" not in sys.modules:  # Ray decides once, at its import
        os.environ |= ray_token()
    return path


def use(state: dict[str, Any]) -> None:
    """Set what leads to the services of a running `gpt2 up`, where the environment does not name others."""
    for address in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        if address not in os.environ:
            for variable, value in state["environment"].get(address, {}).items():
                os.environ[variable] = value
            for variable, file in state["secrets"].get(address, {}).items():
                os.environ[variable] = (home() / SERVICES / file).read_text()
