"""Every test has a home of its own, and nothing phones home."""

import json
import os
import random
import sys

import pytest
import torch

from cluster.process_env import configure
from tests.services import s3_server


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory):
    """A home for the whole run, set before Prefect, Ray or MLflow is imported."""
    patch = pytest.MonkeyPatch()
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "PREFECT_HOME"):
        patch.delenv(name, raising=False)
    patch.setenv("GPT2_HOME", str(tmp_path_factory.mktemp("home")))
    yield configure()
    patch.undo()


@pytest.fixture(scope="module", autouse=True)
def own_addresses():
    """MLflow leaves its addresses in the environment, for processes that it starts: not for the next tests."""
    yield
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        os.environ.pop(name, None)
    if s3 := sys.modules.get("s3fs"):  # its file systems keep the address that they were made with
        s3.S3FileSystem.clear_instance_cache()
    if tracking := sys.modules.get("cluster.tracking.runs"):
        tracking.client.cache_clear()
        tracking.experiment_id.cache_clear()


@pytest.fixture(autouse=True)
def same_numbers():
    """What a test draws from PyTorch's global generator does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def s3():
    """An S3 server on loopback with one bucket, and the environment with which a client reaches it."""
    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """A process group of this process alone."""
    meeting = tmp_path_factory.mktemp("group") / "meeting"
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WORDS = [
    "film",
    "plot",
    "actor",
    "scene",
    "story",
    "music",
    "light",
    "camera",
    "love",
    "night",
    "city",
    "river",
    "horse",
    "train",
    "good",
    "bad",
    "fine",
    "dull",
]


def sentence(generator: random.Random, length: int = 12) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(length)).capitalize() + "."


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """Documents, labelled posts and interactions, made up: {corpus, posts, interactions} paths."""
    folder, generator = tmp_path_factory.mktemp("data"), random.Random(0)
    documents = [" ".join(sentence(generator) for _ in range(6)) for _ in range(600)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    rows = ["text,sentiment"]
    for i in range(400):
        label = ("negative", "neutral", "positive")[i % 3]
        mood = {"negative": "bad dull awful", "neutral": "city train", "positive": "good fine lovely"}[label]
        rows.append(f"{sentence(generator, 8)} {mood} {generator.choice(WORDS)} {i % 7},{label}")
    (folder / "posts.csv").write_text("\n".join(rows) + "\n")
    films = folder / "films"
    films.mkdir()
    titles = [f"{a.capitalize()} {b} ({1980 + i})" for i, (a, b) in enumerate(zip(WORDS, reversed(WORDS), strict=True))]
    items = "".join(json.dumps({"item": str(i), "title": t, "text": WORDS[i % 5]}) + "\n" for i, t in enumerate(titles))
    (films / "items.jsonl").write_text(items)
    events = []
    for user in range(30):
        start = generator.randrange(len(titles))
        for step in range(8):
            item = (start + step * (1 + user % 2)) % len(titles)
            events.append(json.dumps({"user": user, "item": str(item), "time": 100 * user + step}) + "\n")
    (films / "interactions.jsonl").write_text("".join(events))
    return {"corpus": folder / "corpus.jsonl", "posts": folder / "posts.csv", "interactions": films}


@pytest.fixture(scope="session")
def small_changes(small_data):
    """The smallest pipeline on the made-up data, as `--set` items."""
    return [
        f"corpus.sources=[{small_data['corpus']}]",
        "corpus.validation_share=0.1",
        "tokenizer.vocab_size=300",
        "pretrain.steps=40",
        "pretrain.epochs=100",
        f"tasks.sentiment.source={small_data['posts']}",
        "tasks.sentiment.train.steps=4",
        f"tasks.recommendation.source={small_data['interactions']}",
        "tasks.recommendation.train.steps=3",
        "tasks.recommendation.train.epochs=100",
    ]
