"""`gpt2 models`, `promote`, `rollback`, `card` on real versions; and what can't be reproduced is refused."""

import json

import pytest

from cluster.registry import by_alias, challenge
from cluster.tracking import client
from flows.cli import app
from flows.config import resolve
from flows.plan import make_plan
from flows.provenance import RECORD, keys_of, record
from flows.reproduction import check
from gpt2.artifact import Artifact
from tests.cluster.small import registered

NAME = "gpt2-commands"


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Two versions: a champion by force, and one that the gate refused."""
    made = []
    for seed in (0, 1):
        tags = {"gpt2.metric": "macro_f1", "gpt2.value": f"0.7{seed}", "gpt2.floor": "0.3", "gpt2.data": "0123456789ab"}
        texts = {"README.md": f"# Card {seed}\n"}
        made.append(registered(NAME, tmp_path_factory.mktemp("model"), seed=seed, tags=tags, texts=texts))
    client().set_model_version_tag(NAME, "1", "gpt2.refused", "worse than the champion: 0.70 against 0.71")
    challenge(NAME, made[0])
    return made


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
    with pytest.raises(ValueError, match="the code of 'base model' is another now"):
        check(found, "models:/x/1")


def test_changed_and_missing_data_are_told(recorded):
    found, data = recorded
    data.write_text(data.read_text() + "one more good film,positive\n")
    with pytest.raises(ValueError, match="its data has changed: 'source' of 'sentiment examples'"):
        check(found, "models:/x/1")
    data.unlink()
    with pytest.raises(ValueError, match="its data is gone"):
        check(found, "models:/x/1")


def test_a_version_without_record_says_so(versions):
    with pytest.raises(ValueError, match=f"it has no {RECORD}"):
        gpt2("reproduce", f"models:/{NAME}/1")
