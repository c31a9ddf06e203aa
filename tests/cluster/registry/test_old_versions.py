"""Versions that were registered before the modules moved to rooms: they load, serve, and are fine-tuned on.

`before_the_move.zip` holds a base model and a classifier as commit 7960ad8 registered them (`tests/cluster/small.py` at
that commit, seed 7), what they answered then, and the modules that they import of the code that MLflow stored there.
"""

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import httpx
import pandas as pd
import pytest

import gpt2
from cluster.registry.download import MANIFEST_TAG
from cluster.registry.promotion import promote
from cluster.serving import server
from cluster.tracking.runs import client
from gpt2.training.config import TrainConfig
from gpt2.training_job import TrainingJob, build
from tests.cluster.small import LABELS, TEXTS

TASKS = ("base", "sentiment")
ROOT = Path(gpt2.__file__).parents[1]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """The folder of each version's files, by task."""
    folder = tmp_path_factory.mktemp("old")
    with zipfile.ZipFile(Path(__file__).with_name("before_the_move.zip")) as packed:
        packed.extractall(folder)
    for task in TASKS:  # each version has the same
        (folder / task / "code").symlink_to(folder / "code")
    return {task: folder / task for task in TASKS}


@pytest.fixture(scope="module")
def address(old):
    """The classifier, again in a registry, and its champion."""
    tags = {MANIFEST_TAG: recorded(old["sentiment"])["tags"][MANIFEST_TAG]}
    client().create_registered_model("gpt2-old")
    client().create_model_version("gpt2-old", old["sentiment"].as_uri(), tags=tags)
    promote("gpt2-old", "1", "a start", force=True)
    return "models:/gpt2-old@champion"


def recorded(folder):
    return json.loads((folder / "recorded.json").read_text("utf-8"))


def check(answers, then):
    # Recorded where the CPU multiplies bf16.
    pd.testing.assert_frame_equal(answers, pd.DataFrame(then["answers"]), check_dtype=False, rtol=2e-3)


@pytest.mark.parametrize("task", TASKS)
def test_load(old, task):
    then, model = recorded(old[task]), gpt2.load(old[task] / "artifacts" / "model")
    assert model.task == task
    check(model.predict(then["inputs"], **then["params"]), then)


PROGRAM = """
import json, sys
import mlflow
for folder in sys.argv[1:]:
    then = json.load(open(folder + "/recorded.json"))
    answers = mlflow.pyfunc.load_model(folder).predict(then["inputs"], params=then["params"])
    print(json.dumps({"answers": answers.to_dict("records")}))
import gpt2
print(gpt2.__file__)
"""


@pytest.mark.parametrize("first", ["", "import gpt2.tasks.task; gpt2.tasks.task.tasks()"])
def test_mlflow_loads_them(old, tmp_path, first):
    """With the code that lies with the version in a process of its own, with today's where that was imported before."""
    command = [sys.executable, "-c", f"{first}\n{PROGRAM}", *map(str, old.values())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    *answers, place = done.stdout.splitlines()
    for task, line in zip(old, answers, strict=True):
        check(pd.DataFrame(json.loads(line)["answers"]), recorded(old[task]))
    assert (Path(place).parents[1] == ROOT) is bool(first)


def test_kept_names_import_nothing_until_they_are_used():
    program = """
import sys
from gpt2 import language_model, task as alias
assert not hasattr(alias, "tasks") and not hasattr(language_model, "__file__")
assert "torch" not in sys.modules and "gpt2.tasks" not in sys.modules
from gpt2.task import task
import gpt2.tasks.task
assert task is gpt2.tasks.task.task
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_serve(old, address):
    then = recorded(old["sentiment"])
    made, listener = server(address, port=0)
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not made.started:
            time.sleep(0.01)
        answer = httpx.post(
            f"http://127.0.0.1:{listener.getsockname()[1]}/predict", json={"inputs": then["inputs"]}, timeout=60
        ).json()
    finally:
        made.should_exit = True
        thread.join(30)
    assert answer["version"] == 1
    check(pd.DataFrame(answer["predictions"]), then)


def test_fine_tuning_begins_with_its_weights(old, tmp_path):
    """A classifier is built on the base, saved as a version's files are now, and loads."""
    base = old["base"] / "artifacts" / "model"
    for split in ("train", "validation"):
        pd.DataFrame({"text": list(TEXTS), "label": [1, 0]}).to_parquet(tmp_path / f"{split}.parquet")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    job = TrainingJob(
        name="sentiment",
        train=TrainConfig(steps=1, context=32),
        tokenizer=str(base),
        output=str(tmp_path / "training"),
        base=str(base),
        examples=str(tmp_path),
    )
    parts = build(job)
    before = gpt2.load(base).predictor.model.state_dict()
    assert all((parts.gpt2.state_dict()[name] == value).all() for name, value in before.items())
    parts.save(tmp_path / "model")
    assert set(gpt2.load(tmp_path / "model").predict(list(TEXTS))["label"]) <= set(LABELS)
