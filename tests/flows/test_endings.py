"""A single stage's MLflow runs end as it does: done, failed, stopped, killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("endings")


def start(home, stage, changes, *more):
    environment = {**os.environ, "GPT2_HOME": str(home / "home")}
    for name in ("PREFECT_HOME", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    words = [w for change in (*changes, *more) for w in ("--set", change)]
    command = [sys.executable, "-m", "flows.cli", "run", stage, "--preset", "smoke", *words]
    return subprocess.Popen(command, env=environment, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def runs(home):
    """(name, status) of each MLflow run, the earliest first."""
    with sqlite3.connect(f"file:{home}/home/mlflow/mlflow.db?mode=ro", uri=True) as db:
        return [(n.split()[0], s) for n, s in db.execute("select name, status from runs order by start_time")]


def until_training(home, process):
    deadline = time.monotonic() + 300
    while not list(home.glob("home/store/.partial/base-*/_checkpoints/step-*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def test_a_stage_that_is_done_and_one_that_fails(home, small_changes):
    assert start(home, "tokenize", small_changes).wait(300) == 0
    assert set(runs(home)) == {("pipeline", "FINISHED"), ("tokenize", "FINISHED")}
    bad = home / "bad.jsonl"
    bad.write_text("no json\n" * 40)
    before = len(runs(home))
    assert start(home, "tokenize", small_changes, f"corpus.sources=[{bad}]").wait(300) != 0
    assert set(runs(home)[before:]) == {("pipeline", "FAILED"), ("tokenize", "FAILED")}


def test_a_stage_that_is_stopped_or_killed(home, small_changes):
    long = ("pretrain.steps=4000", "pretrain.epochs=10000", "pretrain.checkpoint_every=2")
    process = start(home, "pretrain", small_changes, *long)
    until_training(home, process)
    process.send_signal(signal.SIGTERM)
    process.wait(120)
    assert set(runs(home)[-2:]) == {("pipeline", "KILLED"), ("pretrain", "KILLED")}

    count = len(runs(home))
    process = start(home, "pretrain", small_changes, *long)
    while len(runs(home)) == count:
        assert process.poll() is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert ("pipeline", "RUNNING") in runs(home)
    assert start(home, "tokenize", small_changes).wait(300) == 0
    assert "RUNNING" not in {s for _, s in runs(home)}
