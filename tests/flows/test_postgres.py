"""`gpt2 up --profile postgres` with a real PostgreSQL server, which the test installs, starts and stops."""

import os
import subprocess
import sys

import psycopg2
import pytest

from cluster.services import databases
from tests.flows.running import Up
from tests.postgres import PASSWORD, USER, postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PROMOTIONS = """
import sys
from cluster.process_env import configure; configure()
from cluster.services import databases
from tests.cluster.promoters import rounds
if __name__ == "__main__":
    rounds(databases.mlflow_url(), "gpt2-turns", 1, False, 5)
    codes = rounds(databases.mlflow_url(), "gpt2-kills", 1, True, 6)
    print(codes.count(-9), "of", len(codes), "were killed")
"""


@pytest.fixture(scope="module")
def server():
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def up(server, tmp_path_factory, small_changes):
    server.do(*(f"CREATE DATABASE {name} OWNER {USER}" for name in (databases.PREFECT, databases.MLFLOW)))
    up = Up(tmp_path_factory.mktemp("up"), small_changes)
    up.environment[databases.ADDRESS] = server.url()
    up.environment["PYTHONPATH"] = os.getcwd()
    try:
        up.gpt2("up", "--detach", "--profile", "postgres", "--at-once", "20", *up.options)
        yield up
    finally:
        up.gpt2("down", code=None)
    assert not up.processes()


def test_what_is_wrong_is_said_before_anything_starts(server, tmp_path, monkeypatch):
    """Before the databases are there."""
    home = Up(tmp_path, [])

    def refused(**variables: str) -> str:
        return home.gpt2("up", "--profile", "postgres", *home.options, code=2, **variables)

    assert "needs the address of a PostgreSQL server: GPT2_POSTGRES_URL=" in refused()
    gone = refused(GPT2_POSTGRES_URL=f"postgresql://{USER}:{PASSWORD}@127.0.0.1:9")
    assert "no PostgreSQL at 127.0.0.1:9 (connection refused)" in gone and PASSWORD not in gone
    assert "refuses 'gpt2' (password authentication failed" in refused(GPT2_POSTGRES_URL=server.url("guessed"))
    assert "CREATE DATABASE gpt2_prefect OWNER gpt2" in refused(GPT2_POSTGRES_URL=server.url())
    names = (databases.PREFECT, databases.MLFLOW)
    server.do(*(f"CREATE DATABASE {name}" for name in names))
    try:
        assert "ALTER DATABASE gpt2_prefect OWNER TO gpt2" in refused(GPT2_POSTGRES_URL=server.url())
    finally:
        server.do(*(f"DROP DATABASE {name}" for name in names))
    assert not home.processes()


def ask(server, database: str, query: str):
    with psycopg2.connect(f"{server.url()}/{database}") as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def test_runs_are_recorded_there_and_not_in_the_home(up, server):
    run = up.until_ended(up.press("tokenize"))
    assert run.state.type.value == "COMPLETED", run.state
    assert (run.name,) in ask(server, databases.PREFECT, "select name from flow_run where state_type = 'COMPLETED'")
    runs = dict(ask(server, databases.MLFLOW, "select name, status from runs"))
    assert runs["encode"] == "FINISHED" and set(runs.values()) == {"FINISHED"}
    assert not (up.home / "mlflow" / "mlflow.db").exists() and not (up.home / "prefect" / "prefect.db").exists()
    with up.client as client:
        assert client.read_work_pool("gpt2").concurrency_limit == 20


def test_eight_promoters_at_once(up):
    program = up.folder / "program.py"
    program.write_text(PROMOTIONS)
    done = subprocess.run(
        [sys.executable, program], env=up.environment, text=True, capture_output=True, timeout=400, check=False
    )
    assert done.returncode == 0 and "were killed" in done.stdout, done.stderr[-3000:]
    assert "gpt2-turns" in up.gpt2("models")


def test_the_password_is_nowhere(up):
    for file in (p for p in up.home.rglob("*") if p.is_file()):
        assert PASSWORD.encode() not in file.read_bytes(), file
    for process in up.processes():
        assert PASSWORD not in " ".join(process.cmdline())
    for process in up.processes("prefect worker", "cluster.services.processes", "ray::"):
        assert PASSWORD not in str(process.environ())
