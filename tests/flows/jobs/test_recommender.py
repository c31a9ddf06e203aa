"""Two files to a registered recommender of its own name: settings, keys, and the command as a user runs it."""

import json
import re
import sys

import pandas as pd
import pytest

from flows.config import InvalidConfig, preset_names, resolve
from flows.jobs.own_data_plan import OwnDataPlan, RecommenderConfig
from flows.plan import make_plan
from flows.stages.provenance import record
from gpt2.data.samples import identity
from gpt2.store.artifact import Key, Store
from gpt2.tasks.recommendation.config import CatalogueFiles
from gpt2.tasks.task import task
from tests.flows.test_pipeline import Home


@pytest.fixture
def files(tmp_path):
    """(items, interactions): 12 products, 10 customers."""
    items, interactions = tmp_path / "Products 1.csv", tmp_path / "sales.jsonl"
    rows = [(f"p{i}", f"Product number {i}", ("red", "blue")[i % 2]) for i in range(12)]
    pd.DataFrame(rows, columns=["sku", "text", "colour"]).to_csv(items, index=False)
    sales = [{"customer": f"c{u}", "item": f"p{(u + s) % 12}", "time": s} for u in range(10) for s in range(6)]
    interactions.write_text("".join(json.dumps(row) + "\n" for row in sales))
    return items, interactions


def config_of(files, **changes):
    given = {"source": str(files[0]), "interactions": str(files[1]), "id_field": "sku", "user_field": "customer"}
    return RecommenderConfig(**given, **changes)


def test_the_files_are_all_that_changes_in_a_preset(files):
    for preset in preset_names():
        config = config_of(files, preset=preset, attributes=["colour"], min_items=5)
        found = OwnDataPlan(config, None, 5000).settings
        assert list(found.task_settings()) == ["recommendation"]
        mine, theirs = found.tasks.recommendation, resolve(preset).tasks.recommendation
        assert (mine.source, mine.interactions, mine.register_as) == (*map(str, files), "products-1")
        assert (mine.id_field, mine.attributes, mine.min_items) == ("sku", ["colour"], 5)
        assert mine.adaptation == theirs.adaptation and found.pretrain == resolve(preset).pretrain
    assert set(CatalogueFiles.model_fields) < set(RecommenderConfig.model_fields)
    for name in ("sentiment", "base"):
        with pytest.raises(InvalidConfig, match="another kind of model"):
            config_of(files, name=name).registered_as()


def test_examples_are_known_by_what_the_files_hold(files, tmp_path):
    def examples(config):
        return make_plan(OwnDataPlan(config, None).settings).tasks["recommendation"].data

    before = examples(config_of(files))
    assert set(before.inputs) == {"source", "interactions"}
    moved = [file.rename(tmp_path / f"moved {file.name}") for file in files]
    assert examples(config_of(moved)).id == before.id
    assert examples(config_of(moved, min_items=5)).id != before.id
    moved[1].write_text(moved[1].read_text() + moved[1].read_text().splitlines()[0].replace("c0", "c99") + "\n")
    assert examples(config_of(moved)).id != before.id
    with pytest.raises(InvalidConfig, match=r"tasks.recommendation.interactions: .*sales.jsonl can't be read"):
        examples(config_of([moved[0], files[1]]))
    sample = make_plan(resolve("smoke")).tasks["recommendation"].data
    assert sample.inputs == {"source": identity("movielens")}  # as before there was a second file


def test_training_is_as_long_as_the_histories_say(files, tmp_path):
    config = config_of(files, preset="smoke", passes=4)
    own = OwnDataPlan(config, None)
    settings, key = own.settings.tasks.recommendation, own.keys.data
    made = Store(tmp_path / "store").make(key, lambda out: task("recommendation").prepare(settings, files[0], out))
    train = own.with_examples(made).settings.tasks.recommendation.train
    assert made.info["users"] == 10 and train.batch_size == 8 and train.steps == 4 * 10 // 8


def test_a_model_is_made_again_from_both_files_wherever_that_is_asked(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of([file.relative_to(tmp_path) for file in files])
    own = OwnDataPlan(config, None)
    made = Store(tmp_path / "store").make(Key("recommendation", {}, {}), lambda out: {})
    kept = record("recommendation", own.settings, own.plan, made)["config"]["tasks"]
    assert (kept["recommendation"]["source"], kept["recommendation"]["interactions"]) == tuple(map(str, files))
    assert kept["sentiment"]["source"] == "sample:posts" and not kept["sentiment"]["enabled"]
    assert "interactions" not in kept["sentiment"] and kept["recommendation"]["enabled"]


@pytest.mark.slow
def test_from_two_files_to_a_model_as_a_user_does_it(tmp_path, files, small_changes):
    home = Home(tmp_path, [])
    pipeline = [c for c in small_changes if "tasks" not in c]
    command = [sys.executable, "-m", "flows.cli", "train-recommender", *map(str, files), "--set", "id_field=sku"]
    refused = home.call(command, code=2)
    assert "sales.jsonl has no column 'user'; it has customer, item, time: set user_field" in refused
    small = [
        "--preset",
        "smoke",
        "--set",
        "max_steps=6",
        "--set",
        f"changes={pipeline}",
        "--set",
        "user_field=customer",
    ]
    told = home.call([*command, *small, "--dry-run"])
    assert "12 items of" in told and "as: Product number 0; colour: red" in told and "60 choices of" in told
    first = home.call([*command, *small])
    assert "a gpt2-base that is pretrained first (smoke)" in first and "Traceback" not in first
    assert re.search(r"gpt2-products-1 v1", first) and re.search(r"gpt2-base v1", first)
    before = home.artifacts()
    assert "Nothing to do" in home.call([*command, *small]) and home.artifacts() == before
    other = home.call(
        [*command, *small, "--name", "other", "--set", "min_items=5", "--set", "base=models:/gpt2-base/1"]
    )
    assert "made from gpt2-base version 1" in other and re.search(r"gpt2-other v1", other)
    kinds = {a.partition("/")[0] for a in home.artifacts() - before}
    assert kinds == {"recommendation" + rest for rest in ("", "-examples", "-contamination", "-report")}
    asked = tmp_path / "histories.jsonl"
    asked.write_text('{"history": ["p1", "Product number 2"]}\n')
    predict = [sys.executable, "-m", "flows.cli", "predict", "models:/gpt2-other/1"]
    home.call([*predict, "--input", str(asked), "--output", str(tmp_path / "ranked.jsonl")])
    [ranked] = [json.loads(line) for line in (tmp_path / "ranked.jsonl").read_text().splitlines()]
    assert len(ranked["ranking"]) == 10 and not {"Product number 1", "Product number 2"} & set(ranked["ranking"])
    given = ["--set", "model=models:/gpt2-other/1"]  # which knows that users are in the column `customer`
    recommended = home.call([sys.executable, "-m", "flows.cli", "recommend", str(files[1]), *given])
    assert "Recommendations for 10 users" in recommended
