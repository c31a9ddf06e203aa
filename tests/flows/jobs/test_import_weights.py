"""Published weights as a base model: what is refused, what they become, and what learns and goes on from them."""

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import mlflow
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from cluster.batch.evaluation import token_files, unsearched
from cluster.home import store
from cluster.registry import versions as registry_versions
from cluster.registry.download import exact
from cluster.registry.lineage import IMPORTED, lineage, published
from cluster.tracking.runs import Run
from flows.config import resolve, validated
from flows.jobs.import_plan import NAME, ImportConfig, ImportPlan, prepare
from flows.jobs.own_data_plan import ClassifierConfig, OwnDataPlan
from flows.jobs.refresh_plan import RefreshPlan
from flows.stages.registration import entered
from gpt2 import weights
from gpt2.data.corpus import normalise
from gpt2.data.splits import content_digest, is_validation
from gpt2.data.tokenizer import Tokenizer
from gpt2.store.model_files import MODEL
from gpt2.weights import published as weights_published
from tests.conftest import sentence
from tests.flows.jobs.test_refresh import Text, decoded, split_of, write
from tests.flows.test_pipeline import Home
from tests.hub import TOKEN, loopback

ARCHITECTURE = {"n_embd": 32, "n_layer": 2, "n_head": 2}


def publish(folder, seed=0, n_positions=128, **save):
    """A GPT-2 of random weights with a tokenizer of its own, in the files that `transformers` writes; its logits."""
    folder.mkdir(parents=True)
    generator = random.Random(0)
    words = ByteLevelBPETokenizer()
    texts = [f"{sentence(generator)} {generator.getrandbits(40)}" for _ in range(400)]
    words.train_from_iterator(texts, vocab_size=340, special_tokens=["<|endoftext|>"], show_progress=False)
    words.save_model(str(folder))  # its end-of-text is the first id, GPT-2's own is the last
    size = words.get_vocab_size()
    torch.manual_seed(seed)
    shape = {"vocab_size": size, "n_positions": n_positions, **ARCHITECTURE}
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **shape)).eval()
    model.save_pretrained(folder, **save)
    (folder / "modeling_evil.py").write_text("raise SystemExit('it was run')")  # lies beside many published models
    return model


def as_bin(folder):
    """The same weights as a pickle, as older models have them."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    return tensors


def asked(folder, **more):
    return ImportPlan.of(ImportConfig(source=str(folder), online=False, **more))


def taken(found: ImportPlan):
    """The base model's lineage, without flows."""
    prepare(found)

    def build(out):
        return {**weights_published.write(found.directory, found.files, out), IMPORTED: found.source}

    return lineage("1", store().make(found.plan.base, build))


@pytest.mark.parametrize("form", ["whole", "shards", "bin", "tokenizer.json"])
def test_whatever_form_it_has_it_is_the_same_model(form, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    theirs = publish(tmp_path / "model", max_shard_size="60KB" if form == "shards" else "1GB")
    if form == "bin":
        as_bin(tmp_path / "model")
    if form == "tokenizer.json":
        Tokenizer.load(tmp_path / "model").save(tmp_path / "model")
    found = asked(tmp_path / "model")
    assert len([n for n in found.files if n.endswith((".safetensors", ".bin"))]) > (1 if form == "shards" else 0)
    base = taken(found)
    ours, ids = weights.load(base.base.path / MODEL).eval(), torch.arange(40)[None]
    with torch.inference_mode():
        assert torch.allclose(ours.logits(ours.hidden(ids)), theirs(ids).logits, atol=1e-5)
    tokenizer = Tokenizer.load(base.base.path / MODEL, base.model.vocab_size)
    assert tokenizer.record == Tokenizer.load(tmp_path / "model").record and tokenizer.end_of_text == 0
    assert {n: base.base.manifest["inputs"][n] for n in found.files} == found.files and len(base.base.id) == 16
    # What the ids follow from are the files, not where they lie; other weights are another model.
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    assert asked(tmp_path / "copy").plan.base.id == base.base.id
    publish(tmp_path / "other", seed=1)
    assert asked(tmp_path / "other").plan.base.id != base.base.id


def test_from_the_hubs_cache_with_its_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, repository = "0123456789abcdef" * 2 + "01234567", tmp_path / "models--acme--tiny"
    publish(tmp_path / "files")
    for folder in ("refs", f"snapshots/{commit}", "blobs"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for file in (tmp_path / "files").iterdir():  # as the hub's client lays it out
        shutil.copy(file, repository / "blobs" / f"blob-{file.name}")
        (repository / "snapshots" / commit / file.name).symlink_to(f"../../blobs/blob-{file.name}")
    found = asked("acme/tiny")
    assert found.source == f"acme/tiny@{commit}" and found.plan.asked["config"]["source"] == found.source
    assert published(store(), taken(found).base) == found.source
    assert found.plan.base.id == asked(tmp_path / "files").plan.base.id


FETCH = """
from cluster.process_env import configure
configure()
from flows.jobs.import_plan import ImportConfig, ImportPlan
import huggingface_hub, sys
for source in sys.argv[1:]:
    try:
        found = ImportPlan.of(ImportConfig(source=source))
        print("FOUND", found.source, found.model.n_parameters)
    except ValueError as error:
        print("REFUSED", error)
try:
    huggingface_hub.HfApi().model_info("acme/tiny")
except huggingface_hub.errors.OfflineModeIsEnabled:
    print("OFFLINE")
"""


@pytest.fixture
def hub(tmp_path):
    """A hub on loopback with the model `acme/tiny`, and what `gpt2 import` finds there in a process of its own."""
    theirs = publish(tmp_path / "published")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_OFFLINE"))}
    with loopback() as (hub, address):
        hub.publish("acme/tiny", tmp_path / "published")
        mine = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "GPT2_HOME": str(tmp_path / "home")}

        def fetch(*sources, program=FETCH, **more):
            command = [sys.executable, "-c", program, *sources]
            done = subprocess.run(command, env={**kept, **mine, **more}, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            return done.stdout

        yield hub, fetch, sum(p.numel() for p in theirs.parameters())


def test_a_model_of_the_hub_is_fetched_and_nothing_else_is(hub, tmp_path):
    """As `gpt2 import acme/tiny` fetches it: in a process with the environment that we set."""
    theirs, fetch, size = hub
    refused = fetch("acme/tiny", HF_HUB_OFFLINE="1")  # a user's own word holds
    assert "not in the hub's local cache; is the network reachable, and HF_HUB_OFFLINE unset?" in refused
    line = f"FOUND acme/tiny@{theirs.commit_of('acme/tiny', 'main')} {size}"
    assert fetch("acme/tiny", "acme/tiny").splitlines() == [line, line, "OFFLINE"]
    assert not list((tmp_path / "hf").rglob("modeling_evil.py"))
    got = [name for method, name, _ in theirs.requests if method == "GET" and name.endswith("/model.safetensors")]
    assert len(got) == 1  # what is there is not fetched again


RESUME = """
import sys
from gpt2.weights.huggingface import folder
from gpt2.store.artifact import file_sha256
print(file_sha256(folder(sys.argv[1], online=True) / "model.safetensors"))
"""


def test_after_a_cut_only_the_rest_is_fetched(hub):
    theirs, fetch, _ = hub
    large = random.Random(0).randbytes(12_000_000)
    theirs.commit("acme/large", {"config.json": b"{}", "model.safetensors": large})
    theirs.cut["model.safetensors"] = 11_000_000
    assert fetch("acme/large", program=RESUME).strip() == hashlib.sha256(large).hexdigest()
    first, second = [r for m, name, r in theirs.requests if m == "GET" and name.endswith("/model.safetensors")]
    assert first is None and 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 11_000_000


def test_a_revision_of_the_hub_and_what_it_keeps_from_strangers(hub, tmp_path):
    theirs, fetch, size = hub
    publish(tmp_path / "second", seed=1)
    second = theirs.publish("acme/tiny", tmp_path / "second", "v2")
    theirs.publish("acme/gated", tmp_path / "second")
    theirs.gated.add("acme/gated")
    told = fetch("acme/tiny@v2", "acme/tiny@v3", "acme/nobody", "acme/gated").splitlines()
    assert told[0] == f"FOUND acme/tiny@{second} {size}"
    assert told[1] == "REFUSED acme/tiny: has no revision 'v3'; give a commit, a branch or a tag of it"
    assert told[2].startswith("REFUSED acme/nobody: the hub shows no such model; check the id")
    assert told[3].startswith("REFUSED acme/gated: its publisher lets in only whom they granted access; ask for")
    assert f"FOUND acme/gated@{second} {size}" in fetch("acme/gated", HF_TOKEN=TOKEN)


READ = """
from cluster.process_env import configure
configure()
import json, sys
from gpt2.data.sources import expand, source_id
from gpt2.data.tables import records
try:
    files = expand(sys.argv[1:2])
    texts = [row["text"] for file in files for _, row, _ in records(file)]
    print(json.dumps([texts, [source_id(file) for file in files]]))
except ValueError as error:
    print("REFUSED", error)
"""


def test_documents_and_posts_of_the_hub_are_read(hub, tmp_path):
    """A source at hf://, whose id follows from the hub's version of the file."""
    theirs, fetch, _ = hub
    theirs.commit("datasets/acme/posts", {f"parts/{p}.jsonl": b'{"text": "a"}\n' for p in "ab"})
    texts, ids = json.loads(fetch("hf://datasets/acme/posts/parts", program=READ))
    theirs.commit("datasets/acme/posts", {f"parts/{p}.jsonl": b'{"text": "%s"}\n' % p.encode() for p in "ab"})
    new_texts, new_ids = json.loads(fetch("hf://datasets/acme/posts/parts/*.jsonl", program=READ))
    assert (texts, new_texts) == (["a", "a"], ["a", "b"])
    assert ids[0] == new_ids[0] and len({*ids, *new_ids}) == 3
    refused = fetch("hf://datasets/acme/posts/parts", program=READ, HF_HUB_OFFLINE="1")
    assert refused.startswith("REFUSED hf://datasets/acme/posts/parts: HF_HUB_OFFLINE keeps the hub from being asked")


class Evil:
    """A pickle that creates a file where it is loaded as pickles are."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def break_it(how, folder):
    if how == "missing tensor":
        tensors = load_file(folder / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if "h.1.mlp.c_fc.weight" not in n}, folder / "model.safetensors")
    elif how == "another tokenizer":
        vocabulary = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps({**vocabulary, "Ġmore": len(vocabulary)}))
    elif how == "no tokenizer":
        (folder / "merges.txt").unlink()
    elif how == "pickle":
        as_bin(folder)
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder / "evil"), protocol=2))
    elif how == "not GPT-2":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    elif how == "task":
        (folder / "task.json").write_text('{"task": "sentiment"}')
    elif how == "cut":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif how == "nothing":
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize(("how", "told"), [
    ("missing tensor", r"has no tensor 'h\.1\.mlp\.c_fc\.weight'"),
    ("another tokenizer", r"they don't belong together; give the tokenizer that the model was trained with"),
    ("no tokenizer", r"merges\.txt is missing; give a directory with tokenizer\.json, or vocab\.json with merges"),
    ("pickle", r"was not loaded, as a pickle can run any code; ask for model\.safetensors"),
    ("not GPT-2", r"describes model_type='llama', not 'gpt2'"),
    ("task", r"a model of the task 'sentiment', not a language model"),
    ("cut", r"can't be read as safetensors"),
    ("nothing", r"model\.safetensors can't be read as safetensors: it is missing, and so is pytorch_model\.bin"),
])  # fmt: skip
def test_what_is_no_gpt2_is_refused(how, told, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    publish(tmp_path / "model")
    break_it(how, tmp_path / "model")
    with pytest.raises(ValueError, match=told):
        asked(tmp_path / "model")
    assert not (tmp_path / "model" / "evil").exists() and not (tmp_path / "home").exists()


def test_what_can_not_be_asked_for(tmp_path):
    publish(tmp_path / "model")
    with pytest.raises(ValueError, match=r"revision = 'main': .* is a directory, which has none"):
        asked(tmp_path / "model", revision="main")
    with pytest.raises(ValueError, match=r"acme/none is not a directory, and not in the hub's local cache"):
        asked("acme/none")
    with pytest.raises(ValueError, match=r"sauce"):
        validated(ImportConfig, {"sauce": "x"})


def test_files_that_change_while_they_are_read_are_no_artifact(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    publish(tmp_path / "model")
    found = asked(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    publish(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match=r"changed while they were read; import them again"):
        taken(found)
    assert store().find(found.plan.base) is None


@pytest.mark.slow
def test_a_version_that_a_kill_left_without_its_description_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    publish(tmp_path / "model")
    found = asked(tmp_path / "model")
    base = taken(found).base
    assert found.registered() is None
    version = entered("base", NAME, base, Run.open("killed", {"gpt2.test": "killed"}), {}, {})
    assert found.registered() is None  # neither its alias nor its description is there yet
    registry_versions.describe(NAME, version, "GPT-2. Not judged.")
    assert found.registered()["version"] == int(version.version)


def test_a_short_context_registers_with_a_default_that_fits(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(ARCHITECTURE, "n_positions", 32)
    publish(tmp_path / "model")
    base = taken(asked(tmp_path / "model")).base
    version = entered("base", "gpt2-short", base, Run.open("short", {"gpt2.test": "short"}), {}, {})
    assert len(mlflow.pyfunc.load_model(exact(version)).predict(["This film is"])) == 1


def test_the_command_that_is_told_asks_for_the_same_weights():
    mine = ImportConfig(source="acme/tiny", revision="v1")
    assert mine.command == "gpt2 import acme/tiny --revision v1"
    assert ImportConfig(source="acme/tiny@v1") == mine  # as records name it
    assert ImportConfig(source="my models/tiny").command == "gpt2 import 'my models/tiny'"


def test_all_text_is_new_to_it_and_none_is_replayed(tmp_path, small_changes, small_data, monkeypatch):
    text = Text(tmp_path, small_changes)
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    publish(tmp_path / "model")
    base = taken(asked(tmp_path / "model"))
    # Fine-tuning begins with it, at contexts that it has positions for.
    own = OwnDataPlan(ClassifierConfig(source=str(small_data["posts"]), preset="gpt2"), base)
    settings, plan = own.settings, own.plan
    assert plan.base.id == base.base.id and settings.model_config_with_vocabulary() == base.model
    assert settings.tasks.sentiment.train.context <= 128
    assert plan.tags == {"gpt2.base_version": "gpt2-base/1", "gpt2.imported_from": str(tmp_path / "model")}
    # A refresh reads all of the text, with its tokenizer.
    changes = [f"corpus.sources=[{text.folder}]", "refresh.min_new_documents=5", "refresh.replay_share=0.75"]
    changes.append("corpus.validation_share=0.2")  # its own text has no split that would have to be kept
    new = RefreshPlan.of(resolve("smoke", None, changes), base)
    assert new.files == len(new.documents) == 2 and new.nothing() is None
    text.config = new.config
    second = text.refreshed(new, "2")
    tokens = second.tokens[-1]
    assert tokens.info["new_train_tokens"] == tokens.info["train_tokens"] > 0
    assert Tokenizer.load(second.tokenizer.path).record == Tokenizer.load(tmp_path / "model").record
    samples, train = new.new_samples(tokens), new.training(tokens)
    assert train.steps == -(-samples // train.batch_size)  # none of them is old text
    assert train.total_steps(samples) == train.steps
    assert token_files(tokens).replayed == 0
    none, added = {"train": [], "validation": []}, split_of([*text.first, *text.other])  # by a share of 0.2
    assert [{s: sorted(d) for s, d in half.items()} for half in decoded(second)] == [
        none, {s: sorted(d) for s, d in added.items()}
    ]  # fmt: skip
    # From the second refresh on, there is old text.
    more = text.writer.texts(30)
    write(text.folder / "c.jsonl", more)
    third = text.refreshed(RefreshPlan.of(resolve("smoke", None, changes[:3]), second), "3")
    assert third.tokens[-1].manifest["spec"]["validation_share"] == 0.2
    assert third.document_ids() and token_files(third.tokens[-1]).replayed == len(json.loads(
        tokens.file("tokens.json").read_text())["train"])  # fmt: skip
    # Where the weights came from stays known, and reports say what could not be searched.
    assert published(store(), third.base) == str(tmp_path / "model")
    assert "imported from" in unsearched(store(), third.base.id)[0] and unsearched(store(), "0" * 16) == []


def test_too_little_to_be_measured_on_is_nothing(tmp_path, small_changes, monkeypatch):
    text = Text(tmp_path, small_changes)
    monkeypatch.setenv("GPT2_HOME", str(tmp_path / "home"))
    publish(tmp_path / "model")
    base = taken(asked(tmp_path / "model"))
    kept = [d for d in text.first if not is_validation(content_digest(normalise(d)), 0.02)]
    write(text.folder / "a.jsonl", kept)
    (text.folder / "b.jsonl").unlink()
    new = RefreshPlan.of(
        resolve("smoke", None, [f"corpus.sources=[{text.folder}]", "refresh.min_new_documents=5"]), base
    )
    text.config = new.config
    text.refreshed(new, "2")
    assert "too little new text" in new.nothing() and "0 of them are held out" in new.nothing()
    more = [f"corpus.sources=[{text.folder}]", "refresh.min_new_documents=5", "pretrain.batch_size=1024"]
    assert "are less than pretrain.batch_size=1024" in RefreshPlan.of(resolve("smoke", None, more), base).nothing()


LOOK = """
import json
from cluster import registry
found = [{"version": v["version"], "aliases": v["aliases"], "verdict": v["verdict"], "name": v["name"], **v["tags"]}
         for v in registry.versions()]
print("ROWS", json.dumps(found))
"""


def versions(home):
    """{registered name: its versions with their tags, the first first}."""
    rows = json.loads(home.call([sys.executable, "-c", LOOK]).rpartition("ROWS ")[2].splitlines()[0])
    return {name: [r for r in rows[::-1] if r["name"] == name] for name in dict.fromkeys(r["name"] for r in rows)}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_from_published_weights_to_a_model_as_a_user_does_it(tmp_path, small_changes, small_data):
    home, gpt2 = Home(tmp_path, []), [sys.executable, "-m", "flows.cli"]
    publish(tmp_path / "model")
    # Refused before anything is made.
    publish(tmp_path / "broken")
    break_it("missing tensor", tmp_path / "broken")
    refused = home.call([*gpt2, "import", str(tmp_path / "broken")], code=2)
    assert re.search(r"refused: .*has no tensor", refused) and "Traceback" not in refused
    assert not (tmp_path / "home" / "store").exists() and not (tmp_path / "home" / "mlflow").exists()

    # Killed on the way, it leaves nothing that anyone takes for done.
    process = subprocess.Popen(
        [*gpt2, "import", str(tmp_path / "model")], cwd=tmp_path, env=home.environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("home/store/base/*/manifest.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("home/store/base/*/manifest.json")) and not versions(home)

    first = home.call([*gpt2, "import", str(tmp_path / "model")])
    assert "gpt2-base version 1 not judged yet" in first and "base=models:/gpt2-base/1" in first
    assert not versions(home)["gpt2-base"][0]["aliases"].count("champion")
    assert "Nothing to do" in home.call([*gpt2, "import", str(tmp_path / "model")])
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    crowned = home.call([*gpt2, "import", str(tmp_path / "copy"), "--champion"])
    assert "forced by an operator" in crowned and "Traceback" not in crowned
    [base] = versions(home)["gpt2-base"]
    assert "champion" in base["aliases"] and base["gpt2.imported_from"] == str(tmp_path / "model")
    card = home.call([*gpt2, "card", "models:/gpt2-base/1"])
    assert "Not measured" in card and re.search(r"model\.safetensors \| `[0-9a-f]{64}`", card)

    # A classifier learns from it through the real flow, and its version says so.
    pipeline = [c for c in small_changes if not c.startswith(("tasks", "tokenizer"))]
    small = ["--preset", "smoke", "--set", "max_steps=6", "--set", f"changes={pipeline}"]
    learned = home.call([*gpt2, "train-classifier", str(small_data["posts"]), *small])
    assert "made from gpt2-base version 1" in learned and "Traceback" not in learned
    [posts] = versions(home)["gpt2-posts"]
    assert posts["gpt2.base"] == base["gpt2.artifact"] and posts["gpt2.base_version"] == "gpt2-base/1"
    assert posts["gpt2.imported_from"] == str(tmp_path / "model")
    assert "was imported from" in next(tmp_path.glob("home/store/sentiment-report/*/report.md")).read_text()
    for version in ("gpt2-base/1", "gpt2-posts/1"):
        again = home.call([*gpt2, "reproduce", f"models:/{version}"], code=2)
        assert "its base model was imported from" in again
    program = "from flows.jobs.retrain import RetrainPlan; RetrainPlan.of('models:/gpt2-base/1')"
    assert re.search("was imported from .*, not trained", home.call([sys.executable, "-c", program], code=1))

    # It goes on with text of one's own, with its tokenizer, for the gate to judge.
    text = [f"corpus.sources=[{small_data['corpus']}]", "corpus.validation_share=0.1", "tasks.sentiment.enabled=false",
            "tasks.recommendation.enabled=false"]  # fmt: skip
    sets = [w for change in text for w in ("--set", change)]
    fresh = home.call([*gpt2, "run", "refresh", "--preset", "smoke", *sets])
    assert "0% of their samples are old text" in fresh and "Traceback" not in fresh
    first, second = versions(home)["gpt2-base"]
    assert second["gpt2.refreshed_from"] == "gpt2-base/1" and second["verdict"] == "promoted", second
    assert second["gpt2.imported_from"] == str(tmp_path / "model") and "champion" in second["aliases"]
    assert "no new documents" in home.call([*gpt2, "run", "refresh", "--preset", "smoke", *sets])

    # Now there is held-out text to measure others on, beside the champion.
    publish(tmp_path / "other", seed=1)
    other = home.call([*gpt2, "import", str(tmp_path / "other")])
    assert re.search(r"gpt2-base version 3 refused: .*bits_per_byte", other) and "Traceback" not in other
    *_, third = versions(home)["gpt2-base"]
    assert float(third["gpt2.value"]) > float(second["gpt2.value"]) and "champion" not in third["aliases"]
    assert "Nothing to do" in home.call([*gpt2, "import", str(tmp_path / "other")])
    assert "gpt2-base version 3, beside version 2: not promoted" in home.call([*gpt2, "verdict", "models:/gpt2-base/3"])
