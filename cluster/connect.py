"""Connect to Ray: to the cluster that `RAY_ADDRESS` names, or to a local one that ends with this process."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster.config import ClusterConfig
from cluster.home import ray_folder
from cluster.process_env import RAY_REMEDY, ray_fault

OBJECT_STORE_BYTES = 256 * 1024**2  # tokens and weights travel through files, not through the object store


QUIETLY: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}


class NotEnoughResources(ValueError):
    """Raised where the cluster has too few CPUs or GPUs for a job."""


class Keeper(threading.Thread):
    """Thread that holds the connection to Ray. Linux ends Ray's processes with the thread that started them."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="ray-keeper")
        self.ready: Future[None] = Future()
        self.leave = threading.Event()
        self.reaper: subprocess.Popen | None = None

    def run(self) -> None:
        try:
            self.reaper = start_or_attach()
        except BaseException as error:
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        self.leave.wait()
        ray.shutdown()


_keeper: Keeper | None = None
_dashboard: str | None = None
_changing = threading.Lock()


def start_or_attach() -> subprocess.Popen | None:
    """Connect to Ray; return the process that cleans up after this one if Ray is local, else None.

    Raises `ValueError` where nothing listens at RAY_ADDRESS.
    """
    global _dashboard
    if address := os.environ.get("RAY_ADDRESS"):
        if fault := ray_fault(address):
            raise ValueError(f"RAY_ADDRESS={fault}; {RAY_REMEDY}")
        _dashboard = ray.init(address=address, **QUIETLY).dashboard_url or None
        return None
    return start_local(include_dashboard=False)


def start_local(**options: Any) -> subprocess.Popen:
    """Start Ray on this machine, on loopback; return the process that cleans up after it."""
    # By default, the processes of a local Ray whose head died look for it for a minute.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    ray.init(
        address="local",
        object_store_memory=OBJECT_STORE_BYTES,
        num_cpus=psutil.cpu_count() or 1,
        _temp_dir=str(ray_folder()),
        **options,
        **QUIETLY,
    )
    return end_agents_with_this_process()


def end_agents_with_this_process() -> subprocess.Popen:
    """Start a shell that kills Ray's agents when this process ends; return it. The caller must keep the result.

    Without it, the agents of a killed driver live for another minute and report to a head that is gone.
    """
    children = [c for raylet in psutil.Process().children() if raylet.name() == "raylet" for c in raylet.children()]
    agents = [str(c.pid) for c in children if "agent" in " ".join(c.cmdline()).lower()]
    script = 'read _; sleep 5; for p in "$@"; do grep -qi agent /proc/$p/cmdline && kill -9 $p; done'
    return subprocess.Popen(
        ["sh", "-c", script, "agents", *agents],
        stdin=subprocess.PIPE,  # never written to: its end is ours
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def connect_early() -> Keeper | None:
    """Begin to `connect` in the background; return None if this process is connected already by other means."""
    global _keeper
    with _changing:
        if _keeper is None and not ray.is_initialized():
            _keeper = Keeper()
            _keeper.start()
        return _keeper


def connect() -> None:
    """Attach to the Ray that `RAY_ADDRESS` names, or start a local one. Does nothing when connected."""
    global _keeper
    if keeper := connect_early():
        try:
            keeper.ready.result()
        except BaseException:
            _keeper = None  # the next call tries again
            raise


def disconnect() -> None:
    """Disconnect from Ray. A local Ray that this process started ends, with all its processes."""
    global _keeper
    with _changing:
        if _keeper is not None:
            _keeper.leave.set()
            _keeper.join()
            _keeper = None
        elif ray.is_initialized():
            ray.shutdown()


def dashboard() -> str | None:
    """Return the URL of the cluster's dashboard; None if there is none, as with a local Ray."""
    return f"http://{_dashboard}" if _dashboard else None


def ray_tags() -> dict[str, str]:
    """Return MLflow tags with the Ray job of this process and its dashboard."""
    url = dashboard()
    return {"ray.job_id": ray.get_runtime_context().get_job_id(), **({"ray.dashboard": url} if url else {})}


def check_resources(config: ClusterConfig) -> None:
    """Raise `NotEnoughResources` if the cluster can never hold the workers, because Ray would wait forever."""
    have = ray.cluster_resources()
    need = {"CPU": config.num_workers * config.cpus_per_worker, "GPU": config.num_workers * config.use_gpu}
    for name, amount in need.items():
        if amount > have.get(name, 0) + 1e-6:
            raise NotEnoughResources(
                f"cluster.num_workers={config.num_workers}: needs {amount:g} {name}s, but the cluster has "
                f"{have.get(name, 0):g}; lower cluster.num_workers or cluster.cpus_per_worker, or add nodes"
            )


def jobs_at_once(jobs: Sequence[ClusterConfig]) -> int:
    """Return how many of these trainings, the largest first, fit on the cluster at the same time; at least 1."""
    have = ray.cluster_resources()
    largest = sorted(jobs, key=lambda j: -j.num_workers * j.cpus_per_worker)
    for count in range(len(largest), 1, -1):
        cpus = sum(j.num_workers * j.cpus_per_worker for j in largest[:count])
        gpus = sum(j.num_workers * j.use_gpu for j in largest[:count])
        if cpus <= have.get("CPU", 0) and gpus <= have.get("GPU", 0):
            return count
    return 1


GPU_SHARE, LARGE = 0.25, 2**30
"""Share of a GPU for a model whose files are below `LARGE` (bytes); a larger one gets a whole GPU."""


def spread(
    function: Callable[..., Any], arguments: Iterable[tuple], cpus: float = 1, model: Path | None = None
) -> Iterator[Any]:
    """Call `function` on each tuple of arguments, on the cluster's workers; yield each result as it arrives.

    With the directory of the `model` that the calls use, each gets its share of a GPU where the cluster has one, and
    `gpt2.model.hardware` finds it there. At most two calls per core are in flight, so memory does not grow with the
    number of calls. The first error cancels the other calls and is raised as the function raised it.
    """
    connect()
    have, gpus = ray.cluster_resources(), 0.0
    if model is not None and have.get("GPU", 0):
        gpus = GPU_SHARE if sum(f.stat().st_size for f in model.rglob("*.safetensors")) < LARGE else 1
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(function)
    limit = max(2, int(2 * have.get("CPU", 1) / cpus))
    running: list[ray.ObjectRef] = []
    try:
        for call in arguments:
            if len(running) >= limit:
                finished, running = ray.wait(running, num_returns=1)
                yield from ray.get(finished)
            running.append(remote.remote(*call))
        while running:
            finished, running = ray.wait(running, num_returns=1)
            yield from ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
