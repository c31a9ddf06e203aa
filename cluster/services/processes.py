"""Services as processes of one `gpt2 up`: started, watched, listed in a file, and stopped with all their children.

All that an `up` starts has the mark of its guard (`cluster.orphans`). MLflow's server and a Ray head are such services,
each on loopback; `python -m cluster.services.processes PORT DASHBOARD_PORT` is the process of the Ray head, until
SIGTERM.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import psutil

from cluster.home import MLFLOW_PASSWORD, USER, home, last_state, ray_token, secret_file, services
from cluster.orphans import MARK, Guard, ask_to_stop, marked, stop
from cluster.process_env import configure
from gpt2.store.artifact import write_atomically

if TYPE_CHECKING:
    from cluster.services.databases import Profile

LOOPBACK = "127.0.0.1"

RESTARTS, WITHIN = 3, 600
"""A service that ends more than `RESTARTS` times within `WITHIN` seconds is not started again."""


class ServiceFailed(RuntimeError):
    """Raised where a service does not start, or ends again and again. The message has the end of its log."""


@dataclass(frozen=True)
class Service:
    """A service: one process that `gpt2 up` keeps alive."""

    name: str
    title: str
    command: tuple[str, ...]
    address: str
    """The address for users."""
    answers: Callable[[], bool]
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    """The ports that it listens on, each by the option that sets it."""
    works: tuple[str, ...] = ()
    """Words in the command lines of the processes that it starts as work, which are stopped first."""

    @property
    def log(self) -> Path:
        return logs() / f"{self.name}.log"


def logs() -> Path:
    """Return the folder of the services' logs, which is made on first use."""
    folder = home() / "logs"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def http_answers(url: str) -> bool:
    """Return whether the address answers, with anything but a server error (5xx)."""
    try:
        with urllib.request.urlopen(url, timeout=3):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False


def port_answers(host: str, port: int) -> bool:
    """Return whether something listens at the port."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=3):
        return True
    return False


def check_ports(wanted: Iterable[Service], host: str) -> None:
    """Raise `ValueError` for a port that is in use, with the process that uses it if that is known."""
    for service in wanted:
        for option, port in service.ports.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise ValueError(
                        f"{option}={port}: {service.title} can't use this port: {error.strerror}{user_of(port)}; "
                        f"stop what uses it, or choose another with {option}"
                    ) from None


def user_of(port: int) -> str:
    """Return the user of a port as ` (process PID, COMMAND)`; "" if the system does not say."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            address: Any = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address.port == port and connection.pid:
                return f" (process {connection.pid}, {psutil.Process(connection.pid).name()})"
    return ""


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Hold the lock of the one `up` of this home; raises `ValueError` if another `up` holds it."""
    with open(services() / "lock", "w") as handle:
        for attempt in range(20):  # a process that only checks the lock holds it for a moment
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == 19:
                    raise ValueError(
                        f"{home()}: `gpt2 up` is running already; `gpt2 status` shows it, `gpt2 down` stops it"
                    ) from None
                time.sleep(0.05)
        yield


class Running:
    """The running services of one `up`."""

    def __init__(self, environment: Mapping[str, Mapping[str, str]], secrets: Mapping[str, Mapping[str, str]]):
        self.guard = Guard()
        self.id = self.guard.id
        self.started = time.time()
        self.environment, self.secrets = environment, secrets
        self.services: dict[str, Service] = {}
        self.processes: dict[str, subprocess.Popen] = {}
        self.ends: dict[str, list[float]] = {}

    def start(self, service: Service) -> None:
        """Start a service as a process with its own session; its output goes to its log."""
        environment = {**os.environ, **service.environment, MARK: self.id}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        with open(os.open(service.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as log:
            log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} started by gpt2 up\n")
            log.flush()
            self.processes[service.name] = subprocess.Popen(
                service.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.services[service.name] = service
        self.write(ready=False)

    def wait(self, name: str, seconds: float) -> None:
        """Wait until the service answers; raises `ServiceFailed` if it ends, or does not answer in time."""
        service, deadline = self.services[name], time.monotonic() + seconds
        while not service.answers():
            if self.processes[name].poll() is not None:
                raise ServiceFailed(f"{service.title} ended while it started. {tail(service.log)}")
            if time.monotonic() > deadline:
                raise ServiceFailed(f"{service.title} does not answer after {seconds:.0f} s. {tail(service.log)}")
            time.sleep(0.2)

    def write(self, ready: bool) -> None:
        """Write the state for other commands (`cluster.home.last_state`). It has no secrets, only the names of their
        files."""
        state = {
            "id": self.id,
            "pid": os.getpid(),
            "since": self.started,
            "ready": ready,
            "environment": self.environment,
            "secrets": self.secrets,
            "works": [word for service in self.services.values() for word in service.works],
            "services": [
                {"name": n, "title": s.title, "address": s.address, "log": str(s.log), "pid": self.processes[n].pid}
                for n, s in self.services.items()
            ],
        }
        write_atomically(services() / "state.json", json.dumps(state, indent=1).encode())

    def mend(self, say: Callable[[str], None]) -> None:
        """Restart services that have ended; raises `ServiceFailed` if one ends too often."""
        for name, process in list(self.processes.items()):
            if process.poll() is None:
                continue
            service = self.services[name]
            recent = [t for t in self.ends.get(name, []) if time.monotonic() - t < WITHIN]
            self.ends[name] = [*recent, time.monotonic()]
            how = f"was killed by signal {-process.returncode}" if process.returncode < 0 else "ended"
            if len(recent) >= RESTARTS:
                raise ServiceFailed(f"{service.title} {how} for the {len(recent) + 1}th time. {tail(service.log)}")
            say(f"{service.title} {how}; starting it again (log: {service.log})")
            if service.works:
                ask_to_stop(marked(self.id, service.works), 25)
            self.start(service)
            self.wait(name, 120)
            self.write(ready=True)
            say(f"{service.title} answers again")

    def stop(self) -> None:
        """Stop all processes that this `up` started."""
        stop({"id": self.id, **(last_state() or {"works": []})})
        for process in self.processes.values():
            process.wait()


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log, for a message."""
    with contextlib.suppress(OSError):
        return f"Its log, {log}, ends with:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return f"Its log is {log}."


def follow(out: TextIO, path: Path, process: subprocess.Popen, done: Callable[[], bool]) -> None:
    """Copy the output of a process from the file `path` to `out`, until the process ends or `done()` is true."""
    with open(path) as stream:
        while True:
            finished = process.poll() is not None or done()
            out.write(stream.read())
            out.flush()
            if finished:
                return
            time.sleep(0.2)


def mlflow(port: int, profile: Profile = "sqlite") -> Service:
    """Return the service of MLflow's tracking server and registry, which require the home's login.

    Artifacts lie in the home. Clients on this machine read them directly; other clients get them from the server.
    """
    from cluster.services.databases import mlflow_url  # loads SQLAlchemy

    folder = home() / "mlflow"
    folder.mkdir(exist_ok=True)
    artifacts = (folder / "artifacts").as_uri()
    origins = f"http://{LOOPBACK}:{port},http://localhost:{port}"
    options = {
        "app-name": "basic-auth",
        "host": LOOPBACK,
        "port": str(port),
        "workers": "1",
        "default-artifact-root": artifacts,
        "artifacts-destination": artifacts,
        "allowed-hosts": f"{LOOPBACK}:{port},localhost:{port}",
        "cors-allowed-origins": origins,
        "x-frame-options": "DENY",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    address = f"http://{LOOPBACK}:{port}"
    return Service(
        "mlflow",
        "MLflow",
        (sys.executable, "-m", "mlflow", "server", *words),
        address,
        lambda: http_answers(f"{address}/health"),
        environment={
            "MLFLOW_BACKEND_STORE_URI": mlflow_url() if profile == "postgres" else f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_AUTH_CONFIG_PATH": str(logins()),
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": secret_file(MLFLOW_PASSWORD).read_text(),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        },
        ports={"--mlflow-port": port},
    )


def logins() -> Path:
    """Write MLflow's login settings; return their path. Only the home's user can log in until they add others.

    The database of logins lies beside the password, because MLflow keeps the password of its first start.
    """
    lines = (
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        f"database_uri = sqlite:///{services() / 'mlflow-logins.db'}".replace("%", "%%"),
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds = 60",  # hashing a password takes longer than most requests
    )
    (services() / "mlflow-logins.db").touch(0o600)
    path = services() / "mlflow-logins.ini"
    write_atomically(path, "\n".join(lines).encode())
    return path


def ray(port: int, dashboard_port: int) -> Service:
    """Return the service of a Ray head with this machine's cores, which requires the home's token."""
    address = f"http://{LOOPBACK}:{dashboard_port}"
    return Service(
        "ray",
        "Ray",
        (sys.executable, "-m", "cluster.services.processes", str(port), str(dashboard_port)),
        address,
        lambda: port_answers(LOOPBACK, port) and http_answers(f"{address}/api/version"),
        environment=ray_token(),
        ports={"--ray-port": port, "--ray-dashboard-port": dashboard_port},
    )


def ray_head() -> None:
    """Start the head, print its address, and wait for SIGTERM. All its processes end with this one."""
    from cluster.connect import start_local  # loads Ray

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    configure()
    os.environ["RAY_GCS_SERVER_PORT"] = sys.argv[1]
    guard = start_local(include_dashboard=True, dashboard_host=LOOPBACK, dashboard_port=int(sys.argv[2]))
    print(f"Ray's head answers at {LOOPBACK}:{sys.argv[1]}", flush=True)
    signal.pause()
    assert guard


if __name__ == "__main__":
    ray_head()
