"""A search for fine-tuning settings: what is tried, what is kept, and that the test split is not looked at."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from flows.config import InvalidConfig, resolve, settings
from flows.jobs.own_data_plan import ClassifierConfig, OwnDataPlan, RecommenderConfig, plan_of
from flows.jobs.search_plan import SearchConfig, SearchPlan, as_settings, best_of, candidates, rows, settings_of, table
from gpt2 import search
from gpt2.evaluation import plots
from gpt2.search import Curve
from gpt2.store.artifact import Key, read_manifest
from gpt2.store.model_files import MODEL
from gpt2.tasks.task import tasks
from gpt2.training_job import TrainingJob
from tests.conftest import WORDS
from tests.flows.jobs.test_refresh import Text
from tests.flows.test_pipeline import Home

RATES = {"train.optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def tried(space, task="sentiment", changes=(), trials=12, seed=0, preset="smoke", max_steps=None):
    config = SearchConfig(task=task, preset=preset, space=space, changes=list(changes), max_steps=max_steps)
    return candidates(settings_of(config, None), task, config.space, trials, seed)


def test_the_first_is_the_preset_and_no_two_are_alike():
    found = tried({**RATES, "train.batch_size": [4, 8, 16], "train.optimizer.warmup_steps": {"low": 0, "high": 2}})
    assert len(found) == 12 and found[0].drawn == {}
    assert found[0].train == resolve("smoke").tasks.sentiment.train
    assert len({json.dumps(c.identity()) for c in found}) == 12
    assert {c.train.batch_size for c in found} == {4, 8, 16}
    for c in found:  # what was not drawn is as it was
        assert c.train.batch_size % c.train.micro_batch_size == 0
        optimizer = c.train.optimizer.model_copy(update={"learning_rate": 0, "warmup_steps": 0})
        assert optimizer == found[0].train.optimizer.model_copy(update={"learning_rate": 0, "warmup_steps": 0})
    more = tried(
        {**RATES, "train.batch_size": [4, 8, 16], "train.optimizer.warmup_steps": {"low": 0, "high": 2}}, trials=20
    )
    assert more[:12] == found
    assert len(tried({"train.batch_size": [4, 8]})) == 2  # all that there are, once
    with pytest.raises(InvalidConfig, match="has no settings but the preset's own"):
        tried({"train.batch_size": [8]})


def test_only_what_an_adaptation_reads_is_drawn_with_it():
    found = tried(
        {"adaptation.kind": ["full", "lora", "prefix"], "adaptation.rank": [2, 4], "adaptation.prefix_length": [4, 8]}
    )
    assert {json.dumps(c.drawn) for c in found[1:]} == {
        json.dumps({"adaptation.kind": "lora", "adaptation.rank": 2}),
        json.dumps({"adaptation.kind": "lora", "adaptation.rank": 4}),
        json.dumps({"adaptation.kind": "prefix", "adaptation.prefix_length": 4}),
        json.dumps({"adaptation.kind": "prefix", "adaptation.prefix_length": 8}),
    }
    of_lora = ["tasks.sentiment.adaptation.kind=lora", "tasks.sentiment.adaptation.rank=4"]
    assert {c.adaptation.kind for c in tried({"adaptation.kind": ["full", "lora"]}, changes=of_lora)} == {
        "full",
        "lora",
    }


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"train.optimizer.learning_rte": [1]}, "there is no such setting; did you mean 'learning_rate'"),
        ({"source": ["a"]}, "no setting of fine-tuning"),
        ({"train.optimizer": [1]}, "is a section"),
        ({"train.optimizer.schedule": {"low": 0, "high": 1}}, "is no number and has no range"),
        ({"train.optimizer.schedule": ["cosine", "cosin"]}, "cosin"),
        (
            {"train.optimizer.learning_rate": {"low": 0.5, "high": 5}},
            r"learning_rate = 5\.0: .*less than or equal to 1",
        ),
        ({"train.batch_size": [8, 0]}, r"batch_size = 0: .*greater than or equal to 1"),
        ({"train.batch_size": [8, "many"]}, r"batch_size = 'many': .*integer"),
        ({"train.optimizer.warmup_steps": [0, 11]}, "warmup_steps=11 is longer than the training's 10 steps"),
        ({"train.steps": [10, 20]}, "set max_steps"),
        ({"train.seed": [1, 2]}, "lucky seed"),
        ({"train.micro_batch_size": [1, 2]}, "does not change what is learned"),
        ({"train.log_every.x": [1]}, "does not change what is learned"),
        ({"adaptation.rank": [1, 2]}, r"read with kind=lora only; add adaptation\.kind: \[lora\]"),
        ({"adaptation.kind": ["lora"], "adaptation.rank": [2, 64]}, "rank=64: is more than"),
        ({"adaptation.kind": ["lorra"]}, "lorra"),
        ({"adaptation.kind": [["full"]]}, r"adaptation\.kind"),
    ],
)
def test_a_wrong_space_is_refused_by_name(space, told):
    with pytest.raises(InvalidConfig, match=told):
        tried(space)


def test_every_preset_and_adaptation_has_a_space_of_its_own():
    for preset in ("smoke", "laptop", "gpt2"):
        for task in tasks():
            for kind in ("full", "lora", "prefix", "head"):
                found = tried({}, task, [f"tasks.{task}.adaptation.kind={kind}"], preset=preset, max_steps=20)
                assert len(found) == 12 and {c.adaptation.kind for c in found} == {kind}
    with pytest.raises(InvalidConfig, match="does not say how many steps"):
        tried({}, preset="gpt2")
    with pytest.raises(ValueError, match="is neither a range nor choices"):
        SearchConfig(task="sentiment", space={"train.batch_size": 8})


def a_search(space, name="sentiment", **given) -> SearchPlan:
    config = SearchConfig(task=name, preset=given.pop("preset", "smoke"), space=space, **given)
    changed = settings_of(config, None)
    found = candidates(changed, name, config.space, config.trials, config.seed)
    return SearchPlan(config, found, plan_of(changed, None), Key("search"))


@pytest.mark.parametrize(
    "given",
    [
        {"space": {**RATES, "train.batch_size": [2, 4, 24]}},
        {
            "space": {
                "adaptation.kind": ["lora"],
                "adaptation.targets": [["attn.qkv"], ["mlp.fc"]],
                "adaptation.rank": [2],
            }
        },
        {"space": RATES, "max_steps": 7, "changes": ["tasks.sentiment.train.context=32"]},
        {"space": {"adaptation.kind": ["full"]}, "changes": ["tasks.sentiment.adaptation={kind: lora, rank: 4}"]},
        {"space": RATES, "preset": "laptop"},
    ],
)
def test_the_best_is_a_file_that_the_pipeline_takes(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = a_search(trials=5, **given)
    for number, mine in enumerate(found.candidates):
        file = tmp_path / "best.yaml"
        file.write_text(as_settings(found, {"candidate": number, "validation_loss": 0.5}))
        whole = resolve(found.config.preset, file)
        assert whole.tasks.sentiment.train == mine.train
        assert whole.tasks.sentiment.adaptation.identity() == mine.adaptation.identity()
        assert whole.pretrain == resolve(found.config.preset).pretrain
        assert set(yaml.safe_load(file.read_text())) == {"tasks"}


@pytest.mark.parametrize("name", ["sentiment", "recommendation"])
def test_the_best_is_what_data_of_ones_own_are_learned_with(name, tmp_path):
    """Only how long, and in which batches, follows from the data."""
    space = {
        **RATES,
        "adaptation.kind": ["full", "lora"],
        "adaptation.rank": [2],
        "adaptation.model_dropout": [0.1, 0.3],
    }
    found = a_search(space, name, trials=8, changes=[f"tasks.{name}.train.context=32"])
    of_file = {"sentiment": ClassifierConfig, "recommendation": RecommenderConfig}
    given = {"source": "a.csv", "interactions": "b.csv", "preset": "smoke"}
    file = tmp_path / "best.yaml"
    for number, mine in enumerate(found.candidates):
        file.write_text(as_settings(found, {"candidate": number, "validation_loss": 0.5}))
        for task, schema in of_file.items():
            own = {k: v for k, v in given.items() if k in schema.model_fields}
            if task != name and number:
                with pytest.raises(InvalidConfig, match=f"these are settings of {name}; give"):
                    settings(schema, own, file, ())
        own = {k: v for k, v in given.items() if k in of_file[name].model_fields}
        learned = getattr(OwnDataPlan(settings(of_file[name], own, file, ()), None, 5000).settings.tasks, name)
        assert learned.adaptation.identity() == mine.adaptation.identity()
        assert learned.train.context == 32
        theirs, ours = mine.train.model_dump(), learned.train.model_dump()
        for of_length in ("steps", "epochs", "batch_size", "micro_batch_size"):
            ours[of_length] = theirs[of_length]
        ours["optimizer"]["warmup_steps"] = theirs["optimizer"]["warmup_steps"]
        assert ours == theirs
        changed = settings(of_file[name], own, file, [f"changes=[tasks.{name}.train.optimizer.learning_rate=0.5]"])
        assert getattr(OwnDataPlan(changed, None, 50).settings.tasks, name).train.optimizer.learning_rate == 0.5
    assert {c.adaptation.model_dropout for c in found.candidates} == {None, 0.1, 0.3}


def test_what_is_no_result_of_a_search_is_refused(tmp_path):
    file = tmp_path / "best.yaml"
    for text, told in (
        ("tasks: {sentiment: {source: b.csv}}", "sentiment has source; give only train and adaptation"),
        ("tasks: {sentiment: 3}", "sentiment has 3; give only"),
        ("tasks: {mood: {}}", "these are settings of mood"),
        ("pretrain: {steps: 3}", "pretrain: there is no such setting"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidConfig, match=told):
            settings(ClassifierConfig, {"source": "a.csv"}, file, ())
    file.write_text("tasks: {sentiment: {train: {optimizer: {learning_rte: 1}}}}")
    with pytest.raises(InvalidConfig, match=r"sentiment\.train\.optimizer\.learning_rte: there is no such"):
        assert OwnDataPlan(settings(ClassifierConfig, {"source": "a.csv"}, file, ()), None).settings


def test_the_best_came_to_its_end():
    found = a_search(RATES, trials=5)
    curves = [
        Curve([(2, 1.0), (4, 0.7)], True),
        Curve([(2, 0.3)]),
        Curve([(2, 1.2), (4, 0.6)], True),
        Curve([(2, 1.0), (4, search.WORST)], True),
        Curve([], True, "it was no good"),
    ]
    told = rows(found, curves)
    assert json.loads(json.dumps(told, allow_nan=False)) and best_of(told)["candidate"] == 2
    assert [r["state"] for r in told] == ["ended", "stopped early", "ended", "ended", "failed"]
    assert [r["candidate"] for r in table(told)] == [2, 0, 3, 1, 4]
    assert "it was no good" in table(told)[-1]["state"]
    drawn = plots.search(told, 2)
    assert [axes.get_xlabel() for axes in drawn.axes] == ["step", "learning_rate"]
    assert len(drawn.axes[0].lines) == 4  # the last told nothing
    assert len(plots.search([{**row, "settings": {}} for row in told], 0).axes) == 1
    with pytest.raises(ValueError, match="no candidate finished"):
        best_of(told[1:2])


SUPPORT = "question,answer\n" + "".join(
    f"how is {w} number {i},answer {w}\n"
    for i, w in enumerate(["film", "river", "city", "night", "horse", "train", "light", "music"] * 5)
)


@pytest.fixture(scope="module")
def text(tmp_path_factory, small_changes, small_data):
    """A pretrained model and all tasks' examples, without Ray."""
    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_HOME", str(folder / "home"))
        made = Text(folder, small_changes)
        base = made.pretrained()
    (folder / "faq.csv").write_text(SUPPORT)
    sources = {
        "sentiment": small_data["posts"],
        "recommendation": small_data["interactions"],
        "support": folder / "faq.csv",
    }
    reviews = [(f"This film is a {a} and {b} one.", 1) for a in WORDS for b in WORDS if a != b]
    sources["reasons"] = folder / "reviews.csv"
    pd.DataFrame(reviews, columns=["text", "label"]).to_csv(sources["reasons"], index=False)
    own = {"reasons": {"catalogue": str(small_data["interactions"]), "test_share": 0.2}}
    for name, task in tasks().items():
        out = folder / "examples" / name
        out.mkdir(parents=True)
        task.prepare(task.Settings(source=str(sources[name]), **own.get(name, {})), Path(sources[name]), out)
    return base, folder / "examples"


def job(text, name, examples, out, **train) -> TrainingJob:
    base, _ = text
    settings = getattr(resolve("smoke", None, [f"tasks.{name}.enabled=true"]).tasks, name).train
    short = {"steps": 6, "epochs": 100, "batch_size": 4, "micro_batch_size": 4, "context": 64, "precision": "fp32"}
    own = settings.model_validate({**settings.model_dump(), **short, **train, "optimizer": {"warmup_steps": 0}})
    return TrainingJob(
        name=name, train=search.watched(own, 2, 16), tokenizer=str(base.tokenizer.path), output=str(out),
        base=str(base.base.path / MODEL), examples=str(examples),
    )  # fmt: skip


def poisoned(name: str, examples: Path) -> None:
    """The test split, changed beyond recognition, or gone where it has a file of its own."""
    if name in ("sentiment", "reasons"):
        (examples / "test.parquet").write_bytes(b"no table")
    elif name == "recommendation":
        table = pd.read_parquet(examples / "histories.parquet")
        table["items"] = [[*items[:-1], 10**9] for items in table["items"]]
        table.to_parquet(examples / "histories.parquet")
    else:
        table = pd.read_parquet(examples / "pairs.parquet")
        assert (table["split"] == "test").any()
        table.loc[table["split"] == "test", "question"] = "poison"
        table.to_parquet(examples / "pairs.parquet")


@pytest.mark.parametrize("name", list(tasks()))
def test_a_candidate_learns_the_same_whatever_the_test_split_holds(name, text, tmp_path):
    told = []
    for poison in (False, True):
        folder = tmp_path / str(poison)
        shutil.copytree(text[1] / name, folder / "examples")
        if poison:
            poisoned(name, folder / "examples")
        seen = search.without_test(folder / "examples", folder / "seen")
        assert not list(seen.glob("test*")) and list(seen.iterdir())
        curve = search.run(job(text, name, seen, folder / "out"), 6, lambda step, loss: None)
        assert curve.ended and curve.reason is None
        told.append(curve.points)
    assert told[0] == told[1] and [step for step, _ in told[0]] == [2, 4, 6]


def test_a_stopped_candidate_tells_again_what_it_told_and_goes_on(text, tmp_path):
    class Stopped(Exception):
        pass

    def until(limit):
        def tell(step, loss):
            told.append((step, loss))
            if step >= limit:
                raise Stopped

        return tell

    whole = search.run(job(text, "sentiment", text[1] / "sentiment", tmp_path / "whole"), 6, lambda *point: None)
    told: list = []
    mine = job(text, "sentiment", text[1] / "sentiment", tmp_path / "part")
    for limit in (4, 4):  # the second time nothing is trained: its base is away
        with pytest.raises(Stopped):
            search.run(mine, 6, until(limit))
        mine = mine.model_copy(update={"base": "away"})
    assert told == [*whole.points[:2], *whole.points[:2]]
    told.clear()
    found = search.run(mine.model_copy(update={"base": str(text[0].base.path / MODEL)}), 6, until(7))
    assert told == whole.points == found.points and found.ended
    told.clear()
    with pytest.raises(Stopped):  # stopped as it tells of its last step: it has ended
        search.run(mine, 6, until(6))
    assert told == whole.points and search.Curve.read(tmp_path / "part") == found
    last = job(text, "sentiment", text[1] / "sentiment", tmp_path / "last")
    with pytest.raises(Stopped):
        search.run(last, 6, until(6))
    assert search.Curve.read(tmp_path / "last") == found


def test_what_cannot_be_trained_fails_alone_and_says_why(text, tmp_path):
    told = []
    mine = job(text, "sentiment", text[1] / "sentiment", tmp_path / "out", epochs=0.001)
    for _ in range(2):
        found = search.run(mine, 6, lambda *point: told.append(point))
        assert found.ended and "but epochs=0.001 are declared" in found.reason
    assert told == [(6, search.WORST)] * 2


@pytest.mark.slow
def test_a_search_as_a_user_does_it(tmp_path, small_changes):
    """Refused without a base; killed and run again; the test split away; the best used; done once."""
    home = Home(tmp_path, [*small_changes, "tasks.recommendation.enabled=false"])
    gpt2 = [sys.executable, "-m", "flows.cli"]
    mine = [c for c in small_changes if c.startswith("tasks.sentiment.source")]
    space = "space={train.optimizer.learning_rate: {low: 1e-4, high: 1e-1, log: true}, train.batch_size: [4, 8]}"
    options = ["--preset", "smoke", "--trials", "7", "--max-steps", "18", "--set", f"changes={mine}", "--set", space]
    command = [*gpt2, "search", "sentiment", *options, "--set", "parallel=1"]
    assert "make one first: gpt2 run --preset smoke" in home.call(command, code=2)
    home.run()
    command += ["--set", "base=models:/gpt2-base/1"]
    [examples] = home.folder.glob("home/store/sentiment-examples/*")
    truth = (examples / "test.parquet").read_bytes()
    (examples / "test.parquet").write_bytes(bytes(len(truth)))  # nobody can read it
    for sent, told in ((signal.SIGTERM, "000"), (signal.SIGKILL, "001")):
        process = subprocess.Popen(
            command, cwd=home.folder, env=home.environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + 240
        while not list(home.folder.glob(f"home/store/.partial/search-*/_candidates/{told}/curve.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        family = psutil.Process(process.pid).children(recursive=True)
        (os.kill if sent == signal.SIGTERM else os.killpg)(process.pid, sent)
        assert process.wait(60) == {signal.SIGTERM: 143, signal.SIGKILL: -9}[sent]
        assert not psutil.wait_procs(family, timeout=60)[1]
    [first] = home.folder.glob("home/store/.partial/search-*/_candidates/000/curve.json")
    kept = json.loads(first.read_text())
    kept["points"][-1][1] += 1e-9  # to be known by
    first.write_text(json.dumps(kept))
    said = home.call(command)
    assert re.search(r"candidate 0: step 18 of 18, validation loss \d", said) and "Traceback" not in said
    assert not list(home.folder.glob("home/store/.partial/search-*"))
    [made] = home.folder.glob("home/store/search/*")
    assert (made / "candidates.png").stat().st_size > 5000
    found = json.loads((made / "candidates.json").read_text())
    assert len(found) == 7 and found[0]["settings"] == {} and {"ended", "stopped early"} == {r["state"] for r in found}
    best = min((r for r in found if r["state"] == "ended"), key=lambda r: r["validation_loss"])
    info = read_manifest(made)["info"]
    assert info["best"] == best["candidate"] and info["best_validation_loss"] == best["validation_loss"]
    assert found[0]["validation_loss"] == kept["points"][-1][1]  # read, not trained again
    before = home.artifacts()
    assert "Nothing to do" in home.call(command) and home.artifacts() == before
    shutil.rmtree(made)  # again from the beginning: with one at a time nothing is left to chance
    home.call(command)
    again = json.loads((made / "candidates.json").read_text())
    assert again[0]["validation_loss"] == found[0]["validation_loss"] - 1e-9 and again[1:] == found[1:]
    (examples / "test.parquet").write_bytes(truth)
    home.call(home.command("run", "--config", str(made / "best.yaml")))
    posts = mine[0].partition("=")[2]
    small = ["--preset", "smoke", "--name", "mine", "--set", "max_steps=4", "--config", str(made / "best.yaml")]
    assert "gpt2-mine" in home.call([*gpt2, "train-classifier", posts, *small])
    specs = [read_manifest(p) for p in home.folder.glob("home/store/sentiment/*")]
    rate = best["settings"].get("train.optimizer.learning_rate")
    assert any(m["spec"]["train"]["optimizer"]["learning_rate"] == rate for m in specs) or not best["settings"]
