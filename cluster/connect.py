"""Connect to Ray: to the cluster that `RAY_ADDRESS` names, or to a local one that ends with this process."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config import ClusterConfig
from cluster.home import ray_folder, store
from cluster.orphans import Guard, ending_with_this_process
from cluster.process_env import RAY_REMEDY, ray_fault
from gpt2.store.artifact import Store, digest, file_sha256
from gpt2.store.code import PROJECT, module_files

OBJECT_STORE_BYTES = 256 * 1024**2  # tokens and weights travel through files, not through the object store


QUIETLY: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}


SHARED = ("GPT2_STORE", "MLFLOW_TRACKING_URI")
"""Addresses that workers on other machines get from the driver. Credentials they have of their own."""


SAME = {
    "Python": "use the same version on all nodes",
    "code": "install the same version of gpt2-pipeline on all nodes, and start Ray there again",
    "store": "make GPT2_STORE reachable from all nodes: s3:// with their own credentials, or a common folder",
}
"""Facts on a node that must be those of the driver, and the remedy."""
CLOCKS = 30.0
"""Seconds that the clocks of nodes may differ."""
NODE_PATIENCE = 60.0
"""Seconds that a node may take to answer: its first process has to start."""


STARTS = 3
"""Number of tries to start a local Ray, which on a busy machine fails."""


class NotEnoughResources(ValueError):
    """Raised where the cluster has too few CPUs or GPUs for a job."""


class SearchAsWeDo(JobConfig):
    """A job whose workers look for modules where this process does. Ray would put the working directory first, which
    may hold a `cluster.py`."""

    def __init__(self) -> None:
        super().__init__(_py_driver_sys_path=[os.path.abspath(path) for path in sys.path])

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
        if self.guard is not None:
            self.guard.release()


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
        shared = {name: os.environ[name] for name in SHARED if name in os.environ and "GPT2_STORE" in os.environ}
        job: dict[str, Any] = {"runtime_env": {"env_vars": shared}} if shared else {}
        if not address.startswith("ray://"):  # a client would send the class to a server, which may not have it
            job["job_config"] = SearchAsWeDo()
        _dashboard = ray.init(address=address, **job, **QUIETLY).dashboard_url or None
        if "GPT2_STORE" in os.environ and (fault := unfit_node()):
            raise ValueError(fault)
        return None
    return start_local(include_dashboard=False)


def alive() -> list[dict[str, Any]]:
    """Return Ray's facts on the nodes that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def node_facts() -> dict[str, Any]:
    """Return what must be the same on all nodes, and the time (s since 1970), of the node where it runs."""
    files = {name: file_sha256(path) for package in PROJECT for name, path in module_files(package)}
    try:
        place = store()
        seen = place.root.name if place.distant else place.root.stat().st_ino
    except (OSError, ValueError) as error:
        seen = f"{type(error).__name__}: {error}"
    return {"Python": platform.python_version(), "code": digest(files)[:16], "store": seen, "time": time.time()}


def unfit_node() -> str | None:
    """Return why a node of the cluster can't work for this process, with the remedy; None if all can."""
    own, begun = node_facts(), time.time()
    asked = {
        node["NodeManagerAddress"]: ray.remote(num_cpus=0)(node_facts)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in alive()
    }
    for address, answer in asked.items():
        try:
            facts = ray.get(answer, timeout=NODE_PATIENCE)
        except Exception as error:  # whatever a node without our code raises
            return f"node {address}: {str(error).strip().splitlines()[-1]}; install the same gpt2-pipeline there"
        for what, remedy in SAME.items():
            if facts[what] != own[what]:
                return f"node {address}: its {what} is {facts[what]}, here it is {own[what]}; {remedy}"
        if not begun - CLOCKS < facts["time"] < time.time() + CLOCKS:
            return f"node {address}: its clock is more than {CLOCKS:g} s from the one here; set the clocks by NTP"
    return None


def start_local(**options: Any) -> Guard:
    """Start Ray on this machine, on loopback; return the guard that ends it with this process.

    Ray ends most of its processes itself. The agents of a killed driver would live for another minute.
    """
    # By default, the processes of a local Ray whose head died look for it for a minute.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    with ending_with_this_process() as guard:
        start_ray(STARTS, **options)
    guard.cover(ray.get_runtime_context().get_session_name())
    return guard


def start_ray(tries: int, **options: Any) -> None:
    """Start a local Ray; `ValueError` if it starts at none of the tries, as on a machine that is too busy."""
    try:
        ray.init(
            address="local",
            object_store_memory=OBJECT_STORE_BYTES,
            num_cpus=psutil.cpu_count() or 1,
            _temp_dir=str(ray_folder()),
            job_config=SearchAsWeDo(),
            **options,
            **QUIETLY,
        )
    except Exception as error:  # Ray has no type of its own for this, and its limit of 30 s is fixed
        if "timed out during startup" not in str(error):
            raise
        if tries == 1:
            raise ValueError(f"Ray did not start in {STARTS} times 30 s: the machine is busy; run it later") from error
        start_ray(tries - 1, **options)


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


def spread_into(
    out: Path, place: Store, function: Callable[..., Any], arguments: tuple, model: Path | None = None
) -> Any:
    """Call `function(*arguments, FOLDER)` on a worker and return its result; its files are in the folder `out` then.

    They come through the store if workers do not see `out`. `model` is as in `spread`.
    """
    result, name = next(iter(spread(_into, [(out, place, function, arguments)], model=model)))
    if name is not None:
        shutil.copytree(place.locate(name), out, dirs_exist_ok=True)
        place.forget(name)
    return result


def _into(out: Path, place: Store, function: Callable[..., Any], arguments: tuple) -> tuple[Any, str | None]:
    if not place.distant:
        return function(*arguments, out), None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "out"
        folder.mkdir()
        return function(*arguments, folder), place.hand(folder)
