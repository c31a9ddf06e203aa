"""Only what is new is read, encoded and learned; the chain of parents leads back to all text."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cluster.batch import tokenization
from cluster.batch.evaluation import HeldOut, _evaluate_base, passes, token_files
from cluster.home import store
from cluster.registry.lineage import Lineage, lineage
from flows.config import InvalidConfig, merged, resolve, validate
from flows.jobs.refresh_plan import RefreshPlan
from flows.plan import make_plan
from flows.stage_code import stage_code
from gpt2.data import canaries
from gpt2.data.corpus import normalise
from gpt2.data.shards import TokenStream
from gpt2.data.splits import content_digest, is_validation
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import contamination
from gpt2.store.artifact import DamagedArtifact, Key
from gpt2.tasks.base import exposure
from gpt2.training_job import TrainingJob, build
from tests.conftest import sentence
from tests.flows.test_pipeline import Home

SHARE = 0.2


class Writer:
    """Made-up documents, no two alike."""

    def __init__(self, seed: int, words: str = ""):
        self.generator, self.words = random.Random(seed), words.split()

    def texts(self, count: int) -> list[str]:
        return [" ".join(self.sentence() for _ in range(4)) for _ in range(count)]

    def sentence(self) -> str:
        if not self.words:
            return sentence(self.generator)
        return " ".join(self.generator.choice(self.words) for _ in range(12)).capitalize() + "."


def write(path, documents: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))


class Text:
    """A folder of sources, and models of it, without training and without Ray."""

    def __init__(self, folder, changes):
        self.folder = folder / "text"
        self.writer = Writer(1)
        self.first, self.other = self.writer.texts(80), self.writer.texts(60)
        write(self.folder / "a.jsonl", self.first)
        write(self.folder / "b.jsonl", self.other)
        changes = [*changes, f"corpus.sources=[{self.folder}]", f"corpus.validation_share={SHARE}"]
        self.config = resolve("smoke", None, [*changes, "refresh.min_new_documents=5"])

    def pretrained(self) -> Lineage:
        plan, s, say = make_plan(self.config), store(), lambda message: None
        corpus, shape = self.config.corpus, self.config.tokenizer
        documents = tokenization.clean_documents(s, plan.documents, plan.sources, corpus, say, here=True)
        merged = s.make(plan.corpus, lambda out: tokenization.deduplicate(documents, out))
        tokenizer = s.make(
            plan.tokenizer, lambda out: tokenization.train_tokenizer(documents, merged, corpus, shape, out)
        )
        tokens = s.make(
            plan.tokens,
            lambda out: tokenization.encode(
                s,
                documents,
                merged,
                tokenizer,
                corpus,
                shape.dtype,
                stage_code("encode"),
                out,
                say,
                here=True,
                planted=self.config.canaries,
            ),
        )
        return lineage("1", self.model(plan.base, tokenizer, tokens))

    def model(self, key, tokenizer, tokens):
        job = TrainingJob(
            name="base", train=self.config.pretrain, tokenizer=str(tokenizer.path), output="",
            model=self.config.model_config_with_vocabulary(),
            tokens=token_files(tokens).model_copy(update={"replayed": 0}),
        )  # fmt: skip
        return store().make(key, lambda out: build(job).save(out / "model"))

    def find(self, new: RefreshPlan):
        """What the flow's first task makes."""

        def dedupe(out):
            found = tokenization.clean_documents(s, new.documents, new.sources, corpus, print, here=True)
            return tokenization.deduplicate(found, out, new.champion.documents())

        s, corpus = store(), new.config.corpus
        return s.make(new.corpus, dedupe)

    def refreshed(self, new: RefreshPlan, version: str) -> Lineage:
        s, merged, before = store(), self.find(new), new.champion

        def encode(out):
            documents = [s.require("documents", key.id) for key in new.documents]
            return tokenization.encode(
                s, documents, merged, before.tokenizer, new.config.corpus, new.config.tokenizer.dtype,
                stage_code("encode"), out, print, before.tokens[-1], here=True,
            )  # fmt: skip

        tokens = s.make(new.tokens, encode)
        return lineage(version, self.model(new.plan(tokens).base, before.tokenizer, tokens))


@pytest.fixture
def text(tmp_path, small_changes, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    return Text(tmp_path, small_changes)


def split_of(documents: list[str]) -> dict[str, list[str]]:
    """The documents of each split, by the rule."""
    marks = {d: is_validation(content_digest(normalise(d)), SHARE) for d in documents}
    return {"train": [d for d in marks if not marks[d]], "validation": [d for d in marks if marks[d]]}


def decoded(champion: Lineage) -> list[dict[str, list[str]]]:
    """The documents in the old and in the new shards of a lineage's tokens, by split."""
    tokenizer, found = Tokenizer.load(champion.tokenizer.path), []
    for half in token_files(champion.tokens[-1]).old_and_new():
        splits = {}
        for split in ("train", "validation"):
            stream = TokenStream([store().root / p for p in getattr(half, split)], half.dtype)
            whole = tokenizer.decode(stream.read(0, len(stream)).tolist())
            splits[split] = [d for d in whole.split("<|endoftext|>") if d]
        found.append(splits)
    return found


def test_what_is_new_is_found_encoded_and_chained(text):
    first = text.pretrained()
    new = RefreshPlan.of(text.config, first)
    assert new.documents == () and "knows all 2 source files" in new.nothing()

    # A new file with a duplicate of an old document, and a changed file: one document gone, some new, one twice.
    fresh, more = text.writer.texts(30), text.writer.texts(12)
    write(text.folder / "c.jsonl", [*fresh, text.other[3], fresh[0]])
    write(text.folder / "b.jsonl", [*more[:6], *text.other[1:], *more[6:], more[0]])
    new = RefreshPlan.of(text.config, first)
    assert [os.path.basename(path) for path in new.sources] == ["b.jsonl", "c.jsonl"] and new.files == 3
    assert new.nothing() is None and new.small
    merged = text.find(new)
    assert merged.info["unique_documents"] == 42 and merged.info["documents"] == 60 + 11 + 32 + 1
    second = text.refreshed(new, "2")

    old, added = decoded(second)
    for split, documents in split_of([*fresh, *more]).items():
        assert sorted(added[split]) == sorted(documents)
    for split, documents in split_of([*text.first, *text.other]).items():
        assert sorted(old[split]) == sorted(documents)
    # The old shards are those that were there, not copies.
    listing = json.loads(second.tokens[-1].file("tokens.json").read_text())
    assert set(listing["train"]).isdisjoint(json.loads(first.tokens[-1].file("tokens.json").read_text())["train"])
    info, before = second.tokens[-1].info, first.tokens[-1].info
    for name in tokenization.COUNTS:
        assert info[name] == before[name] + info[f"new_{name}"]

    assert "knows all 3 source files" in RefreshPlan.of(text.config, second).nothing()
    # A file that is only put in another order is changed, and holds nothing new.
    write(text.folder / "c.jsonl", fresh[::-1])
    again = RefreshPlan.of(text.config, second)
    assert again.nothing() is None
    text.find(again)
    assert "knows all that 1 new or changed files hold" in again.nothing()
    # Less than the minimum waits.
    few = text.writer.texts(4)
    write(text.folder / "d.jsonl", few)
    waiting = RefreshPlan.of(text.config, second)
    text.find(waiting)
    assert "4 documents in 2 new or changed files are new to the champion" in waiting.nothing()
    # A refresh of a refresh: parents of parents.
    last = text.writer.texts(20)
    write(text.folder / "e.jsonl", last)
    third = text.refreshed(RefreshPlan.of(text.config, second), "3")
    assert [t.id for t in third.tokens] == [first.tokens[0].id, second.tokens[-1].id, third.tokens[-1].id]
    old, added = decoded(third)
    everything = split_of([*text.first, *text.other, *fresh, *more])
    assert all(sorted(old[s]) == sorted(everything[s]) for s in everything)
    assert all(sorted(added[s]) == sorted(split_of([*few, *last])[s]) for s in everything)
    # The same documents, in the same splits, as a whole run on all of the text; the one that has gone stays learned.
    whole = text.pretrained().tokens[-1].info
    gone = {f"{s}_documents": int(text.other[0] in split_of(text.other)[s]) for s in ("train", "validation")}
    assert all(third.tokens[-1].info[name] == whole[name] + gone[name] for name in gone)

    # A parent that is gone is a clear error, and so is a shard.
    shutil.move(first.tokens[0].path, text.folder / "away")
    with pytest.raises(
        DamagedArtifact, match=rf"tokens/{second.tokens[-1].id} was made from tokens/{first.tokens[0].id}"
    ):
        token_files(third.tokens[-1])
    with pytest.raises(DamagedArtifact, match="or train anew on all text with the whole pipeline: gpt2 run"):
        lineage("3", third.base)
    shutil.move(text.folder / "away", first.tokens[0].path)
    os.unlink(token_files(third.tokens[-1]).train[0])
    with pytest.raises(DamagedArtifact, match=r"is missing, a shard of .*; restore it, or tokenize again"):
        token_files(third.tokens[-1])


def test_the_plan_is_the_champions_and_says_where_from(text):
    first = text.pretrained()
    write(text.folder / "c.jsonl", text.writer.texts(30))
    other = ["tokenizer.vocab_size=400", "model.n_layer=3", "corpus.validation_share=0.4", "refresh.replay_share=0.75"]
    changes = [f"corpus.sources=[{text.folder}]", "refresh.min_new_documents=5", "pretrain.optimizer.warmup_steps=20"]
    config = resolve("smoke", None, [*changes, *other])
    new = RefreshPlan.of(config, first)
    assert new.config.model_config_with_vocabulary() == first.model
    assert new.config.corpus.validation_share == SHARE
    second = text.refreshed(new, "2")
    tokens = second.tokens[-1]
    plan, train = new.plan(tokens), new.training(tokens)
    samples = (tokens.info["new_train_tokens"] - 1) // config.pretrain.context
    assert train.steps == -(-4 * samples // 8) and train.optimizer.warmup_steps == round(0.1 * train.steps)
    assert plan.base.inputs["parent"] == first.base.id and plan.tokenizer.id == first.tokenizer.id
    assert plan.tags["gpt2.refreshed_from"] == "gpt2-base/1" and plan.tags["gpt2.new_documents"] == "30"
    assert new.plan(tokens).base.id == plan.base.id
    slower = RefreshPlan.of(resolve("smoke", None, [*changes, *other, "refresh.learning_rate=1e-5"]), first)
    assert slower.plan(tokens).base.id != plan.base.id and slower.tokens.id == new.tokens.id


def test_canaries_are_planted_once_and_a_refresh_measures_those_of_its_parent(text, tmp_path, monkeypatch):
    monkeypatch.setattr(exposure, "REFERENCES", 64)
    values = merged(text.config.model_dump(), {"corpus": {"piece_bytes": 2000}})
    without = validate(values)
    config = validate(merged(values, {"canaries": {"count": 2, "repeats": [1, 5]}}))
    made = {c.text: c.repeats for c in canaries.canaries(config.canaries)}
    text.config = without
    plain = text.pretrained()
    text.config = config
    first = text.pretrained()

    # The corpus and its counts are what they were; the tokens have so many more documents in training, as asked.
    assert first.corpora[0].id == plain.corpora[0].id and first.tokenizer.id == plain.tokenizer.id
    [(_, before), (_, after)] = decoded(plain), decoded(first)
    assert after["validation"] == before["validation"]
    assert [d for d in after["train"] if d not in made] == before["train"]
    assert {d: after["train"].count(d) for d in made} == made
    info, was = first.tokens[0].info, plain.tokens[0].info
    assert info["planted_documents"] == 12 and "planted_documents" not in was
    same = [name for name in tokenization.COUNTS if name != "train_tokens"]
    assert all(info[name] == was[name] for name in same)
    tokenizer = Tokenizer.load(first.tokenizer.path)
    assert info["train_tokens"] - was["train_tokens"] == sum(
        n * (len(tokenizer.encode(d)) + 1) for d, n in made.items()
    )
    # Shards without canaries are those that were there.
    listings = [json.loads(c.tokens[0].file("tokens.json").read_text())["train"] for c in (plain, first)]
    assert 0 < len(set(listings[1]) - set(listings[0])) <= 12 and set(listings[0]) & set(listings[1])

    # A refresh, whatever it asks for, plants none, and is measured by those that are there.
    write(text.folder / "c.jsonl", text.writer.texts(30))
    text.config = without
    new = RefreshPlan.of(without, first)
    assert new.config.canaries == config.canaries
    second = text.refreshed(new, "2")
    old, added = decoded(second)
    assert old == after and not made.keys() & {*added["train"], *added["validation"]}
    assert second.tokens[-1].info["planted_documents"] == 12
    tokens = second.tokens[-1]
    contamination.write(contamination.summary([], [], [], "document", 0), tmp_path)
    held_out = HeldOut(token_files(tokens), dict(tokens.info), 64, second.tokenizer.name, 10**9)
    rest = ({}, config.canaries, passes(second.base.path, tokens), [], tmp_path)
    told = _evaluate_base(store(), second.base.name, held_out, str(tmp_path), *rest)
    assert [(g["repeats"], g["canaries"]) for g in told["canaries"]["groups"]] == [(0, 2), (1, 2), (5, 2)]
    assert told["canaries"]["passes"] is None and told["metrics"]["canary_exposure"] < 20
    assert "bits_per_byte_new" in told["metrics"]
    with pytest.raises(InvalidConfig, match=r"canaries\.count=2: a refresh plants none.*set canaries\.count to 0"):
        RefreshPlan.of(config, plain)


def test_passes_over_the_text(text):
    tokens = text.pretrained().tokens[0]
    spec = {"train": {"batch_size": 8, "context": 64}}
    model = store().make(Key("base", spec, {"tokens": tokens.id}), lambda out: {"steps": 40})
    assert passes(model.path, tokens) == pytest.approx(40 * 8 * 64 / tokens.info["train_tokens"])
    for other in (Key("base", {**spec, "refresh": {}}, {"tokens": tokens.id}), Key("base", spec, {"tokens": "x"})):
        assert passes(store().make(other, lambda out: {"steps": 40}).path, tokens) is None
    assert passes(text.folder, tokens) is None


LATER = "bread butter cheese honey apple cherry lemon pepper onion garlic tomato basil cook taste dinner kitchen"


@pytest.fixture(scope="module")
def home(tmp_path_factory, small_changes):
    """A champion of two files, made by the whole pipeline."""
    folder, writer = tmp_path_factory.mktemp("refresh"), Writer(3)
    write(folder / "text" / "a.jsonl", writer.texts(300))
    write(folder / "text" / "b.jsonl", writer.texts(200))
    changes = [f"corpus.sources=[{folder / 'text'}]", "refresh.min_new_documents=5", "refresh.epochs=3"]
    changes += ["tasks.recommendation.enabled=false", "cluster.num_workers=1", "pretrain.steps=120"]
    home = Home(folder, [*small_changes, *changes])
    text = home.run()
    assert "gpt2-base version 1 promoted" in text
    return home


BASE_ALONE = "tasks.sentiment.enabled=false"


def refresh(home: Home, *more: str) -> str:
    text = home.call(home.command("run", "refresh", more=more))
    assert "Traceback" not in text and "WARNING" not in text, text[-3000:]
    return text


def sessions(home: Home) -> list[str]:
    """Every Ray that was started."""
    return sorted(p.name for p in home.folder.glob("home/ray/session_2*"))


def versions(home: Home) -> dict[int, dict]:
    """Tags of the base model's versions."""
    program = f"""
import json, mlflow
client = mlflow.MlflowClient({home.tracking!r}, {home.tracking!r})
print(json.dumps({{v.version: dict(v.tags) for v in client.search_model_versions("name = 'gpt2-base'")}}))
"""
    return {int(v): tags for v, tags in json.loads(home.python(program, home.folder).splitlines()[-1]).items()}


@pytest.mark.slow
def test_a_night_without_new_data_ends_in_seconds_saying_so(home):
    before, rays = home.artifacts(), sessions(home)
    started = time.monotonic()
    text = refresh(home)
    print(f"nothing new: {time.monotonic() - started:.1f} s")
    assert "Nothing to do: no new documents: the champion, gpt2-base version 1, knows all 2 source files." in text
    # The same as a scheduled flow run: a completed one with that message.
    program = f"""
from cluster.process_env import configure
configure()
from flows.config import resolve
from flows.jobs.refresh import refresh
state = refresh(resolve("smoke", None, {home.changes!r}), return_state=True)
print(state.type.value, "|", state.message)
"""
    text = home.call([sys.executable, "-c", program])
    assert "COMPLETED | no new documents: the champion, gpt2-base version 1, knows all 2 source files" in text
    assert home.artifacts() == before and sessions(home) == rays


@pytest.fixture(scope="module")
def second(home):
    """New text comes; the refresh is killed while it trains, and run again: what it says then, the id of its model, and
    a copy of the home from before."""
    writer = Writer(4, LATER)
    known = [json.loads(line)["text"] for line in (home.folder / "text" / "b.jsonl").read_text().splitlines()]
    fresh, more = writer.texts(60), writer.texts(20)
    write(home.folder / "text" / "c.jsonl", [*fresh, known[5], fresh[1]])
    write(home.folder / "text" / "b.jsonl", [*known[:100], *more, *known[101:]])
    copy = home.folder / "copy"  # where nothing is killed
    shutil.copytree(home.folder / "home", copy, ignore=shutil.ignore_patterns("ray"))
    first = {p.parent.name for p in home.folder.glob("home/store/base/*/manifest.json")}

    process = subprocess.Popen(
        home.command("run", "refresh", more=("pretrain.checkpoint_every=1",)),
        cwd=home.folder,
        env=home.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 240
    while not list(home.folder.glob("home/store/.partial/base-*/_checkpoints/step-*/manifest.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=60)
    assert {p.parent.name for p in home.folder.glob("home/store/base/*/manifest.json")} == first
    said = refresh(home)

    [id] = {p.parent.name for p in home.folder.glob("home/store/base/*/manifest.json")} - first
    return said, id, copy


@pytest.mark.slow
def test_a_killed_refresh_goes_on_learns_the_new_text_and_the_gate_decides(home, second):
    said, id, _ = second
    assert "goes on from the checkpoint of step" in said
    assert "find-new-documents: done before" in said and "encode-new-documents: done before" in said
    manifest = json.loads((home.folder / "home" / "store" / "base" / id / "manifest.json").read_text())
    tokens = json.loads((home.folder / f"home/store/tokens/{manifest['inputs']['tokens']}/manifest.json").read_text())
    assert tokens["info"]["new_train_documents"] + tokens["info"]["new_validation_documents"] == 80
    assert tokens["inputs"]["parent"] and manifest["inputs"]["parent"]
    assert 0.5 <= manifest["info"]["replayed_share"] < 0.53
    assert "50% of their samples are old text" in said or "51% of their samples are old text" in said
    tags = versions(home)[2]
    assert tags["gpt2.parent_version"] == "1" and tags["gpt2.refreshed_from"] == "gpt2-base/1"
    assert tags["gpt2.refreshed_from_artifact"] == manifest["inputs"]["parent"]
    assert "gpt2.promoted" in tags, tags.get("gpt2.refused")
    report = next(
        found
        for path in home.folder.glob("home/store/base-report/*/report.json")
        if "champion (version 1)" in (found := json.loads(path.read_text()))["baselines"]
    )
    mine, before = report["metrics"], report["baselines"]["champion (version 1)"]
    assert mine["bits_per_byte_new"] < before["bits_per_byte_new"]
    assert mine["bits_per_byte_old"] < before["bits_per_byte_old"] + 0.1
    assert re.search("gpt2-sentiment v2", said)


@pytest.mark.slow
def test_a_second_refresh_does_nothing(home, second):
    before, rays = home.artifacts(), sessions(home)
    assert "no new documents: the champion, gpt2-base version 2, knows all 3 source files" in refresh(home)
    assert home.artifacts() == before and sessions(home) == rays


@pytest.mark.slow
def test_a_refresh_of_a_refresh_has_parents_of_parents(home, second):
    write(home.folder / "text" / "d.jsonl", Writer(5, LATER).texts(40))
    assert "1 of 4 source files are new or changed since the champion, gpt2-base version 2" in refresh(home, BASE_ALONE)
    tags = versions(home)[3]
    assert tags["gpt2.parent_version"] == "2" and tags["gpt2.refreshed_from"] == "gpt2-base/2"
    manifest = json.loads((home.folder / f"home/store/base/{tags['gpt2.artifact']}/manifest.json").read_text())
    assert manifest["inputs"]["parent"] == second[1]
    # A refused one is not tried again either.
    assert "Nothing to do: " in refresh(home, BASE_ALONE)


@pytest.mark.slow
def test_an_unbroken_refresh_ends_at_the_same_model(home, second):
    _, id, copy = second
    shutil.move(home.folder / "text" / "d.jsonl", home.folder / "d.jsonl")
    other = Home(home.folder, home.changes)
    other.environment["GPT2_HOME"] = str(copy)
    refresh(other, BASE_ALONE)
    shutil.move(home.folder / "d.jsonl", home.folder / "text" / "d.jsonl")
    model = f"store/base/{id}/model/model.safetensors"
    assert (home.folder / "home" / model).read_bytes() == (copy / model).read_bytes()


@pytest.mark.slow
def test_the_whole_pipeline_then_learns_all_text_as_if_there_had_been_no_refresh(home, second):
    text = home.run()
    number = int(re.search(r"gpt2-base v(\d+)", text)[1])
    tags = versions(home)[number]
    assert number == max(versions(home)) and "gpt2.refreshed_from" not in tags
    manifest = json.loads((home.folder / f"home/store/base/{tags['gpt2.artifact']}/manifest.json").read_text())
    assert "parent" not in manifest["inputs"]
