"""Prefect's and MLflow's servers go away while a model is trained, for 5, 60 and 300 seconds: nothing is lost."""

import json
import subprocess
import time
import urllib.request

import pytest

from gpt2.training.journal import read_journal
from tests.flows.test_pipeline import Home
from tests.services import Relay, mlflow_server, prefect_server

pytestmark = pytest.mark.slow
STEPS = 150


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    with mlflow_server(folder) as mlflow, prefect_server(folder / "prefect") as prefect:
        yield {"MLFLOW_TRACKING_URI": mlflow, "PREFECT_API_URL": prefect}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [5, 60, 300])
def test_training_goes_on_and_all_is_there_afterwards(servers, tmp_path, small_changes, seconds):
    relays = {name: Relay(port) for name, port in servers.items()}
    addresses = {name: f"http://127.0.0.1:{relay.port}" for name, relay in relays.items()}
    addresses["PREFECT_API_URL"] += "/api"
    home = Home(tmp_path, [*small_changes, f"pretrain.steps={STEPS}", "pretrain.epochs=1000", "pretrain.log_every=1"])
    home.environment |= addresses
    home.call(home.command("run", "tokenize"))
    log = tmp_path / "log"
    with open(log, "w") as stream:
        process = subprocess.Popen(
            home.command("run", "pretrain"), cwd=tmp_path, env=home.environment, stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        before = steps(tmp_path)
        while before < 20:
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)
            before = steps(tmp_path)
        for relay in relays.values():
            relay.cut()
        time.sleep(seconds)
        during = steps(tmp_path)
        for relay in relays.values():
            relay.mend()
        assert process.wait(timeout=800) == 0, log.read_text()[-6000:]
    finally:
        process.kill()
    said = log.read_text()
    print(said)
    assert "Traceback" not in said
    assert during > before
    [journal] = [read_journal(p) for p in tmp_path.glob("home/store/base/*/journal.jsonl")]
    wanted = [[r["step"], r["loss"]] for r in journal if "loss" in r]
    assert [step for step, _ in wanted] == list(range(1, STEPS + 1))
    program = f"""
import json
from mlflow import MlflowClient
c = MlflowClient({addresses["MLFLOW_TRACKING_URI"]!r})
[e] = [e for e in c.search_experiments() if e.name == "gpt2-pipeline"]
[run] = [r for r in c.search_runs([e.experiment_id], "run_name = 'pretrain'", max_results=1)]
print(json.dumps([[m.step, m.value] for m in c.get_metric_history(run.info.run_id, "loss")]))
"""
    assert json.loads(home.python(program, tmp_path).splitlines()[-1]) == wanted
    for relay in relays.values():
        relay.cut()
    assert states(servers["PREFECT_API_URL"]) == {"COMPLETED"}


def steps(folder) -> int:
    """The step that pretraining has reached."""
    journals = [
        *folder.glob("home/store/.partial/base-*/journal.jsonl"),
        *folder.glob("home/store/base/*/journal.jsonl"),
    ]
    return max((r["step"] for p in journals for r in read_journal(p)), default=0)


def states(port: int) -> set[str]:
    """Of all flow and task runs that the server knows."""
    found = set()
    for kind in ("flow_runs", "task_runs"):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/{kind}/filter", b"{}", {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found |= {run["state_type"] for run in json.load(answer)}
    return found
