"""A version is trained again as it was, on its sources as they are now; or it is said why no new one can come of it."""

import json
import shutil
import sys

import pytest

from cluster.registry.resolve import ResolvedModel
from flows.config import InvalidConfig, resolve
from flows.jobs.monitor import training_of
from flows.jobs.own_data_plan import ClassifierConfig, OwnDataPlan
from flows.jobs.retrain import RetrainPlan
from flows.plan import Plan, make_plan
from flows.stages.provenance import RECORD, record
from gpt2.store.artifact import Artifact
from tests.cluster.small import registered
from tests.flows.jobs.test_refresh import Text, Writer, write
from tests.flows.test_pipeline import Home


@pytest.fixture
def text(tmp_path, small_changes, monkeypatch):
    """A folder of documents in the working directory, and the smallest pipeline on it, sources as relative paths."""
    made = Text(tmp_path, small_changes)
    monkeypatch.chdir(tmp_path)
    return made


def version(folder, name: str, config, plan: Plan, **tags: str) -> str:
    """The address of a registered version with the record of a sentiment model."""
    key = plan.tasks["sentiment"].model
    found = record("sentiment", config, plan, Artifact(folder, {"kind": key.kind, "id": key.id}))
    named = f"gpt2-{name}-{folder.name[-8:].strip('_').lower()}"
    folder = folder / name
    made = registered(named, folder, tags={f"gpt2.{k}": v for k, v in tags.items()}, texts={RECORD: json.dumps(found)})
    return f"models:/{made.name}/{made.version}"


def test_a_pipelines_sources_are_the_folders_that_it_was_given(text, small_changes, small_data, tmp_path, monkeypatch):
    shutil.copy(small_data["posts"], "mine.csv")
    given = ["corpus.sources=[text]", "tasks.sentiment.source=mine.csv", "tasks.sentiment.register_as=moods"]
    config = resolve("smoke", None, [*small_changes, *given])
    plan = make_plan(config)
    how = RetrainPlan.of(version(tmp_path, "whole", config, plan))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = make_plan(how.pipeline())
    assert (how.flow, how.task, how.name) == ("pipeline", "sentiment", how.version[len("models:/") : -2])
    assert again.tasks["sentiment"].model.id == plan.tasks["sentiment"].model.id
    assert again.tasks["sentiment"].registered == "gpt2-moods"
    write(text.folder / "c.jsonl", text.writer.texts(3))
    assert len(make_plan(how.pipeline()).documents) == len(plan.documents) + 1
    assert RetrainPlan.of(version(tmp_path, "fresh", config, plan, refreshed_from="gpt2-base/1")).flow == "refresh"
    facts = training_of(ResolvedModel("x", how.version, "", "", ""))
    assert json.loads(json.dumps(facts)) == how.facts()
    assert facts["settings"]["tasks"]["sentiment"]["source"] == str(tmp_path / "mine.csv")


def test_a_learners_settings_are_those_that_were_asked_for(text, small_data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("GPT2_HOME", str(tmp_path / "home"))
        base = text.pretrained()
        shutil.copy(small_data["posts"], "mine.csv")
        config = ClassifierConfig(source="mine.csv", passes=2.5, changes=["tasks.sentiment.train.context=64"])
        own = OwnDataPlan(config, base, 300)
        settings, plan = own.settings, own.plan
        with pytest.raises(InvalidConfig, match=r"name = 'base'"):
            config.model_copy(update={"name": "base"}).request()
    how = RetrainPlan.of(version(tmp_path, "asked", settings, plan))
    assert how.flow == "train-classifier"
    assert how.learner() == config.model_copy(update={"name": "mine", "source": str(tmp_path / "mine.csv")})


def test_what_is_not_known_is_said(tmp_path):
    bare = registered("gpt2-bare", tmp_path / "bare")
    with pytest.raises(ValueError, match=f"gpt2-bare/{bare.version}.*it has no {RECORD}"):
        RetrainPlan.of(f"models:/gpt2-bare/{bare.version}")
    odd = registered("gpt2-bare", tmp_path / "odd", seed=1, texts={RECORD: "{}"})
    with pytest.raises(ValueError, match=rf"gpt2-bare/{odd.version} was trained is not known.*train it by hand"):
        RetrainPlan.of(f"models:/gpt2-bare/{odd.version}")
    found = training_of(ResolvedModel("folder", str(tmp_path), "", "", ""))
    assert found["flow"] is None and "is not an address of the registry" in found["why"]


AGAIN = """
import sys
from cluster.process_env import configure
configure()
from flows.jobs.retrain import retrain
state = retrain(sys.argv[1], return_state=True)
print(state.type.name, state.message)
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_new_data_give_a_new_version_of_the_same_name_and_none_give_none(tmp_path, small_changes, small_data):
    home, data, folder = Home(tmp_path, []), tmp_path / "posts.csv", tmp_path / "text"
    shutil.copy(small_data["posts"], data)
    folder.mkdir()
    shutil.copy(small_data["corpus"], folder)
    pipeline = [c for c in small_changes if "tasks" not in c and "sources" not in c] + [f"corpus.sources=[{folder}]"]
    pipeline += ["refresh.min_new_documents=5"]
    command = [sys.executable, "-m", "flows.cli", "train-classifier", "posts.csv", "--preset", "smoke"]
    command += ["--set", "max_steps=6", "--set", f"changes={pipeline}"]

    def again(address: str) -> str:
        return home.call([sys.executable, "-c", AGAIN, address])

    def more() -> None:
        with data.open("a") as stream:
            stream.write(f"{Writer(len(data.read_text())).sentence()} good fine,positive\n")

    assert "gpt2-posts v1" in home.call(command)  # with a base model that was pretrained first: the whole pipeline
    assert "gpt2-other v1" in home.call([*command, "--name", "other", "--set", "base=models:/gpt2-base/1"])
    before = home.artifacts()
    for name in ("posts", "other"):
        told = again(f"models:/gpt2-{name}/1")
        assert f"COMPLETED Nothing to do: gpt2-{name} version 1 was trained" in told and f"what {data} holds" in told
    assert home.artifacts() == before
    more()
    told = again("models:/gpt2-other/1")
    assert "gpt2-other version 2: " in told and "COMPLETED" in told and "gpt2-posts version" not in told
    write(folder / "more.jsonl", Writer(7).texts(40))
    told = again("models:/gpt2-posts/1")
    assert "gpt2-base version 2: " in told and "gpt2-posts version 2: " in told and "COMPLETED" in told
    data.unlink()
    assert "FAILED refused: tasks.sentiment.source: " in again("models:/gpt2-posts/1")
