"""What is registered has a kind, the pretrained model too; task.json names it."""

import json
import subprocess
import sys

import pytest

from gpt2.store.model_files import read_task, write_task
from gpt2.tasks.base.kind import BASE
from gpt2.tasks.task import Task, kind, registered_name, tasks


@pytest.mark.parametrize("name", [BASE.name, *tasks()])
def test_kinds_are_looked_up_by_name(name):
    found = kind(name)
    assert found.name == name and found.floor in found.baselines and found.title and found.primary
    assert isinstance(found, Task) == (name != BASE.name)
    assert registered_name(name) == f"gpt2-{name}"


def test_an_unknown_kind_names_the_tasks():
    with pytest.raises(ValueError, match=r"there is no task 'mood'; the tasks are: reasons, recommendation"):
        kind("mood")


def test_kinds_load_no_pytorch():
    """A driver describes what it will train, and settings are checked, in a second."""
    code = "import sys; from gpt2.tasks.task import kind, tasks; kind('base'), tasks(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_task_json(tmp_path):
    assert read_task(tmp_path) == {"task": "base"}  # as `transformers` writes a model
    write_task(tmp_path, "base")
    assert (tmp_path / "task.json").read_text() == '{"task": "base"}'
    facts = {"labels": ["a", "b"], "context": 8}
    write_task(tmp_path, "sentiment", **facts)
    assert (tmp_path / "task.json").read_text() == json.dumps({"task": "sentiment", **facts}, indent=1)
    assert read_task(tmp_path) == {"task": "sentiment", **facts}


@pytest.mark.parametrize("text", ["[]", "{}", "5", '{"task": ["sentiment"]}', '{"task": null}'])
def test_a_task_json_without_a_task_is_refused(tmp_path, text):
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(ValueError, match=r"task.json does not name a task; give the directory that a training wrote"):
        read_task(tmp_path)


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "task.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"task.json is not JSON, or nested too deeply"):
        read_task(tmp_path)
