"""Services as processes of one `gpt2 up`: started, watched, listed in a file, and stopped with all their children.

All that an `up` starts has the mark of its guard (`cluster.orphans`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import psutil

from cluster.home import home, last_state, services
from cluster.orphans import MARK, Guard, ask_to_stop, marked, stop
from gpt2.store.artifact import write_atomically

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
