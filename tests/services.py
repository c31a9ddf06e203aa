"""Real servers for tests, each a process on a free port of loopback, and a relay that can be cut."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], health: str, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen]:
    """Run a server until the block ends; enter when `health` answers."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, f"{command[0]} did not start"
            with contextlib.suppress(OSError), urllib.request.urlopen(health, timeout=5):
                break
            time.sleep(0.2)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[int]:
    """The port of an MLflow server whose state is in `folder`."""
    port = free_port()
    store = [f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}", f"--artifacts-destination={folder / 'files'}"]
    command = [sys.executable, "-m", "mlflow", "server", f"--port={port}", "--workers=1", *store]
    with server(command, f"http://127.0.0.1:{port}/health"):
        yield port


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[int]:
    """The port of a Prefect server whose state is in `folder`."""
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host=127.0.0.1", f"--port={port}"]
    environment = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    with server(command, f"http://127.0.0.1:{port}/api/health", environment):
        yield port


@contextlib.contextmanager
def s3_server(host: str = "127.0.0.1", bucket: str = "bucket") -> Iterator[dict[str, str]]:
    """The environment with which a client reaches an S3 server that has one bucket."""
    import boto3

    port = free_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", f"--host={host}", f"--port={port}"]
    with server(command, f"{environment['AWS_ENDPOINT_URL']}/moto-api/"):
        key = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], **key).create_bucket(Bucket=bucket)
        yield environment


class Relay:
    """A port that leads to a server until it is `cut`; `swallow` lets requests through and loses the answers."""

    def __init__(self, target: int):
        self.target, self.port, self.swallow = target, free_port(), False
        self.listener: socket.socket | None = None
        self.pairs: list[socket.socket] = []
        self.mend()

    def mend(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        """Refuse connections and end those that there are."""
        assert self.listener is not None
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for end in self.pairs:
            self._close(end)
        self.pairs.clear()

    def _close(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                upstream = socket.create_connection(("127.0.0.1", self.target))
                self.pairs += [client, upstream]
                threading.Thread(target=self._pump, args=(client, upstream, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(upstream, client, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if answers and self.swallow:
                    break
                sink.sendall(data)
        self._close(source)
        self._close(sink)
