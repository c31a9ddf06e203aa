"""The form of the Prefect UI, the deployments, and who waits for whom."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows import server as deployments
from flows.config import FILES, GATE, MAIN, Files, Gate, InvalidConfig, Main, preset_names, resolve
from flows.jobs.import_plan import ImportConfig
from flows.jobs.own_data_plan import ClassifierConfig, OwnDataPlan, RecommenderConfig
from flows.jobs.run import run, settings_of
from flows.jobs.search_plan import SearchConfig
from flows.plan import make_plan, run_identity
from flows.runs.ending import carry_out, claim
from flows.runs.events import EVENTS
from gpt2.gate.config import GateConfig
from gpt2.monitoring.config import MonitorConfig
from gpt2.tasks.recommendation.config import RecommendConfig
from gpt2.tasks.task import tasks

ROOT = Path(__file__).parents[3]


def test_the_form_shows_the_one_schema():
    schema = parameter_schema(run).model_dump()
    assert schema["properties"]["preset"]["enum"] == preset_names()
    files, fields, gate = (schema["definitions"][name]["properties"] for name in ("Files", "Main", "Gate"))
    assert min(schema["properties"], key=lambda name: schema["properties"][name]["position"]) == "files"
    assert next(iter(files)) == "sources"
    assert (
        set(files) == set(FILES) and set(fields) == set(MAIN) and set(gate) == set(GATE) == set(GateConfig.model_fields)
    )
    every = [*files.values(), *fields.values(), *gate.values()]
    assert all(len(field["description"]) > 20 and "default" not in field for field in every)
    assert gate["probability"]["minimum"] == 0.5 and gate["cheaper_in"]["enum"] == ["parameters", "latency"]
    assert gate["max_parameters"]["type"] == "integer"
    assert fields["steps"]["type"] == "integer" and fields["steps"]["minimum"] == 1
    assert fields["learning_rate"]["exclusiveMinimum"] == 0
    assert all(field.get("type") != "boolean" for field in fields.values())  # the form sends those untouched as off
    assert fields["support_enabled"]["enum"] == ["yes", "no"]
    assert (
        schema["properties"]["main"]["default"]
        == schema["properties"]["gate"]["default"]
        == schema["properties"]["files"]["default"]
        == {}
    )


def test_a_filled_form_is_what_the_command_line_would_say():
    sources = ["a, b.txt", "c.txt"]
    files = Files(sources=sources, sentiment_source="posts.csv")
    main = Main(steps=70, learning_rate=6e-4, support_enabled="yes")
    gate = Gate(probability=0.99, max_latency_ms=20, must_beat=["TF-IDF + logistic regression"])
    filled = settings_of(files, "smoke", main, gate, ["cluster.zero_stage=1"], "")
    said = [
        "pretrain.steps=70",
        "pretrain.optimizer.learning_rate=6e-4",
        'corpus.sources=["a, b.txt", "c.txt"]',
        "tasks.sentiment.source=posts.csv",
        "tasks.support.enabled=true",
        "gate.probability=0.99",
        "gate.max_latency_ms=20",
        'gate.must_beat=["TF-IDF + logistic regression"]',
        "cluster.zero_stage=1",
    ]
    assert filled == resolve("smoke", None, said)
    assert settings_of(Files(), "laptop", Main(), Gate(), [], "") == resolve("laptop")
    with pytest.raises(InvalidConfig, match="did you mean 'steps'"):
        settings_of(files, "smoke", main, gate, ["pretrain.stepz=3"], "")


def test_what_learns_files_of_ones_own_is_judged_by_its_own_gate():
    asked = ClassifierConfig(source="mine.csv", preset="smoke", gate={"margin": 0.01})
    assert OwnDataPlan(asked, None).settings.gate == resolve("smoke", None, ["gate.margin=0.01"]).gate
    with pytest.raises(ValueError, match=r"did you mean|Extra inputs"):
        ClassifierConfig(source="mine.csv", gate={"marginn": 0.01})


def test_equal_runs_are_known_by_what_they_make(small_changes):
    plans = [make_plan(resolve("smoke", None, [*small_changes, *more])) for more in ([], ["cluster.zero_stage=1"])]
    assert (
        run_identity("pipeline", plans[0]) == run_identity("pipeline", plans[1]) != run_identity("pretrain", plans[0])
    )
    other = make_plan(resolve("smoke", None, [*small_changes, "pretrain.seed=3"]))
    assert run_identity("pipeline", other) != run_identity("pipeline", plans[0])


def test_a_claim_is_held_between_processes_and_freed_by_a_kill():
    program = (
        "import time\nfrom cluster.process_env import configure\nconfigure()\nfrom flows.runs.ending import claim\n"
        "with claim('toy') as holder:\n    print(holder, flush=True)\n    time.sleep(300)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None and holder.stdout.readline() == "None\n"
    with claim("toy") as found:
        assert found is not None and found["run"] == f"process {holder.pid}"
    with claim("another") as found:
        assert found is None
    holder.kill()
    holder.wait()
    deadline, free = time.monotonic() + 10, False
    while not free:
        assert time.monotonic() < deadline
        with claim("toy") as found:
            free = found is None


@dataclass(frozen=True)
class Toy:
    """A job; its store and its registry are this object."""

    reason: str | None = None

    @property
    def identity(self) -> str:
        if self.reason == "wrong":
            raise ValueError("posts.csv has no column 'text'")
        return "toy-job"

    def nothing(self) -> str | None:
        return self.reason


def test_a_job_is_refused_done_before_left_to_another_run_or_done():
    def never(plan: Toy):
        raise AssertionError("it works")

    refused = carry_out(lambda: Toy("wrong"), never, never)
    assert (refused.type.value, refused.message) == ("FAILED", "refused: posts.csv has no column 'text'")
    before = carry_out(lambda: Toy("made by v1"), never, lambda plan: ["a row"])
    assert (before.message, before.result()) == ("Nothing to do: made by v1", ["a row"])
    assert carry_out(lambda: Toy("made by v1"), lambda plan: plan) == Toy("made by v1")  # nobody asks
    with claim("toy-job"):
        other = carry_out(Toy, never)
    assert other.name == "Duplicate" and f"process {os.getpid()} is doing the same" in other.message

    def spoilt(plan: Toy):
        raise ValueError("a bad row")

    assert carry_out(Toy, spoilt).message == "a bad row" and carry_out(Toy, lambda plan: 7, never) == 7


def test_deployments_are_listed_once_by_module_paused_with_slugs():
    assert (ROOT / "prefect.yaml").samefile(ROOT / "flows" / "prefect.yaml")
    entries = deployments.read()
    assert {
        "pipeline",
        "retrain",
        "tokenize",
        "pretrain",
        "finetune",
        "evaluate",
        "register",
        "import",
        "train-classifier",
        "train-recommender",
        "search",
        "monitor-sentiment",
        "recommend",
    } <= {e["name"] for e in entries}
    for entry in entries:
        assert ":" not in entry["entrypoint"]
        flow = load_flow_from_entrypoint(entry["entrypoint"])
        assert set(entry.get("parameters", {})) <= set(parameter_schema(flow).properties)
        for item in entry.get("triggers", []):
            assert set(item["expect"]) <= set(EVENTS) and set(item["parameters"]) <= set(
                parameter_schema(flow).properties
            )
        for item in entry.get("schedules", []):
            made = deployments.schedule(item)
            assert made.slug and not made.active and made.schedule.timezone


@pytest.mark.parametrize(("entrypoint", "settings"), [
    ("flows.jobs.monitor.monitor_sentiment", MonitorConfig), ("flows.jobs.recommend.recommend", RecommendConfig),
    ("flows.jobs.own_data.train_classifier", ClassifierConfig), ("flows.jobs.own_data.train_recommender",
    RecommenderConfig),
    ("flows.jobs.search.search", SearchConfig), ("flows.jobs.import_weights.import_weights", ImportConfig),
])  # fmt: skip
def test_the_forms_of_scheduled_jobs_show_their_schema(entrypoint, settings):
    schema = parameter_schema(load_flow_from_entrypoint(entrypoint)).model_dump()
    fields = schema["definitions"][settings.__name__]["properties"]
    assert set(fields) == set(settings.model_fields)
    assert all(len(field["description"]) > 20 for field in fields.values())
    assert all(field.get("default", "") is not None for field in fields.values())  # the form would ask for a type
    required = schema["definitions"][settings.__name__].get("required", [])
    order = sorted(fields, key=lambda name: fields[name]["position"])  # PostgreSQL does not keep another one
    assert set(order[: len(required)]) == set(required)
    last = {"tasks", "gate", "changes", "separator", "encoding"}
    if settings is MonitorConfig:
        assert fields["window"]["enum"] == ["hour", "day"] and fields["min_posts"]["minimum"] == 5
    if settings is ClassifierConfig:
        assert fields["balance"]["enum"] == ["auto", "none", "sqrt", "inverse"]
        assert required == order[:1] == ["source"] and set(order[-5:]) == last
    if settings is RecommenderConfig:
        assert required == order[:2] == ["source", "interactions"] and set(order[-5:]) == last
        assert fields["min_weight"]["type"] == "number" and fields["attributes"]["items"] == {"type": "string"}
    if settings is SearchConfig:
        assert fields["task"]["enum"] == list(tasks()) and fields["space"]["type"] == "object"
        assert required == order[:1] == ["task"]
        assert fields["max_steps"]["type"] == "integer" and fields["max_steps"]["minimum"] == 1
