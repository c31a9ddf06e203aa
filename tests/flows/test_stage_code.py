"""Ids see all code that they depend on: each stage's modules beside those of an independent walk of the imports."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from cluster.batch import scoring
from flows.stage_code import HARMLESS, STAGES, Stage, stage_code, task_code, task_stages
from gpt2.data import canaries
from gpt2.monitoring import history, posts
from gpt2.pages.html import TEMPLATES
from gpt2.store.code import depends_on, is_harmless
from gpt2.tasks.task import tasks

ROOT = Path(__file__).parents[2]
OF_TASKS = {f"{name} {made}": stage for name in tasks() for made, stage in task_stages(name).items()}
ALL = STAGES | OF_TASKS


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("gpt2", "cluster", "flows", exclude_type_checking_imports=True, cache_dir=None)


def walked(graph, stage: Stage) -> tuple[set[str], set[str]]:
    """The modules that count by import-linter's graph, and the harmless ones where the walk ended."""
    counted, ended, ahead = set(), set(), list(stage.entries)
    while ahead:
        name = ahead.pop()
        if name in counted:
            continue
        counted.add(name)
        for other in graph.find_modules_directly_imported_by(name):
            if is_harmless(other, {**HARMLESS, **stage.harmless}):
                ended.add(other)
            else:
                ahead.append(other)
    return counted, ended


@pytest.mark.parametrize("name", ALL)
def test_every_module_that_a_stage_imports_counts_or_is_named_harmless(name, graph):
    stage = ALL[name]
    counted, ended = walked(graph, stage)
    assert {module.removesuffix(".__init__") for module in stage.code() if ":" not in module} == counted
    assert all(reason for reason in stage.harmless.values())
    for module in ended:
        assert is_harmless(module, HARMLESS) or any(
            module == room or module.startswith(f"{room}.") for room in stage.harmless
        )


def test_what_is_named_harmless_is_there_and_met(graph):
    """A name that no stage meets any more is deleted."""
    met = set().union(*(walked(graph, stage)[1] for stage in ALL.values()))
    for room in {*HARMLESS, *(room for stage in STAGES.values() for room in stage.harmless)}:
        assert room in graph.modules, room
        assert any(module == room or module.startswith(f"{room}.") for module in met), room


@pytest.mark.parametrize(
    ("listed", "stage"),
    [
        (posts.READING, "read posts"),
        (scoring.SCORING, "score posts"),
        (("gpt2.monitoring.scored",), "merge scored posts"),
        (history.CODE, "count posts"),
    ],
)
def test_lists_of_lower_floors_are_what_the_walk_finds(listed, stage):
    assert tuple(sorted(listed)) == stage_code(stage)


def test_canaries_add_what_they_need():
    assert set(stage_code("encode", "plant canaries")) == {*stage_code("encode"), *canaries.CODE}


def test_the_evaluation_on_workers_counts_in_every_report():
    """`bytes_per_token` lies there: a factor of every figure of bits per byte."""
    assert "cluster.batch.evaluation" in stage_code("report")


def test_a_template_counts_with_the_page_that_names_it():
    listed = {name.partition(":templates/")[2] for stage in ALL.values() for name in stage.code()}
    assert {file.name for file in TEMPLATES.iterdir()} - listed == {"verdict.html.j2"}  # a verdict is no artifact


@pytest.mark.parametrize("task", sorted(tasks()))
def test_a_report_counts_for_the_report_alone(task):
    module = f"gpt2.tasks.{task}.report"
    assert module in task_code(task, "report", "report")
    assert module not in {*task_code(task, "model", "train", "distil"), *task_code(task, "examples")}


IDS = """
import json, sys
from flows.config import resolve
from flows.plan import make_plan
from pathlib import Path
changes = ["tasks.support.enabled=true", f"tasks.support.source={sys.argv[1]}"]
print(json.dumps({what: key.id for _, what, key in make_plan(resolve("smoke", None, changes)).by_stage()}))
"""


def test_a_change_in_a_report_changes_the_id_of_the_report_alone(tmp_path):
    knowledge = tmp_path / "knowledge.jsonl"
    knowledge.write_text('{"question": "Where?", "answer": "Here."}\n')
    for package in ("gpt2", "cluster", "flows"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def ids() -> dict[str, str]:
        command = [sys.executable, "-c", IDS, str(knowledge)]
        return json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)

    before = ids()
    for task in ("sentiment", "recommendation", "support"):
        with open(tmp_path / f"gpt2/tasks/{task}/report.py", "a") as file:
            file.write("\nCHANGED = 1\n")
        after = ids()
        assert {what for what in before if before[what] != after[what]} == {f"{task} report"}
        before = after
    with open(tmp_path / "cluster/batch/evaluation.py", "a") as file:
        file.write("\nCHANGED = 1\n")
    after = ids()
    changed = {what for what in before if before[what] != after[what]}
    assert {"base report", "sentiment report", "recommendation report"} <= changed
    assert not {what for what in changed if what.endswith("model")}


def test_what_is_harmless_hides_what_only_it_imports():
    harmless = ["gpt2.data.readers", "gpt2.data.sources"]
    assert depends_on(["gpt2.data.corpus"], harmless) == ("gpt2.data.corpus", "gpt2.data.splits")
