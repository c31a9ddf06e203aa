"""A run is called what it is."""

import pytest

from flows.config import Files, Gate, Main
from flows.jobs.run import run_name
from flows.runs.prefect_artifacts import called, place, places


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("sample:reviews", "reviews"),
        ("/data/articles/*.jsonl.gz", "articles"),
        ("s3://bucket/more", "more"),
        ("https://a.example/feed.jsonl?download=1", "feed"),
        ("inbox", "inbox"),
        ("/", "/"),
    ],
)
def test_a_source_has_a_short_name(source, name):
    assert place(source) == name


def test_of_many_sources_two_are_named():
    assert places(["a.txt", "b", "c", "d"]) == "a, b and 2 more"
    assert called("search") == "search" and called("import", "x", "", "y") == "import · x, y"


def test_a_form_names_stage_preset_and_data_and_a_wrong_one_what_it_can():
    filled = {"files": Files(), "main": Main(), "gate": Gate(), "changes": [], "file": ""}
    assert run_name("pipeline", "laptop", **filled) == "pipeline laptop · reviews"
    filled["files"] = Files(sources=["/data/articles/*.jsonl.gz"])
    assert run_name("refresh", "gpt2", **filled) == "refresh gpt2 · articles"
    assert run_name("pretrain", "laptop", **filled | {"changes": ["pretrain.stepz=3"]}) == "pretrain laptop"
