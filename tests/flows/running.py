"""A home whose services are up, for tests."""

import base64
import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
from prefect.client.orchestration import SyncPrefectClient

from cluster.orphans import MARK

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


def free_ports(count: int) -> list[int]:
    """Below the range that Ray gives its workers, so that nothing else takes them meanwhile."""
    found: list[int] = []
    for port in range(4300 + os.getpid() % 500, 9900):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


class Up:
    """A home whose services are up."""

    def __init__(self, folder: Path, changes: list[str]):
        self.folder, self.changes = folder, changes
        self.home = folder / "home"
        self.prefect, self.mlflow, self.ray, self.dashboard = free_ports(4)
        self.options = [
            *("--prefect-port", str(self.prefect), "--mlflow-port", str(self.mlflow)),
            *("--ray-port", str(self.ray), "--ray-dashboard-port", str(self.dashboard)),
        ]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_TRACKING", "RAY_A"))}
        self.environment = {**kept, "GPT2_HOME": str(self.home), "COLUMNS": "200"}

    def gpt2(self, *words: str, code: int | None = 0, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=self.environment | more,
            timeout=600,
        )
        assert code is None or done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout + done.stderr

    def secret(self, name: str) -> str:
        return (self.home / "services" / name).read_text()

    @property
    def login(self) -> str:
        return self.secret("prefect-login")

    @property
    def state(self) -> dict:
        return json.loads((self.home / "services" / "state.json").read_text())

    @property
    def client(self) -> SyncPrefectClient:
        return SyncPrefectClient(f"http://127.0.0.1:{self.prefect}/api", auth_string=self.login)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those that `up` and its services started, with one of the words in the command line."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get("GPT2_HOME") == str(self.home) and MARK in process.environ()
                line = " ".join(process.cmdline())
                if mine and (not words or any(word in line for word in words)):
                    found.append(process)
        return found

    def press(self, deployment: str, *changes: str, **parameters) -> str:
        """What the form's button does; the run's id."""
        given = {"preset": "smoke", "changes": [*self.changes, *changes], **parameters}
        with self.client as client:
            found = client.read_deployment_by_name(f"gpt2/{deployment}")
            return str(client.create_flow_run_from_deployment(found.id, parameters=given).id)

    def run(self, id: str):
        with self.client as client:
            return client.read_flow_run(id)

    def until(self, done, what: str, seconds: float = 300):
        deadline = time.monotonic() + seconds
        while not (value := done()):
            assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
            time.sleep(0.5)
        return value

    def until_ended(self, id: str, seconds: float = 600):
        """The run, once its state is final."""
        return self.until(lambda: (r := self.run(id)).state.type.value in ENDED and r, f"the end of {id}", seconds)

    def checkpoints(self) -> list[Path]:
        return sorted(self.home.glob("store/.partial/base-*/_checkpoints/step-*/manifest.json"))

    def reached(self) -> int:
        """The step of the last checkpoint."""
        return max((int(p.parent.name.removeprefix("step-")) for p in self.checkpoints()), default=0)

    def until_training(self, id: str, beyond: int = 0) -> psutil.Process:
        """The process of the run, once it has written a checkpoint after so many."""

        def writing():
            assert self.run(id).state.type.value not in ENDED, self.run(id).state
            return self.reached() > beyond

        self.until(writing, "a checkpoint", 400)
        return psutil.Process(self.run(id).infrastructure_pid and int(self.run(id).infrastructure_pid.split(":")[-1]))

    def mlflow_runs(self, name: str) -> list[str]:
        """States of the MLflow runs of that name."""
        with sqlite3.connect(f"file:{self.home}/mlflow/mlflow.db?mode=ro", uri=True) as db:
            return [s for (s,) in db.execute("select status from runs where name = ?", (name,))]


def basic(login: str) -> str:
    """The header's value for USER:PASSWORD."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def answer(url: str, data: dict | None = None, method: str | None = None, **headers: str) -> int:
    """The status of the answer."""
    body = None if data is None else json.dumps(data).encode()
    names = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, names, method=method), timeout=20) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code
