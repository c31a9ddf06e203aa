"""The gate: better than the simple baseline, not worse than the champion, and it says why."""

import io
import math
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpt2
from cluster.home import tracking_uri
from cluster.registry.download import exact
from cluster.registry.versions import ARTIFACT_TAG, artifact_id, register, signature
from cluster.tracking.runs import Run, client
from gpt2.gate.verdict import judge_by_values
from gpt2.store.artifact import Artifact
from gpt2.tasks.task import kind
from tests.cluster import small
from tests.cluster.small import model_folder, recommender_folder


def report(value, floor=0.5, up=True, metric="macro_f1"):
    return {
        "primary": {"name": metric, "higher_is_better": up},
        "metrics": {metric: value},
        "baselines": {"majority": {metric: floor}, "strong": {metric: 0.99 if up else 0.01}},
        "floor": "majority",
    }


@pytest.mark.parametrize(
    ("candidate", "champion", "promote", "reason"),
    [
        (report(0.6), None, True, "no champion"),
        (report(0.5), None, False, "not better than the simple baseline"),
        (report(0.4), None, False, "0.4000 against 0.5000 of the baseline 'majority'"),
        (report(0.6), report(0.55), True, "not worse than the champion"),
        (report(0.6), report(0.6), True, "not worse than the champion"),
        (report(0.6), report(0.7), False, "worse than the champion: macro_f1 0.6000 against the champion's 0.7000"),
        (report(2.0, 3.0, up=False), report(2.1, 3.0, up=False), True, "not worse"),
        (report(2.2, 3.0, up=False), report(2.1, 3.0, up=False), False, "worse than the champion"),
        (report(3.1, 3.0, up=False), None, False, "not better than the simple baseline"),
        (report(math.nan), None, False, "nan"),
    ],
)
def test_gate(candidate, champion, promote, reason):
    verdict = judge_by_values(candidate, champion)
    assert verdict.promote is promote
    assert reason in "; ".join(verdict.reasons)


def test_signature_of_texts_and_of_records():
    texts = signature(["a"], pd.DataFrame({"label": ["x"], "probability": [0.5]}), {})
    assert str(texts.inputs.inputs[0].type) == "DataType.string"
    records = signature([{"history": ["a"], "candidates": ["b"]}], pd.DataFrame({"n": [1]}), {"top_k": 3})
    assert [(c.name, c.required) for c in records.inputs.inputs] == [("history", True), ("candidates", False)]
    assert records.params.params[0].name == "top_k"
    assert [str(c.type) for c in records.inputs.inputs] == ["Array(string)", "Any"]  # some records may lack candidates
    mixed = signature([{"history": ["a"], "item": "b"}], pd.DataFrame({"reason": ["x"]}), {})
    assert [str(c.type) for c in mixed.inputs.inputs] == ["Array(string)", "DataType.string"]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same recommender through `gpt2.load` and through MLflow; its titles."""
    folder = tmp_path_factory.mktemp("recommender")
    titles = recommender_folder(folder)
    address = exact(small.register("gpt2-mixed", folder, "recommendation", params=kind("recommendation").params))
    return gpt2.load(address), mlflow.pyfunc.load_model(address), titles


FIELD = st.lists(st.integers(0, 7), min_size=1, max_size=3, unique=True)
RECORD = st.fixed_dictionaries({"history": FIELD}, optional={"candidates": st.none() | FIELD})


@given(st.lists(RECORD, min_size=1, max_size=5))
@settings(deadline=None, max_examples=100)
def test_records_of_a_batch_may_lack_what_is_optional(both, records):
    ours, theirs, titles = both
    named = [{name: numbers and [titles[i] for i in numbers] for name, numbers in r.items()} for r in records]
    expected = ours.predict(named, top_k=3)
    assert [len(row) for row in expected["ranking"]] == [len(r.get("candidates") or range(3)) for r in records]
    for inputs in (named, pd.DataFrame(named)):
        pd.testing.assert_frame_equal(theirs.predict(inputs, params={"top_k": 3}), expected)


def test_a_parameter_that_the_model_lacks_is_refused_by_name(both):
    for model in both[:2]:

        def predict(model=model, **params):
            inputs = [{"history": ["Film 1"]}]
            return model.predict(inputs, params=params) if model is both[1] else model.predict(inputs, **params)

        assert len(predict(top_k=2)["ranking"][0]) == 2 and len(predict()["ranking"][0]) == 7
        with pytest.raises(ValueError, match=r"recommendation has no parameter 'topk'; it has top_k"):
            predict(top_k=2, topk=3)
        with pytest.raises(ValueError, match=r"top_k=None; give a value such as 10"):
            predict(top_k=None)


def test_artifact_of_a_version(tmp_path):
    client().create_registered_model("gpt2-taught")
    for artifact in ("first", "second"):
        client().create_model_version("gpt2-taught", source=str(tmp_path), tags={ARTIFACT_TAG: artifact})
    client().set_registered_model_alias("gpt2-taught", "champion", "2")
    assert artifact_id("models:/gpt2-taught/1", "gpt2-taught") == "first"
    assert artifact_id("models:/gpt2-taught@champion", "gpt2-taught") == "second"
    for uri in ("models:/gpt2-taught@nobody", "models:/gpt2-taught/3"):
        with pytest.raises(ValueError, match=r"gpt2-taught.*`gpt2 models` lists the models"):
            artifact_id(uri, "gpt2-taught")
    for uri in ("models:/gpt2-other/1", "models:/gpt2-taught", "models:/gpt2-taught/x"):
        with pytest.raises(ValueError, match="is not a version of gpt2-taught; give models:/gpt2-taught@champion"):
            artifact_id(uri, "gpt2-taught")
    client().delete_registered_model("gpt2-taught")


PROGRAM = """
import sys, mlflow
uri, version, prompt = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/gpt2-pulled/{version}")
answer = model.predict([prompt], params={"max_tokens": 5, "seed": 3} if version == "1" else None)
import gpt2
print(gpt2.__file__, answer.to_json(), sep="\\n")
"""


def test_a_version_is_loaded_with_mlflow_alone(tmp_path):
    """In another process, with the code that was registered: `gpt2.load` is the one door that it uses."""
    for task in ("base", "sentiment"):
        model_folder(tmp_path / task, task)
        predictor, params = kind(task).predictor(tmp_path / task / "model"), kind(task).params
        example = list(predictor.input_example)
        run, artifact = Run.open(f"pulled-{task}", {"gpt2.test": task}), Artifact(tmp_path / task, {"id": task})
        version = register("gpt2-pulled", artifact, run, {}, example, params, predictor.predict(example, {}))
        own = predictor.predict(["This film"], {"max_tokens": 5, "seed": 3} if task == "base" else {})
        command = [sys.executable, "-c", PROGRAM, tracking_uri(), str(version.version), "This film"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
        place, answer = said.splitlines()[-2:]
        assert not place.startswith(str(Path(gpt2.__file__).parent))
        pd.testing.assert_frame_equal(pd.read_json(io.StringIO(answer)), own, check_dtype=False)
    client().delete_registered_model("gpt2-pulled")
