"""A task whose model learns from a registered one: its key, and the whole way from its teacher to its report. And the
whole way of what else is no plain GPT-2: a LoRA, and an architecture that `transformers` has no class for."""

import json

import pytest

from flows.config import InvalidConfig, resolve
from flows.plan import make_plan
from tests.flows.test_pipeline import Home

STUDENT = "tasks.sentiment.distil.student={n_layer: 1, n_head: 2, n_embd: 16, n_positions: 64}"


def plan(small_changes, *more):
    return make_plan(resolve("smoke", None, [*small_changes, *more])).tasks["sentiment"]


def test_the_key_has_the_teacher(small_changes):
    plain = plan(small_changes)
    first = plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=aaaa")
    other = plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=bbbb")
    hotter = plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=aaaa", "tasks.sentiment.distil.temperature=4")
    assert len({k.model.id for k in (plain, first, other, hotter)}) == 4
    assert {k.data.id for k in (plain, first, other, hotter)} == {plain.data.id}
    assert (plain.teacher, first.teacher) == (None, "aaaa")


def test_a_teacher_that_is_not_registered_is_refused(small_changes):
    with pytest.raises(InvalidConfig, match=r"tasks.sentiment.distil.teacher: .*is not a version of gpt2-sentiment"):
        plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=models:/gpt2-recommendation@champion")
    with pytest.raises(InvalidConfig, match=r"distil.teacher: models:/gpt2-sentiment@nobody: .*`gpt2 models` lists"):
        plan(small_changes, STUDENT, "tasks.sentiment.distil.teacher=models:/gpt2-sentiment@nobody")


def loaded(home: Home, address: str, asked: list[str]) -> dict:
    """What another process loads at an address: the model's shape and how it answers."""
    return json.loads(home.python(f"""
import json, os
os.environ["GPT2_HOME"] = {str(home.folder / "home")!r}
import gpt2
loaded = gpt2.load({address!r})
predictor = loaded.predictor
model = getattr(predictor, "model", None) or predictor.module.model
print(json.dumps({{"shape": model.config.model_dump(), "answers": loaded.predict({asked!r}).to_dict("records")}}))
""", home.folder).splitlines()[-1])  # fmt: skip


@pytest.mark.slow
def test_from_a_lora_to_a_student_in_the_registry(tmp_path, small_changes):
    home = Home(tmp_path, [*small_changes, "tasks.recommendation.enabled=false"])
    told = home.run("tasks.sentiment.adaptation={kind: lora, rank: 4, dropout: 0.1}")
    assert "gpt2-sentiment v1" in told and "Traceback" not in told
    told = home.run(STUDENT, "tasks.sentiment.distil.teacher=models:/gpt2-sentiment/1")
    assert "gpt2-sentiment v2" in told and "Traceback" not in told
    assert len(list(tmp_path.glob("home/store/sentiment-report/*/manifest.json"))) >= 2
    assert len(list(tmp_path.glob("home/store/base/*/manifest.json"))) == 1
    posts = ["a good fine film", "bad dull awful"]
    teacher, student = (loaded(home, f"models:/gpt2-sentiment/{version}", posts) for version in (1, 2))
    assert (teacher["shape"]["n_layer"], student["shape"]["n_layer"], student["shape"]["n_embd"]) == (2, 1, 16)
    for model in (teacher, student):
        assert all(answer["label"] in ("negative", "neutral", "positive") for answer in model["answers"])
    assert teacher["answers"] != student["answers"] and len(student["answers"]) == 2


@pytest.mark.slow
def test_an_architecture_of_its_own_to_the_registry(tmp_path, small_changes):
    modern = {"positions": "rotary", "norm": "rms", "activation": "relu2", "bias": False, "qk_norm": True}
    modern |= {"value_residual": True, "zero_init": True}
    switches = [f"model.{name}={json.dumps(value)}" for name, value in modern.items()]
    home = Home(tmp_path, [*small_changes, *switches, "tasks.recommendation.enabled=false"])
    told = home.run("pretrain.optimizer.kind=muon")
    assert "gpt2-base v1" in told and "gpt2-sentiment v1" in told and "Traceback" not in told
    for name, asked in (("base", ["film plot"]), ("sentiment", ["a good fine film"])):
        found = loaded(home, f"models:/gpt2-{name}/1", asked)
        assert modern.items() <= found["shape"].items() and len(found["answers"]) == 1
