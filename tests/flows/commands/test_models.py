"""`gpt2 models`, `promote`, `rollback`, `card` on real versions; and what can't be reproduced is refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt2 as gpt2_package
from cluster.home import tracking_uri
from cluster.registry import download
from cluster.registry.versions import by_alias, challenge, unusable_champions
from cluster.tracking.runs import client
from flows.cli import app
from flows.commands import machine
from flows.config import resolve
from flows.jobs.own_data_plan import ClassifierConfig, OwnDataPlan
from flows.jobs.reproduce import check
from flows.plan import make_plan
from flows.stages.provenance import RECORD, keys_of, record, with_base
from gpt2.store.artifact import Artifact
from gpt2.store.model_files import RefusedModel
from tests.cluster.small import TEXTS, registered
from tests.flows.jobs.test_refresh import Text
from tests.hub import loopback

NAME = "gpt2-commands"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Two versions in a registry of their own: a champion by force, and one that the gate refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_HOME", str(tmp_path_factory.mktemp("home")))
        made = []
        for seed in (0, 1):
            tags = {"gpt2.metric": "macro_f1", "gpt2.value": f"0.7{seed}", "gpt2.floor": "0.3"}
            tags["gpt2.data"] = "0123456789ab"
            texts = {"README.md": f"# Card {seed}\n"}
            made.append(registered(NAME, tmp_path_factory.mktemp("model"), seed=seed, tags=tags, texts=texts))
        client().set_model_version_tag(NAME, "1", "gpt2.refused", "worse than the champion: 0.70 against 0.71")
        challenge(NAME, made[0])
        yield made


def gpt2(*words):
    app(list(words), result_action="return_value")


def test_from_two_versions_to_a_champion_and_back(versions, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(ValueError, match=r"was not promoted: worse than the champion.*--force"):
        gpt2("promote", NAME, "1")
    gpt2("promote", NAME, "1", "--force", "--reason", "a first one")
    gpt2("promote", NAME, "2", "--force", "--reason", "the gate is asleep")
    assert "version 2 is the champion now; it was version 1" in capsys.readouterr().out
    gpt2("rollback", NAME, "--reason", "strange answers")
    assert "version 1 is the champion again, instead of 2" in capsys.readouterr().out
    assert int(by_alias(NAME, "champion").version) == 1
    gpt2("models")
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    mine = told[told.index(NAME) :]
    assert "@champion" in mine and "@challenger" in mine and "macro_f1" in mine and "0.7100" in mine
    assert "data 01234567" in mine and "rolled back" in mine and "strange answers" in mine
    gpt2("card", f"models:/{NAME}@champion")
    told = capsys.readouterr().out
    assert told.startswith("# Card 0") and "forced: " in told and "a first one" in told
    gpt2("card", f"models:/{NAME}/2", "--output", str(tmp_path / "card.md"))
    assert "strange answers" in (tmp_path / "card.md").read_text()


def test_predict_pulls_and_tells(versions, tmp_path, capsys):
    (tmp_path / "posts.txt").write_text("a good flight\nmy bag is lost\n")
    gpt2("predict", f"models:/{NAME}/1", "--input", str(tmp_path / "posts.txt"), "--output", str(tmp_path / "o.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and set(rows[0]) == {"label", "probability_negative", "probability_positive"}


@pytest.fixture
def recorded(small_changes, small_data, tmp_path):
    """The record of a sentiment model that the smallest pipeline would make, its data in a place of its own."""
    data = tmp_path / "posts.csv"
    data.write_bytes(small_data["posts"].read_bytes())
    config = resolve("smoke", None, [*small_changes, f"tasks.sentiment.source={data}"])
    plan = make_plan(config)
    key = plan.tasks["sentiment"].model
    found = record("sentiment", config, plan, Artifact(tmp_path, {"kind": key.kind, "id": key.id}))
    return json.loads(json.dumps(found)), data


def test_a_record_gives_the_same_artifact_alone_and_from_another_folder(recorded, tmp_path, monkeypatch):
    found, _ = recorded
    monkeypatch.chdir(tmp_path)
    plan = make_plan(check(found, "models:/x/1"))
    assert list(plan.tasks) == ["sentiment"]
    assert keys_of("sentiment", plan)[-1][1].id == found["artifact"]["id"]


def test_what_cant_be_made_again_is_refused_with_the_reason(recorded):
    found, _ = recorded
    for stage in found["stages"]:
        if stage["what"] == "base model":
            stage |= {"code": "0" * 64, "id": "0" * 16}
    with pytest.raises(ValueError, match="the code of 'base model' has changed"):
        check(found, "models:/x/1")


def test_changed_and_missing_data_are_told(recorded):
    found, data = recorded
    data.write_text(data.read_text() + "one more good film,positive\n")
    with pytest.raises(ValueError, match="its data has changed: 'source' of 'sentiment examples'"):
        check(found, "models:/x/1")
    data.unlink()
    with pytest.raises(ValueError, match="its data is missing"):
        check(found, "models:/x/1")


@pytest.fixture
def learned(tmp_path, small_changes, small_data, monkeypatch):
    """A base model of a text of its own, and a classifier that it became by a preset whose text is another."""
    text, name = Text(tmp_path, small_changes), f"gpt2-text-{tmp_path.name[-8:].strip('_').lower()}"
    with monkeypatch.context() as patch:
        patch.setenv("GPT2_HOME", str(tmp_path / "home"))
        base = text.pretrained()
        plan = make_plan(text.config)
        theirs = record("base", text.config, plan, base.base)
        config = ClassifierConfig(source=str(small_data["posts"]), preset="laptop", name="mine")
        own_data = OwnDataPlan(config, base, 300)
        settings, mine = own_data.settings, own_data.plan
        key = mine.tasks["sentiment"].model
        own = record("sentiment", settings, mine, Artifact(tmp_path, {"kind": key.kind, "id": key.id}))
    version = registered(name, tmp_path / "b", texts={RECORD: json.dumps(theirs)})
    tags = {"gpt2.base_version": f"{name}/{version.version}"}
    made = registered(f"{name}-mine", tmp_path / "m", tags=tags, texts={RECORD: json.dumps(own)})
    return text, base, made, own


def test_a_classifier_is_made_again_with_the_text_of_its_base_or_says_why_not(learned):
    text, base, made, own = learned
    config = check(with_base(own, made), "models:/x/1")
    assert config.corpus.sources == [str(p) for p in sorted(text.folder.iterdir())]
    plan = make_plan(config)
    assert plan.base.id == base.base.id and plan.tasks["sentiment"].model.id == own["artifact"]["id"]
    assert list(plan.tasks) == ["sentiment"]
    # Why it can't be made again is told truly.
    with (text.folder / "a.jsonl").open("a") as stream:
        stream.write('{"text": "one more"}\n')
    with pytest.raises(ValueError, match=r"its data has changed: 'source' of 'documents of a\.jsonl'"):
        gpt2("reproduce", f"models:/{made.name}/1")
    whole = with_base(own, made)
    for stage in whole["stages"]:
        if stage["what"] == "base model":
            stage["inputs"]["parent"] = "f" * 16
    with pytest.raises(ValueError, match="its 'base model' is a refresh, which continued from base/ffffffffffffffff"):
        check(whole, "models:/x/1")
    whole = with_base(own, made)
    whole["config"]["corpus"]["sources"] = [str(text.folder)]
    (text.folder / "c.jsonl").write_text('{"text": "another file"}\n')
    with pytest.raises(ValueError, match=r"corpus\.sources held 2 files, now 3"):
        check(whole, "models:/x/1")
    client().delete_registered_model(made.tags["gpt2.base_version"].partition("/")[0])
    with pytest.raises(ValueError, match=rf"can't be made again without {made.tags['gpt2.base_version']}: "):
        gpt2("reproduce", f"models:/{made.name}/1")


def test_a_champion_whose_files_mlflow_removed_is_told_with_the_remedy(tmp_path, capsys, monkeypatch):
    """As an operator removes them: the LoggedModel is deleted, and `mlflow gc` empties the bin."""
    name = "gpt2-gone"
    version = registered(name, tmp_path)
    client().set_registered_model_alias(name, "champion", version.version)
    monkeypatch.setenv("COLUMNS", "400")
    before = unusable_champions()  # of other tests
    assert not any(name in sentence for sentence in before) and f"{name}/1 is refused" not in told_by("models", capsys)
    assert machine.champions().state == ("failed" if before else "ok")
    model = version.source.rpartition("/")[2]
    client().delete_logged_model(model)
    addresses = ["--backend-store-uri", tracking_uri(), "--tracking-uri", tracking_uri()]
    mlflow = [sys.executable, "-m", "mlflow", "gc", *addresses, "--logged-model-ids", model]
    subprocess.run(mlflow, check=True, capture_output=True)
    why = f"models:/{name}/1 is refused: its files are gone from MLflow: did `mlflow gc` remove them?; use another"
    with pytest.raises(RefusedModel, match=rf"{re.escape(why)} .* gpt2 rollback {name}"):
        gpt2_package.load(f"models:/{name}@champion")
    assert why in told_by("models", capsys)
    assert machine.champions().state == "failed" and why in machine.champions().remedy
    client().delete_registered_model(name)


def test_a_pushed_model_is_what_transformers_reads(tmp_path, capsys, monkeypatch):
    tags, texts = {"gpt2.imported_from": "acme/first@0123"}, {"README.md": "# The card\n"}
    version = registered("gpt2-pushed", tmp_path, "base", tags=tags, texts=texts)
    registered("gpt2-unpushed", tmp_path / "labels")
    with loopback() as (hub, address):
        for name, value in {"ENDPOINT": address, "HF_HUB_DISABLE_XET": True, "HF_HUB_CACHE": str(tmp_path)}.items():
            monkeypatch.setattr(constants, name, value)
        gpt2("push", f"models:/gpt2-pushed/{version.version}", "acme/mine")
        assert capsys.readouterr().out.strip() == f"models:/gpt2-pushed/1 is at {address}/acme/mine"
        with pytest.raises(ValueError, match="is a model for sentiment, which `transformers` can't read"):
            gpt2("push", "models:/gpt2-unpushed/1", "acme/labels")
        hub.gated.add("acme/mine")
        with pytest.raises(ValueError, match=r"acme/mine: the hub did not take the model: .*; log in with a token"):
            gpt2("push", "models:/gpt2-pushed/1", "acme/mine")
    for name, content in (files := hub.repositories["acme/mine"]["main"]).items():
        (tmp_path / "pushed").mkdir(exist_ok=True)
        (tmp_path / "pushed" / name).write_bytes(content)
    assert set(files) == {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    card = ModelCard.load(tmp_path / "pushed" / "README.md")
    assert (card.data.base_model, card.data.library_name, card.text.strip()) == (
        "acme/first",
        "transformers",
        "# The card",
    )
    theirs, words = (c.from_pretrained(tmp_path / "pushed") for c in (AutoModelForCausalLM, AutoTokenizer))
    ours = gpt2_package.load("models:/gpt2-pushed/1").predictor
    ids = words(TEXTS[0], return_tensors="pt")["input_ids"]
    assert ids.tolist() == [ours.tokenizer.encode(TEXTS[0])] and words.eos_token_id == ours.tokenizer.end_of_text
    with torch.inference_mode():
        assert (theirs.eval()(ids).logits - ours.model.logits(ours.model.hidden(ids))).abs().max() <= 1e-5


def told_by(command, capsys):
    gpt2(command)
    return capsys.readouterr().out


def test_a_version_without_record_says_so(versions):
    with pytest.raises(ValueError, match=f"it has no {RECORD}"):
        gpt2("reproduce", f"models:/{NAME}/1")


def test_texts_to_label_are_written_for_people(versions, tmp_path, capsys):
    (tmp_path / "in.csv").write_text("text,topic\nMy bag is lost,air\nWhat a crew,sea\nMy bag is lost,air\n,sea\n")
    words = ["label", f"models:/{NAME}/1"]
    gpt2(*words, "--input", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv"))
    assert "2 texts to label are in" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "out.csv")
    assert dict(zip(table["topic"], table["text"], strict=True)) == {"air": "My bag is lost", "sea": "What a crew"}
    assert table["label"].isna().all() and set(table["suggested"]) <= {"negative", "positive"}
    with pytest.raises(ValueError, match=r"needs --input FILE and --output FILE\.csv"):
        gpt2(*words)


SAY = "import runpy, sys, atexit; atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))"


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        (["--help"], ("numpy", "pandas", "pydantic", "fsspec", "mlflow", "prefect", "ray", "torch", "flows.config")),
        (["models"], ("numpy", "pandas", "mlflow", "sqlalchemy", "prefect", "ray", "torch", "flows.config")),
        (["predict", f"models:/{NAME}@challenger", "--input", "in.txt", "--output", "out.jsonl"],
         ("mlflow", "sqlalchemy", "fastapi", "prefect", "ray", "deepspeed", "torch._dynamo", "sympy", "flows.config")),
    ],
    ids=["help", "models", "predict"],
)  # fmt: skip
def test_a_command_imports_only_what_it_uses(versions, tmp_path, command, unused):
    download.pull(f"models:/{NAME}@challenger")  # the copy that a first call makes
    (tmp_path / "in.txt").write_text("My bag is lost\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = f"{SAY}; runpy.run_module('flows.cli', run_name='__main__')"
    words = [sys.executable, "-c", code, *command]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = set(done.stderr.splitlines()[-1].split())
    assert "cyclopts" in imported and imported.isdisjoint(unused)
