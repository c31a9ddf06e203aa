"""A training on ranks with a disk each, whose inputs, checkpoints and model travel through an S3 server."""

import os
import shutil
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from cluster.home import store
from cluster.training.launch import bring
from cluster.training.worker import TRAINED, fetched, train
from gpt2.store.artifact import Key
from gpt2.store.remote import CHECKPOINTS
from gpt2.training.guard import Preempted
from gpt2.training.journal import EVENTS, JOURNAL, read_journal
from gpt2.weights import huggingface
from tests.cluster.ranks import run_ranks
from tests.cluster.training.test_launch import MODEL, inputs, job, losses, reference
from tests.services import s3_server

__all__ = ["inputs", "reference"]


@pytest.fixture
def s3(monkeypatch, tmp_path):
    with s3_server() as environment:
        for name, value in {**environment, "GPT2_STORE": "s3://bucket/team"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GPT2_HOME", str(tmp_path / "driver"))
        yield environment


def on_disk(environment, homes, work, stop_at) -> tuple[str, str, list[str]]:
    """What a rank does on the machine with a home of its own; returns how it ended, and which files it fetched."""
    home = Path(homes) / f"rank{os.environ['RANK']}"
    os.environ |= {**environment, "GPT2_STORE": "s3://bucket/team", "GPT2_HOME": str(home)}
    place = store()
    mine = work.model_copy(update={"output": str(place.root / ".ranks" / "base-1")})
    Path(mine.output).mkdir(parents=True, exist_ok=True)
    steps = iter(range(1, 100))
    ended = "ended"
    try:
        train(fetched(mine, place), ClusterConfig(zero_stage=2), place, lambda: next(steps) >= stop_at)
    except Preempted:
        ended = "stopped"
    return ended, mine.output, sorted(p.name for p in place.root.glob("*/*/*.bin"))


def test_a_training_goes_on_wherever_it_is_taken_up(s3, inputs, reference, tmp_path):
    place = store()
    names = {}
    for kind in ("tokenizer", "shard"):
        made = place.make(Key(kind), lambda out: [shutil.copy(f, out) for f in inputs.iterdir()] and {})
        names[kind] = made.name
    work = job(inputs, tmp_path / "out", checkpoint_every=3)
    tokens = work.tokens.moved(lambda path: f"{names['shard']}/{Path(path).name}")
    work = work.model_copy(update={"tokenizer": names["tokenizer"], "tokens": tokens})

    first = run_ranks(2, on_disk, s3, str(tmp_path / "first"), work, 4)
    assert {ended for ended, *_ in first} == {"stopped"}
    assert all(set(files) == {"train.bin", "validation.bin"} for *_, files in first)  # each machine fetched its own
    kept = place.remote.names(f"{CHECKPOINTS}/base-1")
    assert kept == ["step-00000003", "step-00000004"]

    second = run_ranks(2, on_disk, s3, str(tmp_path / "second"), work, 100)  # on machines that have nothing
    assert {ended for ended, *_ in second} == {"ended"}
    output = Path(second[0][1])
    journal = read_journal(output / JOURNAL)
    assert losses(journal) == pytest.approx(reference, rel=2e-4)
    assert [r["step"] for r in journal if "loss" in r] == list(range(1, 9))
    events = read_journal(output / EVENTS)
    assert [e["step"] for e in events if e["event"] == "begin"] == [4]

    driver = tmp_path / "out"
    (named,) = [e["model"] for e in events if e["event"] == TRAINED]
    shutil.copy(output / EVENTS, driver / EVENTS)  # as `cluster.training.follow` does
    bring(driver)
    assert huggingface.load(driver / "model").config == MODEL
    assert place.get(*named.split("/")[:2]) is None
