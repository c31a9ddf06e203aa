"""Checks of this machine, each with its finding and a remedy."""

from __future__ import annotations

import base64
import importlib.metadata
import os
import platform
import shutil
import socket
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from cluster.home import (
    MLFLOW_PASSWORD,
    PREFECT_LOGIN,
    RAY_TOKEN,
    SERVICES,
    home,
    is_locked,
    last_state,
    running,
    store,
)
from cluster.process_env import RAY_REMEDY, ray_fault
from cluster.services import databases
from cluster.services.processes import port_answers, user_of

GIB = 2**30


@dataclass(frozen=True)
class Result:
    """The outcome of one check."""

    name: str
    state: Literal["ok", "warning", "failed"]
    found: str
    remedy: str = ""


def check() -> list[Result]:
    """Run every check; none of them changes anything."""
    return [run() for run in CHECKS]


def judge(name: str, good: bool, found: str, remedy: str, hard: bool = True) -> Result:
    """Return the result of a check: ok if `good`, else failed (`hard`) or warning, with the remedy."""
    if good:
        return Result(name, "ok", found)
    return Result(name, "failed" if hard else "warning", found, remedy)


def python() -> Result:
    return judge("Python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")


def packages() -> Result:
    pinned = {"sqlalchemy": (2, 1), "fastapi": (0, 151)}
    versions, bad = [], []
    for name, below in pinned.items():
        version = importlib.metadata.version(name)
        versions.append(f"{name} {version}")
        if tuple(int(p) for p in version.split(".")[:2]) >= below:
            bad.append(name)
    remedy = f"install again with `-c constraints.txt`: Prefect's scheduler fails with this {', '.join(bad)}"
    return judge("packages", not bad, ", ".join(versions), remedy)


def cores() -> Result:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return judge("CPU", count >= 2, f"{count} cores", "use `--set cluster.num_workers=1` on one core", hard=False)


def memory() -> Result:
    free = psutil.virtual_memory().available / GIB
    return judge("memory", free >= 5, f"{free:.1f} GiB available", "free memory: the laptop preset needs 5 GiB")


def disk() -> Result:
    free = shutil.disk_usage(home()).free / GIB
    return judge("disk", free >= 5, f"{free:.1f} GiB free at {home()}", "free 5 GiB, or set GPT2_HOME to another disk")


def writable() -> Result:
    return judge("home", os.access(home(), os.W_OK), str(home()), "make it writable, or set GPT2_HOME elsewhere")


def shared_memory() -> Result:
    path = Path("/dev/shm")
    if not path.exists():
        return Result("/dev/shm", "warning", "absent", "Ray will use the disk; mount a tmpfs there")
    free = shutil.disk_usage(path).free / GIB
    return judge("/dev/shm", free >= 0.5, f"{free:.1f} GiB free", "start the container with --shm-size=2g", hard=False)


def gpu() -> Result:
    from gpt2.model.hardware import gpu_names

    return Result("GPU", "ok", ", ".join(gpu_names()) or "none: training runs on the CPU")


def compiler() -> Result:
    tools = [c for c in ("g++", "clang++", "ninja") if shutil.which(c)]
    good = "ninja" in tools and len(tools) > 1
    remedy = "needed only for `compile: true` and CPU offload: install g++ and ninja"
    return judge("C++ compiler", good, ", ".join(tools) or "none", remedy, hard=False)


def port(number: int, use: str, option: str) -> Callable[[], Result]:
    def run() -> Result:
        if any(s["address"].endswith(f":{number}") for s in (running() or {"services": []})["services"]):
            return Result(f"port {number}", "ok", f"{use}'s, started by `gpt2 up`")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                remedy = f"it may be {use} itself; else stop what uses it, or give `gpt2 up` another port ({option})"
                return Result(f"port {number}", "warning", f"in use{user_of(number)}", remedy)
        return Result(f"port {number}", "ok", f"free for {use}")

    return run


def service(name: str, variable: str, path: str, otherwise: str, login: Callable[[], str]) -> Callable[[], Result]:
    """Return the check of a server at the address in `variable`: it requests a page that needs the login
    (USER:PASSWORD)."""

    def run() -> Result:
        address = os.environ.get(variable)
        if not address:
            return Result(name, "ok", otherwise)
        if not address.startswith("http"):
            return Result(name, "ok", address)
        if variable == "PREFECT_API_URL" and "/api" not in address:
            remedy = f"set {variable}={address.rstrip('/')}/api"
            return Result(name, "failed", f"{address}: has no /api at its end", remedy)
        basic = base64.b64encode(login().encode()).decode()
        request = urllib.request.Request(address.rstrip("/") + path, headers={"Authorization": f"Basic {basic}"})
        try:
            with urllib.request.urlopen(request, timeout=3) as answer:
                return judge(name, answer.status == 200, f"{address} answers", f"look at the log of {name}")
        except urllib.error.HTTPError as error:
            remedy = f"set {LOGINS[variable]}" if error.code == 401 else f"look at the log of {name}"
            return Result(name, "failed", f"{address}: {error}", remedy)
        except OSError as error:
            if isinstance(getattr(error, "reason", error), ssl.SSLError):
                return Result(name, "warning", f"{address}: {error}", "its certificate must be one that clients trust")
            remedy = f"start {name}, or unset {variable} to use the local one"
            return Result(name, "failed", f"{address}: {error}", remedy)

    return run


LOGINS = {
    "PREFECT_API_URL": "PREFECT_API_AUTH_STRING",
    "MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
}
"""The variables with the login, by the variable with the server's address."""


def prefect_login() -> str:
    return os.environ.get("PREFECT_API_AUTH_STRING", "")


def mlflow_login() -> str:
    return f"{os.environ.get('MLFLOW_TRACKING_USERNAME', '')}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"


def postgres() -> Result:
    if databases.ADDRESS not in os.environ:
        return Result("PostgreSQL", "ok", "not used: SQLite files in the home")
    try:
        databases.check()
    except ValueError as error:
        return Result("PostgreSQL", "failed", "not usable for `gpt2 up --profile postgres`", str(error))
    return Result("PostgreSQL", "ok", f"{databases.address().host} answers, and both databases are there")


def secrets() -> Result:
    """Check that only their owner can read the files with secrets: ours, and the token that Ray may write."""
    files = [*(home() / SERVICES).glob("*"), Path.home() / ".ray" / "auth_token"]
    held = [p for p in files if p.name in ("auth_token", RAY_TOKEN, PREFECT_LOGIN, MLFLOW_PASSWORD) and p.exists()]
    open_ = " ".join(str(p) for p in held if p.stat().st_mode & 0o077)
    return judge("secrets", not open_, open_ or "no other user can read them", f"chmod 600 {open_}", hard=False)


def ray_cluster() -> Result:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Result("Ray", "ok", "local, started with a run")
    if fault := ray_fault(address):
        return Result("Ray", "failed", fault, RAY_REMEDY)
    if "GPT2_STORE" not in os.environ:
        return Result("Ray", "ok", f"{address} answers")
    from cluster.connect import alive, connect, disconnect  # Ray, which takes seconds to load

    try:
        connect()  # it compares the nodes with this machine
        nodes = len(alive())
    except ValueError as error:
        found, _, remedy = str(error).partition("; ")
        return Result("Ray", "failed", found, remedy)
    finally:
        disconnect()
    return Result("Ray", "ok", f"{address} answers; code, Python, store and clocks agree on all {nodes} nodes")


def artifacts() -> Result:
    try:
        return Result("store", "ok", f"{store().place} answers")
    except ValueError as error:
        found, _, remedy = str(error).partition("; ")
        return Result("store", "failed", found, remedy)


def services() -> Result:
    state = last_state()
    if state is None:
        return Result("gpt2 up", "ok", "not running")
    if not is_locked():
        return Result("gpt2 up", "failed", "was killed", "run `gpt2 down` to end its remaining processes")
    dead = [s["title"] for s in state["services"] if not answers(s)]
    logs = ", ".join(s["log"] for s in state["services"] if s["title"] in dead)
    return judge(
        "gpt2 up", not dead, f"running, {', '.join(dead) or 'all'} {'dead' if dead else 'answer'}", f"see {logs}"
    )


def answers(service: dict[str, Any]) -> bool:
    """Return whether something listens at a service's address; without a port, whether its process is alive."""
    _, _, port = service["address"].rpartition(":")
    return port_answers("127.0.0.1", int(port)) if port.isdigit() else psutil.pid_exists(service["pid"])


MLFLOW_ASKS = "/api/2.0/mlflow/experiments/search?max_results=1"

SERVERS: tuple[Callable[[], Result], ...] = (
    service("Prefect", "PREFECT_API_URL", "/admin/version", "embedded, started with a run", prefect_login),
    service("MLflow", "MLFLOW_TRACKING_URI", MLFLOW_ASKS, "embedded: a SQLite file in the home", mlflow_login),
    ray_cluster,
)
TOKENS = ("PREFECT_API_KEY", "MLFLOW_TRACKING_TOKEN")
"""Variables with logins of another kind, with which these checks can't ask."""


def require_servers() -> None:
    """Raise `ValueError` for a server that the environment names and that does not answer: clients wait for minutes."""
    if any(name in os.environ for name in TOKENS):
        return
    for result in (check() for check in SERVERS):
        if result.state == "failed":
            raise ValueError(f"{result.name} at {result.found}; {result.remedy}")


CHECKS: tuple[Callable[[], Result], ...] = (
    python,
    packages,
    cores,
    memory,
    disk,
    writable,
    artifacts,
    shared_memory,
    gpu,
    compiler,
    port(4200, "Prefect", "--prefect-port"),
    port(5000, "MLflow", "--mlflow-port"),
    port(8265, "Ray's dashboard", "--ray-dashboard-port"),
    *SERVERS,
    postgres,
    secrets,
    services,
)
