"""A labelled file to a registered model of its own name: settings, keys, and the command as a user runs it."""

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.config import InvalidConfig, PipelineConfig, preset_names, resolve
from flows.jobs.own_data_plan import FEW_STEPS, ClassifierConfig, OwnDataPlan, length
from flows.plan import make_plan
from gpt2.tasks.sentiment.config import LabelledFile
from gpt2.training.config import TrainConfig
from tests.flows.jobs.test_refresh import Text
from tests.flows.test_pipeline import Home


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("/data/My Headlines.2024.csv", None, "my-headlines"),
        ("s.jsonl", "mood-2", "mood-2"),
        ("posts.csv", "sentiment", "sentiment"),  # who says so
        ("sample:clothing", None, "clothing"),
    ],
)
def test_a_model_is_named_after_its_file(source, name, expected):
    assert ClassifierConfig(source=source, name=name).registered_as() == expected


@pytest.mark.parametrize(
    ("source", "name"), [("sentiment.csv", None), ("base.csv", None), ("日.csv", None), ("a.csv", "recommendation")]
)
def test_no_other_model_is_overwritten(source, name):
    with pytest.raises(InvalidConfig, match="name"):
        ClassifierConfig(source=source, name=name).registered_as()
    with pytest.raises(InvalidConfig, match=r"two models would be registered as gpt2-recommendation"):
        resolve("smoke", None, ["tasks.sentiment.register_as=recommendation"])


@given(
    examples=st.integers(8, 10**6),
    passes=st.floats(0.1, 50),
    max_steps=st.integers(1, 2000),
    batch=st.sampled_from([8, 24, 64, 96, 512]),
    workers=st.sampled_from([1, 2, 4]),
)
def test_any_file_has_a_length_of_training_that_is_valid(examples, passes, max_steps, batch, workers):
    config = ClassifierConfig(source="a.csv", passes=passes, max_steps=max_steps)
    train = TrainConfig(epochs=1, batch_size=batch, micro_batch_size=batch // workers // (1 + batch // workers % 2))
    found = length(config, train, examples, workers)
    made = TrainConfig.model_validate({**train.model_dump(), **found})
    assert made.steps <= max_steps and made.batch_size <= batch
    if examples >= made.batch_size:
        assert made.total_steps(examples) == made.steps
        assert made.steps == 1 or made.steps * made.batch_size <= passes * examples
    if made.batch_size < batch:  # for a small file alone
        assert passes * examples < FEW_STEPS * 2 * made.batch_size


def test_the_file_is_all_that_changes_in_a_preset():
    config = ClassifierConfig(source="a.csv", label_field="mood", changes=["tasks.sentiment.train.steps=200"])
    for preset in preset_names():
        found = OwnDataPlan(config.model_copy(update={"preset": preset}), None, 5000).settings
        assert isinstance(found, PipelineConfig) and list(found.task_settings()) == ["sentiment"]
        mine, theirs = found.tasks.sentiment, resolve(preset).tasks.sentiment
        assert (mine.source, mine.label_field, mine.register_as, mine.train.steps) == ("a.csv", "mood", "a", 200)
        assert mine.adaptation == theirs.adaptation and found.pretrain == resolve(preset).pretrain
    assert set(LabelledFile.model_fields) < set(ClassifierConfig.model_fields)


def test_a_pretrained_model_learns_as_it_would_in_the_pipeline(tmp_path, small_changes, small_data, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    text = Text(tmp_path, small_changes)
    base = text.pretrained()
    config = ClassifierConfig(
        source=str(small_data["posts"]), preset="laptop", name="mine"
    )  # another shape than base's
    own = OwnDataPlan(config, base, 300)
    settings, plan = own.settings, own.plan
    assert plan.base.id == base.base.id and plan.tokenizer.id == base.tokenizer.id
    assert settings.model_config_with_vocabulary() == base.model
    assert list(plan.reports()) == ["gpt2-base", "gpt2-mine"]
    assert settings.tasks.sentiment.train.context == base.model.n_positions == 128
    values = text.config.model_dump()
    values["tasks"]["sentiment"] = settings.tasks.sentiment.model_dump()
    theirs = make_plan(PipelineConfig.model_validate(values)).tasks["sentiment"]
    assert (theirs.data.id, theirs.model.id) == (
        plan.tasks["sentiment"].data.id,
        plan.tasks["sentiment"].model.id,
    )


@pytest.mark.slow
def test_from_a_file_to_a_model_as_a_user_does_it(tmp_path, small_changes, small_data):
    home = Home(tmp_path, [])
    pipeline = [c for c in small_changes if "tasks" not in c]
    command = [sys.executable, "-m", "flows.cli", "train-classifier", str(small_data["posts"])]
    small = ["--preset", "smoke", "--set", "max_steps=6", "--set", f"changes={pipeline}"]
    first = home.call([*command, *small])
    assert "a gpt2-base that is pretrained first (smoke)" in first and "Traceback" not in first
    assert re.search(r"gpt2-posts v1", first) and re.search(r"gpt2-base v1", first)
    before = home.artifacts()
    assert "Nothing to do" in home.call([*command, *small]) and home.artifacts() == before
    other = home.call(
        [*command, *small, "--name", "other", "--set", "balance=inverse", "--set", "base=models:/gpt2-base/1"]
    )
    assert "made from gpt2-base version 1" in other and re.search(r"gpt2-other v1", other)
    assert {a.partition("/")[0] for a in home.artifacts() - before} == {
        "sentiment-examples",
        "sentiment",
        "sentiment-contamination",
        "sentiment-report",
    }
    models = home.call([sys.executable, "-m", "flows.cli", "models"])
    assert "gpt2-posts" in models and "gpt2-other" in models and "gpt2-sentiment" not in models
    card = home.call([sys.executable, "-m", "flows.cli", "card", "models:/gpt2-other/1"])
    assert card.startswith("# gpt2-other: ") and 'gpt2.load("models:/gpt2-other@champion")' in card
    refused = home.call([*command, "--set", "label_field=mood"], code=2)
    assert "no column 'mood'" in refused
