"""Connect to Ray: to the cluster that `RAY_ADDRESS` names, or to a local one that ends with this process."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import psutil
import ray
from ray.job_config import JobConfig

from cluster.config import ClusterConfig
from cluster.home import ray_folder
from cluster.orphans import Guard, ending_with_this_process
from cluster.process_env import RAY_REMEDY, ray_fault

OBJECT_STORE_BYTES = 256 * 1024**2  # tokens and weights travel through files, not through the object store


QUIETLY: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}


class NotEnoughResources(ValueError):
    """Raised where the cluster has too few CPUs or GPUs for a job."""


class SearchAsWeDo(JobConfig):
    """A job whose workers look for modules where this process does. Ray would put the working directory first, which
    may hold a `cluster.py`."""

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=[] if sys.flags.safe_path else [os.path.abspath(sys.path[0])])

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # so Ray adds nothing itself


class Keeper(threading.Thread):
    """Thread that holds the connection to Ray. Linux ends Ray's processes with the thread that started them."""

    def __init__(self) -> None:
        super().__init__(daemon=True, name="ray-keeper")
        self.ready: Future[None] = Future()
        self.leave = threading.Event()
        self.guard: Guard | None = None

    def run(self) -> None:
        try:
            self.guard = start_or_attach()
        except BaseException as error:
            self.ready.set_exception(error)
            return
        self.ready.set_result(None)
        self.leave.wait()
        ray.shutdown()


_keeper: Keeper | None = None
_dashboard: str | None = None
_changing = threading.Lock()


def start_or_attach() -> Guard | None:
    """Connect to Ray; return the guard that ends it with this process if Ray is local, else None.

    Raises `ValueError` where nothing listens at RAY_ADDRESS.
    """
    global _dashboard
    if address := os.environ.get("RAY_ADDRESS"):
        if fault := ray_fault(address):
            raise ValueError(f"RAY_ADDRESS={fault}; {RAY_REMEDY}")
        client = address.startswith("ray://")  # it would send the class to a server, which may not have it
        job: dict[str, Any] = {} if client else {"job_config": SearchAsWeDo()}
        _dashboard = ray.init(address=address, **job, **QUIETLY).dashboard_url or None
        return None
    return start_local(include_dashboard=False)


def start_local(**options: Any) -> Guard:
    """Start Ray on this machine, on loopback; return the guard that ends it with this process.

    Ray ends most of its processes itself. The agents of a killed driver would live for another minute.
    """
    # By default, the processes of a local Ray whose head died look for it for a minute.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    with ending_with_this_process() as guard:
        ray.init(
            address="local",
            object_store_memory=OBJECT_STORE_BYTES,
            num_cpus=psutil.cpu_count() or 1,
            _temp_dir=str(ray_folder()),
            job_config=SearchAsWeDo(),
            **options,
            **QUIETLY,
        )
    return guard


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


def spread(function: Callable[..., Any], arguments: Iterable[tuple], cpus: float = 1) -> Iterator[Any]:
    """Call `function` on each tuple of arguments, on the cluster's workers; yield each result as it arrives.

    At most two calls per core are in flight, so memory does not grow with the number of calls. The first
    error cancels the other calls and is raised as the function raised it.
    """
    connect()
    remote = ray.remote(num_cpus=cpus, max_retries=2)(function)
    limit = max(2, int(2 * ray.cluster_resources().get("CPU", 1) / cpus))
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
