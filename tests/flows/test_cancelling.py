"""A flow run that is cancelled while its training saves is told as cancelled, and never as crashed."""

import os
import subprocess
import sys
import time

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Cancelling

from tests.services import prefect_server

pytestmark = pytest.mark.slow

PROGRAM = """
import time
from pathlib import Path
from prefect import flow
from cluster.training.stopping import politely, stopping
from flows.runs.ending import or_cancelled

def work():
    stop = Path("stop")
    with politely(), stopping(stop) as stopped:
        Path("working").touch()
        while not stop.exists():
            time.sleep(0.1)
        Path("saved").touch()
        stopped()

@flow
def patient():
    return or_cancelled(work)

if __name__ == "__main__":
    patient.serve("patient", pause_on_shutdown=False)
"""


def until(done, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := done()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def test_cancelled_and_never_crashed(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    with prefect_server(tmp_path / "prefect") as port:
        address = f"http://127.0.0.1:{port}/api"
        environment = {**os.environ, "PREFECT_API_URL": address, "PREFECT_HOME": str(tmp_path / "prefect")}
        environment |= {"PYTHONPATH": os.getcwd(), "GPT2_HOME": str(tmp_path / "home")}
        command = [sys.executable, "program.py"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        runner = subprocess.Popen(command, cwd=tmp_path, env=environment, **quiet)
        try:
            with SyncPrefectClient(address) as client:
                deployments = until(client.read_deployments)
                id = client.create_flow_run_from_deployment(deployments[0].id).id
                until((tmp_path / "working").exists)
                client.set_flow_run_state(id, Cancelling())
                until(lambda: client.read_flow_run(id).state.is_final())
                time.sleep(5)  # for what the runner adds
                states = [state.type.value for state in client.read_flow_run_states(id)]
        finally:
            runner.terminate()
            runner.wait(60)
    assert (tmp_path / "saved").exists()
    assert "CRASHED" not in states and states[-1] == "CANCELLED", states
