"""The documents' commands, run: in a folder that has the files that they name, with small models in the registry.

Jobs run with `--dry-run` where they have one. The programs that stay, and the commands that need a finished pipeline,
are slow tests.
"""

import gzip
import json
import random
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from flows.cli import app
from tests.conftest import sentence
from tests.flows.jobs.test_import_weights import publish
from tests.flows.running import Up, free_ports
from tests.test_documents import DOCUMENTS, ROOT, commands, lines

JOBS = {"run", "train-classifier", "train-recommender", "search"}  # have --dry-run
PAGES = {"monitor", "recommend"}
ALONE = {"models", "doctor", "checkpoints", "status", "down"}  # the others need more words
STAY = {"up", "down", "status", "automations", "serve"}
READERS = {"models", "card", "predict", "generate", "benchmark", "checkpoints", "promote", "rollback", "copy", "doctor"}


def write_files(folder: Path) -> None:
    """What the documents' commands read."""
    draw = random.Random(0)
    moods = {"negative": "bad dull", "neutral": "city train", "positive": "good fine"}
    posts = [
        {"text": f"{sentence(draw)} {moods[mood]} {i}", "label": mood, "created_at": f"2026-11-{i // 12 + 1:02d}"}
        for i, mood in enumerate(list(moods) * 40)
    ]
    for name in ("headlines.csv", "imdb.csv"):
        pd.DataFrame(posts)[["text", "label"]].to_csv(folder / name, index=False)
    pd.DataFrame(posts).rename(columns={"label": "feeling"}).to_json(
        folder / "posts.jsonl", orient="records", lines=True
    )
    (folder / "inbox").mkdir()
    pd.DataFrame(posts)[["text", "created_at"]].to_json(folder / "inbox" / "a.jsonl", orient="records", lines=True)
    for name in ("articles", "more"):
        (folder / name).mkdir()
        with gzip.open(folder / name / "a.jsonl.gz", "wt") as file:
            file.writelines(
                json.dumps({"text": sentence(draw, 60), "body": sentence(draw, 60)}) + "\n" for _ in range(200)
            )
    items = [{"id": str(i), "title": sentence(draw, 3), "text": sentence(draw)} for i in range(20)]
    sales = [
        {"user": f"u{u}", "item": str((u * 3 + step * (1 + u % 3)) % 20), "time": 1.7e9 + 1e6 * step + u}
        for u in range(40)
        for step in range(8)
    ]
    pd.DataFrame(items).to_csv(folder / "products.csv", index=False)
    pd.DataFrame(sales).to_csv(folder / "sales.csv", index=False)
    pd.DataFrame(items).to_json(folder / "films.jsonl", orient="records", lines=True)
    rated = pd.DataFrame(sales).rename(columns={"user": "viewer"}).assign(rating=[4 + i % 2 for i in range(len(sales))])
    rated.to_parquet(folder / "ratings.parquet")
    faq = [{"question": f"Where is {sentence(draw, 6)}", "answer": sentence(draw, 20)} for _ in range(60)]
    pd.DataFrame(faq).to_csv(folder / "faq.csv", index=False)
    pd.DataFrame(posts)[["text"]].to_csv(folder / "posts.csv", index=False)
    for name in ("posts.txt", "texts.txt", "questions.txt"):
        (folder / name).write_text("The crew was lovely\nMy bag is lost again\n")
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "lambada_test.jsonl").write_text('{"text": "the crew was lovely and kind"}\n' * 3)
    (folder / "mine.yaml").write_text("pretrain:\n  steps: 100\n")
    publish(folder / "openai-community" / "gpt2", n_positions=1024)
    best = folder / ".gpt2" / "store" / "search" / "ID"
    best.mkdir(parents=True)
    (best / "best.yaml").write_text("tasks:\n  sentiment:\n    train:\n      optimizer:\n        learning_rate: 1e-3\n")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with those files, whose home has small champions and their versions."""
    from cluster.registry import promotion
    from tests.cluster.small import registered

    folder = tmp_path_factory.mktemp("desk")
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_HOME", str(folder / ".gpt2"))
        gpt2(folder, ["import", "openai-community/gpt2", "--champion"])
        for name in ("sentiment", "mood", "support"):
            for seed in range(3 if name == "sentiment" else 1):
                card = {"README.md": "A card."}
                version = registered(f"gpt2-{name}", tmp_path_factory.mktemp(name), seed=seed, texts=card)
                promotion.promote(version.name, version.version, "a test", force=True)
        yield folder


def gpt2(folder: Path, words: list[str]) -> str:
    """Run a command as a user does, and return what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words],
        capture_output=True, text=True, check=False, cwd=folder, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def put(words: list[str], folder: Path) -> list[str]:
    """The words, with the places that only the documents have put into the folder."""
    places = {"/data/": f"{folder}/", "s3://bucket/": f"{folder}/", "https://mlflow.example.org": f"{folder}/elsewhere"}
    for place, here in places.items():
        words = [word.replace(place, here) for word in words]
    return words


def cases(names: set[str], *without: str) -> list:
    """Those of the documents' commands, each once, with more than the name."""
    found = {tuple(case.values[0]): case for case in commands("gpt2") if case.values[0][0] in names}
    return [case for words, case in found.items() if (words[1:] or words[0] in ALONE) and not set(words) & set(without)]


@pytest.mark.parametrize("words", cases(JOBS | READERS, "verify", "export", "verdict"))
@pytest.mark.filterwarnings("ignore:the prompts of")  # the small models read little at a time
def test_a_command_does_what_it_says(desk, monkeypatch, words):
    monkeypatch.chdir(desk)
    dry = ["--dry-run"] if words[0] in JOBS and "--dry-run" not in words else []
    app([*put(words, desk), *dry], exit_on_error=False, result_action="return_value")


@pytest.fixture(scope="module")
def shop(tmp_path_factory, small_changes):
    """A folder with those files, in whose home all models were made by the documents' commands, at their smallest."""
    folder = tmp_path_factory.mktemp("shop")
    write_files(folder)
    small = [*small_changes, "model.n_positions=256"]  # as long as the prompts of reasons
    pretrained = [c for c in small if "tasks" not in c]
    sets = ["--preset", "smoke", *(w for change in small for w in ("--set", change))]
    learn = ["--preset", "smoke", "--set", "max_steps=6", "--set", f"changes={pretrained}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2_HOME", str(folder / ".gpt2"))
        gpt2(folder, ["run", *sets])
        gpt2(folder, ["train-classifier", "posts.jsonl", "--name", "mood", "--set", "label_field=feeling", *learn])
        gpt2(folder, ["train-recommender", "products.csv", "sales.csv", *learn])
        support = ["tasks.support.enabled=true", "tasks.support.source=faq.csv", "tasks.support.train.steps=3"]
        support.append("tasks.support.train.epochs=100")  # there are few questions
        reasons = ["tasks.reasons.enabled=true", "tasks.reasons.train.steps=3"]
        gpt2(folder, ["run", *sets, *(w for change in support + reasons for w in ("--set", change))])
        for name in ("base", "sentiment", "recommendation", "mood", "products", "support", "reasons"):
            gpt2(folder, ["promote", f"gpt2-{name}", "1", "--force", "--reason", "a test"])
        yield folder


def shorter(words: list[str]) -> list[str]:
    """The words with what makes a training short and versions that are there."""
    return [word.replace("models:/gpt2-sentiment/3", "models:/gpt2-sentiment/1") for word in words]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("words", cases(PAGES | {"verdict", "reproduce", "predict", "card", "label"}))
def test_a_command_on_models_that_learned_does_what_it_says(shop, words):
    if "--add" in words:  # what people do before
        pd.read_csv(shop / "to_label.csv").assign(label="positive").to_csv(shop / "to_label.csv", index=False)
    assert gpt2(shop, put(shorter(words), shop))


MAIL = """
from prefect.blocks.notifications import SendgridEmail
SendgridEmail(api_key="secret", sender_email="a@example.org", to_emails=["b@example.org"]).save("ops")
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_programs_that_stay_start_answer_and_stop(desk, small_changes):
    """`up`, `status`, `automations`, `down`, Prefect's own commands, and `serve` with the documents' request."""
    up = Up(desk, small_changes)
    up.home = desk / ".gpt2"
    up.environment["GPT2_HOME"] = str(up.home)
    try:
        assert ["up", "--detach"] in [case.values[0] for case in cases({"up"})]
        up.gpt2("up", "--detach", *up.options)
        server = {"PREFECT_API_URL": f"http://127.0.0.1:{up.prefect}/api"}
        login = up.environment | server | {"PREFECT_API_AUTH_STRING": up.login}
        subprocess.run([sys.executable, "-c", MAIL], env=login, check=True)  # what people do on the page Blocks
        for case in cases({"status", "automations"}):
            up.gpt2(*case.values[0])
        up.gpt2("automations", "https://example.org/hook", **server)  # its login is known here
        [deploy] = {line.partition("#")[0] for line in every_line() if line.startswith("prefect --no-prompt deploy")}
        program = [sys.executable, "-m", *shlex.split(deploy)]
        subprocess.run(program, cwd=ROOT, env=login, check=True, stdout=subprocess.DEVNULL)
    finally:
        for case in cases({"down"}):
            up.gpt2(*case.values[0])
    assert not up.processes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_documents_request_is_answered(desk):
    [words], port = [case.values[0] for case in cases({"serve"})], free_ports(1)[0]
    [request] = {line for line in every_line() if line.startswith("curl")}
    command = [sys.executable, "-m", "flows.cli", *words, "--port", str(port)]
    with subprocess.Popen(command, cwd=desk, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            asked = shlex.split(request.replace("localhost:8000", f"localhost:{port}"))
            asked += ["--retry", "60", "--retry-delay", "1", "--retry-connrefused"]
            answered = json.loads(subprocess.run(asked, check=True, capture_output=True, timeout=120).stdout)
            assert int(answered["version"]) == 3 and len(answered["predictions"]) == 1
        finally:
            server.terminate()


def every_line() -> list[str]:
    """The command lines of all documents."""
    return [line for path in DOCUMENTS for line in lines(path)]


def test_every_command_of_the_documents_is_run_here():
    """Or with PostgreSQL in `tests/flows/test_postgres.py`, and with a hub in `tests/flows/commands/test_models.py`."""
    told = {case.values[0][0] for case in commands("gpt2")}
    assert told - {"--help", "push"} == JOBS | READERS | PAGES | {"import", "verdict", "reproduce", "label", *STAY}
