"""The whole pipeline, real at each node, on small made-up data: as a user runs it, in processes of its own."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


class Home:
    """A home with one pipeline in it."""

    def __init__(self, folder: Path, changes: list[str]):
        self.folder, self.changes = folder, changes
        self.environment = {**os.environ, "GPT2_HOME": str(folder / "home"), "COLUMNS": "200"}
        for name in ("PREFECT_HOME", "PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
            self.environment.pop(name, None)

    @property
    def tracking(self) -> str:
        return f"sqlite:///{self.folder / 'home' / 'mlflow' / 'mlflow.db'}"

    def command(self, *words: str, more: tuple[str, ...] = ()) -> list[str]:
        items = [w for change in (*self.changes, *more) for w in ("--set", change)]
        return [sys.executable, "-m", "flows.cli", *words, "--preset", "smoke", *items]

    def run(self, *more: str) -> str:
        return self.call(self.command("run", more=more))

    def call(self, command: list[str], code: int = 0) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=self.folder, env=self.environment, timeout=400
        )
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout + done.stderr

    def artifacts(self) -> set[str]:
        return {f"{p.parent.parent.name}/{p.parent.name}" for p in self.folder.glob("home/store/*/*/manifest.json")}

    def python(self, program: str, folder: Path) -> str:
        environment = {k: v for k, v in self.environment.items() if k != "GPT2_HOME"}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=folder, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory, small_data, small_changes):
    folder = tmp_path_factory.mktemp("pipeline")
    mine = folder / "corpus.jsonl"
    shutil.copy(small_data["corpus"], mine)
    return Home(folder, [*small_changes, f"corpus.sources=[{mine}]"])


@pytest.fixture(scope="module")
def interrupted(home):
    """Killed in pretraining; what the `gpt2 checkpoints` commands say then."""
    process = subprocess.Popen(
        home.command("run", more=("pretrain.checkpoint_every=1",)),
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
    psutil.wait_procs(family, timeout=60)  # workers outlive their driver by some seconds, and save meanwhile
    assert not any(a.startswith("base/") for a in home.artifacts())
    gpt2 = [sys.executable, "-m", "flows.cli", "checkpoints"]
    kept = sorted(home.folder.glob("home/store/.partial/base-*/_checkpoints/step-*"))
    said = {"list": home.call(gpt2), "verify": home.call([*gpt2, "verify"])}
    said["export"] = home.call([*gpt2, "export", str(kept[-1]), str(home.folder / "exported")])
    copy = home.folder / "copy"
    shutil.copytree(kept[-1], copy / kept[-1].name)
    victim = next((copy / kept[-1].name).glob("*.safetensors"))
    victim.write_bytes(victim.read_bytes()[:-1])
    said["damaged"] = home.call([*gpt2, "export", str(copy / kept[-1].name), str(home.folder / "other")], code=2)
    said["absent"] = home.call([*gpt2, "export", "nowhere", str(home.folder / "other")], code=2)
    return said


@pytest.fixture(scope="module")
def first_run(home, interrupted):
    """The killed run, run to the end."""
    return home.run()


def test_checkpoints_of_a_killed_run_are_listed_verified_and_exported(home, interrupted):
    assert re.search(r"base-[0-9a-f]{16} .* whole", interrupted["list"])
    assert "verified" in interrupted["verify"] and "DAMAGED" not in interrupted["verify"]
    model = home.python(
        "from transformers import AutoModelForCausalLM as A; print(A.from_pretrained('exported').config.n_layer)",
        home.folder,
    )
    assert int(model.split()[-1]) >= 1
    assert "is not what its manifest says" in interrupted["damaged"]
    assert "nowhere: is not a checkpoint" in interrupted["absent"]


def test_a_killed_run_goes_on_and_ends_well(home, first_run):
    assert "encode: done before" in first_run  # what was finished is not done again
    steps = [int(s) for s in re.findall(r"base: step (\d+), loss", first_run)]
    assert steps[-1] == 40
    assert "Traceback" not in first_run
    assert first_run.count("WARNING") == 0, [line for line in first_run.splitlines() if "WARNING" in line]
    for name in ("gpt2-base", "gpt2-sentiment", "gpt2-recommendation"):
        assert re.search(rf"{name} v1", first_run)
    assert not (home.folder / "mlruns").exists()  # nothing outside the home


def test_each_verdict_is_read_on_the_run_in_prefect(home, first_run):
    with sqlite3.connect(f"file:{home.folder}/home/prefect/prefect.db?mode=ro", uri=True) as db:
        query = "select key, description, data from artifact where key like 'verdict-%' and flow_run_id is not null"
        found = {key: (description, json.loads(data)) for key, description, data in db.execute(query)}
    assert sorted(found) == ["verdict-gpt2-base", "verdict-gpt2-recommendation", "verdict-gpt2-sentiment"]
    for key, (description, text) in found.items():
        heading = rf"(Promoted|Not promoted): {key.removeprefix('verdict-')} version 1"
        assert re.fullmatch(heading, description) and re.match(f"# {heading}\n", text)
        assert re.search(r"\n\| [✓✗] beats ", text) and "](data:image/png;base64," in text
        assert re.search(r"\]\(http://127.0.0.1:5000/#/experiments/\d+/runs/\w+/artifacts/verdict/verdict.html\)", text)


def test_again_nothing_is_done(home, first_run):
    before = home.artifacts()
    started = time.monotonic()
    text = home.run()
    seconds = time.monotonic() - started
    assert home.artifacts() == before
    assert "made " not in text
    print(f"second run: {seconds:.1f} s")
    assert "every stage was done before" in text
    tables = [t[t.index("Stages") : t.index("Use the models")] for t in (first_run, text)]
    assert tables[0] == tables[1]


def test_dry_run_tells_what_is_done(home, first_run):
    text = home.call(home.command("run", "--dry-run"))
    assert "would run" not in text
    text = home.call(home.command("run", "--dry-run", more=("tasks.sentiment.train.optimizer.learning_rate=0.01",)))
    waiting = [line for line in text.splitlines() if "would run" in line]
    assert len(waiting) == 2 and all("sentiment" in line for line in waiting)
    text = home.call(home.command("run", "--dry-run", more=("pretrain.optimizer.learning_rate=0.01",)))
    assert {line.split("│")[1].strip() for line in text.splitlines() if "would run" in line} == {
        "pretrain",
        "finetune",
        "evaluate",
    }


def test_one_task_changed_runs_that_task_alone(home, first_run):
    before = home.artifacts()
    text = home.run("tasks.sentiment.train.optimizer.learning_rate=0.01")
    kinds = sorted(a.split("/")[0] for a in home.artifacts() - before)
    # The champion, if there is one, is measured again on the same examples: it has been, so it is not.
    assert [k for k in kinds if k != "sentiment-report"] == ["sentiment"]
    assert "gpt2-sentiment v2" in text and "gpt2-base v1" in text


def test_models_serve_other_processes(home, first_run, tmp_path):
    """Another process in another folder, knowing only the tracking URI."""
    program = f"""
import json, mlflow
mlflow.set_tracking_uri({home.tracking!r})
load = mlflow.pyfunc.load_model
s = load("models:/gpt2-sentiment/1").predict(["a good fine film", "bad dull awful"])
assert list(s.columns) == ["label", "probability_negative", "probability_neutral", "probability_positive"], s.columns
assert abs(s.iloc[:, 1:].sum(axis=1) - 1).max() < 1e-5
g = load("models:/gpt2-base/1")
one = g.predict(["film plot"], params={{"max_tokens": 8, "temperature": 1.0, "seed": 3}})
two = g.predict(["film plot"], params={{"max_tokens": 8, "temperature": 1.0, "seed": 3}})
assert one["text"].tolist() == two["text"].tolist()
r = load("models:/gpt2-recommendation/1").predict(
    [{{"history": ["Film dull (1980)"], "candidates": ["Plot fine (1981)"]}}], params={{"top_k": 3}})
print(json.dumps([s["label"].tolist(), r["ranking"].tolist()[0]]))
"""
    labels, ranking = json.loads(home.python(program, tmp_path).splitlines()[-1])
    assert set(labels) <= {"negative", "neutral", "positive"} and len(labels) == 2
    assert len(ranking) == 1


def test_no_pickle_in_what_is_registered(home, first_run):
    files = [p for p in home.folder.glob("home/mlflow/artifacts/**/*") if p.is_file()]
    suffixes = {p.suffix for p in files}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin"}
    assert ".safetensors" in suffixes


def test_base_model_equals_transformers(home, first_run):
    import torch
    import transformers

    from gpt2.weights import huggingface

    [model] = home.folder.glob("home/store/base/*/model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    ours = huggingface.load(model).eval()
    ids = torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(ids).logits - ours.logits(ours.hidden(ids))).abs().max() <= 1e-5


def test_command_line_uses_the_models(home, first_run):
    (home.folder / "posts.txt").write_text("a good fine film\nbad dull awful\n")
    predict = [sys.executable, "-m", "flows.cli", "predict", "models:/gpt2-sentiment/1"]
    home.call([*predict, "--input", "posts.txt", "--output", "scored.jsonl"])
    rows = [json.loads(line) for line in (home.folder / "scored.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and "label" in rows[0]
    text = home.call([*predict, "--input", "none.txt", "--output", "scored.jsonl"], code=2)
    assert "none.txt" in text and "Traceback" not in text
    generate = [sys.executable, "-m", "flows.cli", "generate", "models:/gpt2-base/1", "film", "--max-tokens", "5"]
    assert home.call(generate).startswith("film")
    text = home.call([*generate[:-4], "models:/gpt2-nothing@champion", "film"], code=2)
    assert "gpt2-nothing" in text and "Traceback" not in text
    listed = home.call([sys.executable, "-m", "flows.cli", "models"])
    assert "gpt2-recommendation" in listed and "@challenger" in listed


def test_one_run_tree_in_mlflow(home, first_run, tmp_path):
    program = f"""
import json
from mlflow import MlflowClient
c = MlflowClient({home.tracking!r})
[e] = [e for e in c.search_experiments() if e.name == "gpt2-pipeline"]
runs = c.search_runs([e.experiment_id], max_results=1000)
files = {{r.info.run_id: [f.path for f in c.list_artifacts(r.info.run_id)] for r in runs}}
print(json.dumps([[r.info.run_name, r.info.status, r.data.tags, sorted(r.data.metrics), files[r.info.run_id],
                   [d.dataset.name for d in r.inputs.dataset_inputs]] for r in runs]))
"""
    runs = json.loads(home.python(program, tmp_path).splitlines()[-1])
    parents = [r for r in runs if r[2].get("gpt2.level") == "pipeline"]
    children = [r for r in runs if "mlflow.parentRunId" in r[2]]
    assert parents and len(parents) + len(children) == len(runs)
    pretrain = [r for r in children if r[0] == "pretrain"]
    assert len(pretrain) == 1  # the killed attempt's run was continued
    assert pretrain[0][1] == "FINISHED"
    assert {"loss", "validation_loss", "tokens_per_second", "peak_share"} <= set(pretrain[0][3])
    assert {"tokens", "cpu_seconds", "system/driver/system_cpu_utilization_percentage"} <= set(pretrain[0][3])
    assert "system/rank1/process_memory_usage_megabytes" in pretrain[0][3]
    assert {d.split("/")[0] for d in pretrain[0][5]} == {"tokens", "tokenizer"}
    for name, _, tags, _, files, data in runs:  # each leads to Prefect, and says what it was, and on what
        assert tags["prefect.flow_run.url"] in tags["mlflow.note.content"]
        assert {"config.json", "environment.json"} <= set(files), name
        assert data or tags.get("gpt2.level") == "pipeline", name


@pytest.mark.slow
def test_bad_documents_stop_the_run_in_a_sentence(tmp_path, small_changes):
    """Too many bad documents: the counts, the quarantine file and the remedy; no traceback."""
    lines = [json.dumps({"text": f"document {i} is fine"}) for i in range(90)] + ["not json"] * 10
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    home = Home(tmp_path, [*small_changes, f"corpus.sources=[{tmp_path / 'mixed.jsonl'}]"])
    text = home.call(home.command("run", "tokenize"), code=2)
    assert "Traceback" not in text
    assert "10 of 100 documents are bad" in text and "10 not JSON" in text and "max_bad_share" in text
    [quarantine] = tmp_path.glob("home/store/documents/*/quarantine.jsonl")
    assert [json.loads(q)["line"] for q in quarantine.read_text().splitlines()] == list(range(91, 101))
    assert str(quarantine) in text


def test_the_registered_model_tells_of_itself(home, first_run):
    told = home.call([sys.executable, "-m", "flows.cli", "card", "models:/gpt2-sentiment/1"])
    assert "## Results beside baselines" in told and "TF-IDF" in told and "corpus.jsonl" in told
    assert re.search(r"\| base model \| `base/[0-9a-f]{16}` \|", told)
    assert "## Status" in told and "Traceback" not in told
    told = home.call([sys.executable, "-m", "flows.cli", "verdict", "models:/gpt2-base/1"])
    assert re.search("gpt2-base version 1: (not )?promoted", told) and "beats unigram" in told
    assert "✓ no contamination" in told and "of 0 held-out" not in told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base", "sentiment"])
def test_a_registered_model_is_made_again_bit_by_bit(home, first_run, name):
    """The base model's training was killed on its way, too."""
    before = home.artifacts()
    told = home.call([sys.executable, "-m", "flows.cli", "reproduce", f"models:/gpt2-{name}/1"])
    assert "Match: every file of the model is the same" in told and "same      model.safetensors" in told
    assert home.artifacts() == before
    told = home.call([sys.executable, "-m", "flows.cli", "models"])
    assert "v2" not in told


def test_added_document_runs_what_depends_on_it(home, first_run):
    source = Path(next(c for c in reversed(home.changes) if c.startswith("corpus.sources="))[16:-1])
    source.write_text(source.read_text() + json.dumps({"text": "One more film of the night city."}) + "\n")
    text = home.call(home.command("run", "--dry-run"))
    done = [line.split("│")[2].strip() for line in text.splitlines() if "│ done" in line]
    assert done == ["recommendation examples", "sentiment examples"]
