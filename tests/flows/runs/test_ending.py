"""The MLflow runs of a flow end as it does: done, failed, stopped, killed. Real flows, each in a process of its own."""

import os
import sqlite3
import subprocess
import sys

import pytest

from tests.services import prefect_server

pytestmark = pytest.mark.slow

PROGRAM = """
import os, signal, sys
from cluster.process_env import configure; configure()
from prefect import flow
from cluster.tracking.runs import end_dead
from flows.runs.ending import HOOKS
from flows.runs.stage import recorded

def sigterm(number, frame): sys.exit(128 + number)  # as `gpt2` does
signal.signal(signal.SIGTERM, sigterm)
end_dead()

@flow
def stage(how: str):
    with recorded("earlier", f"{how}-earlier", {}):
        pass
    with recorded("work", how, {}):
        if how == "failed":
            raise RuntimeError("no such document")
        if how in ("SIGTERM", "SIGKILL"):
            os.kill(os.getpid(), getattr(signal, how))
stage.with_options(**HOOKS)(sys.argv[1])
"""
REFUSED = """
from cluster.process_env import configure; configure()
from prefect import flow
from flows.runs.ending import or_cancelled
from flows.runs.stage import without_tracebacks

def work():
    raise ValueError("posts.csv has no column 'text'")

@flow
def refused():
    without_tracebacks()
    return or_cancelled(work)

state = refused(return_state=True)
print(state.type.value, state.message)
try:
    refused()
except ValueError as error:
    print("the caller gets:", error)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endings")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "refused.py").write_text(REFUSED)
    environment = {**os.environ, "GPT2_HOME": str(folder / "home"), "PYTHONPATH": os.getcwd()}
    environment |= {"PREFECT_HOME": str(folder / "prefect")}
    environment.pop("MLFLOW_TRACKING_URI", None)

    def run(how: str) -> int:
        command = [sys.executable, folder / "program.py", how]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, timeout=200).returncode

    def refused() -> tuple[str, str]:
        """What it says: (standard output, the log)."""
        command = [sys.executable, folder / "refused.py"]
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, timeout=200, text=True, check=True
        )
        return done.stdout, done.stderr

    def runs(how: str) -> list[tuple[str, str]]:
        """(name, status) of the parent and the children of the flow run of that parameter."""
        with sqlite3.connect(f"file:{folder}/home/mlflow/mlflow.db?mode=ro", uri=True) as db:
            [(parent,)] = db.execute(
                "select p.value from tags p join tags a using (run_uuid) where p.key = 'mlflow.parentRunId' "
                "and a.key = 'gpt2.artifact' and a.value = ?",
                (how,),
            )
            query = (
                "select name, status from runs where run_uuid = :parent or run_uuid in "
                "(select run_uuid from tags where key = 'mlflow.parentRunId' and value = :parent) order by start_time"
            )
            return [(name.split()[0], status) for name, status in db.execute(query, {"parent": parent})]

    with prefect_server(folder / "prefect") as port:
        environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        run.runs, run.refused = runs, refused
        yield run


@pytest.mark.parametrize(
    ("how", "status"), [("done", "FINISHED"), ("failed", "FAILED"), ("SIGTERM", "KILLED"), ("SIGKILL", "RUNNING")]
)
def test_parent_and_children_end_as_the_flow_run_does(run, how, status):
    code = run(how)
    assert (code == 0) == (how == "done")
    assert run.runs(how) == [("pipeline", status), ("earlier", "FINISHED"), ("work", status)]


def test_what_was_killed_is_told_by_the_next_run(run):
    run("done")
    assert run.runs("SIGKILL") == [("pipeline", "KILLED"), ("earlier", "FINISHED"), ("work", "KILLED")]


def test_wrong_input_is_told_in_a_sentence_alone(run):
    said, log = run.refused()
    sentence = "posts.csv has no column 'text'"
    assert said.splitlines() == [f"FAILED {sentence}", f"the caller gets: {sentence}"]
    assert sentence in log and "Traceback" not in log and "unexpected" not in log
