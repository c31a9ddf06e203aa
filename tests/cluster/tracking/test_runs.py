"""MLflow runs end also when their process could not say so."""

import subprocess
import sys

import pytest

from cluster.tracking.runs import PROCESS, Run, client, end_dead, end_open, experiment_id, this_process

THIS = "from cluster.tracking.runs import this_process; print(this_process())"


def status(run: Run) -> str:
    return client().get_run(run.id).info.status


def pair(name: str, process: str) -> tuple[Run, Run]:
    """A parent and its child, open."""
    parent = Run.open(name, {"gpt2.flow_run": name, PROCESS: process})
    return parent, Run.open(f"{name} child", {"gpt2.artifact": name}, parent.id)


def test_runs_of_dead_processes_are_killed_and_no_others():
    done = subprocess.run([sys.executable, "-c", THIS], capture_output=True, text=True, check=True)
    mine, dead = pair("mine", this_process()), pair("dead", done.stdout.strip())
    elsewhere, unknown = pair("elsewhere", "elsewhere 1 1"), Run.open("unknown", {"gpt2.flow_run": "unknown"})
    reused = pair("reused", this_process().rpartition(" ")[0] + " 1000000000")  # the number, but another process
    end_dead()
    assert [status(run) for run in (*dead, *reused)] == ["KILLED"] * 4
    assert {status(run) for run in (*mine, *elsewhere, unknown)} == {"RUNNING"}
    again = Run.open("dead again", {"gpt2.flow_run": "dead", PROCESS: this_process()})
    assert again.id == dead[0].id and status(again) == "RUNNING"


def test_a_run_ends_as_told_and_what_is_open_below_it_is_killed():
    parent, child = pair("ends", this_process())
    end_open("gpt2.flow_run", "ends", "FAILED")
    assert (status(parent), status(child)) == ("FAILED", "KILLED")
    end_open("gpt2.flow_run", "ends", "FINISHED")
    assert status(parent) == "FAILED"


def test_a_deleted_experiment_is_told_and_the_command_restores_it():
    """MLflow keeps a deleted experiment's name, and refuses new runs in it."""
    client().delete_experiment(experiment_id())
    experiment_id.cache_clear()
    with pytest.raises(ValueError, match=r"gpt2-pipeline was deleted, so that no run can begin; restore it: ") as told:
        Run.open("late", {"gpt2.test": "late"})
    command = str(told.value).partition("restore it: ")[2].replace(" mlflow ", f" {sys.executable} -m mlflow ")
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert status(Run.open("late", {"gpt2.test": "late"})) == "RUNNING"
