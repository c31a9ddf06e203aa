"""A base model's evaluation in pieces: the same to the bit in any order, bounded, and not begun again after a kill."""

import json
import random
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from cluster.batch import evaluation
from cluster.connect import disconnect
from cluster.home import store
from gpt2 import weights
from gpt2.data.batches import TokenDataset
from gpt2.data.config import CanaryConfig
from gpt2.data.shards import TokenStream
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import contamination
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.store.artifact import Key, Store
from gpt2.store.model_files import MODEL
from gpt2.tasks.base import report as base_report
from gpt2.tasks.config import LEAST, MOST, EvaluateConfig
from gpt2.training_job import TokenFiles
from tests.conftest import sentence
from tests.services import s3_server

CONTEXT = 32


@pytest.fixture
def text(tmp_path):
    """Two shards of held-out documents, a model that has learned nothing, and a search that found nothing."""
    generator = random.Random(0)
    documents = [" ".join(sentence(generator, 9) for _ in range(1 + i % 7)) for i in range(600)]
    tokenizer = Tokenizer.train(documents, 330)
    model, end = tmp_path / "base" / MODEL, tokenizer.end_of_text
    torch.manual_seed(0)
    config = ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=CONTEXT, vocab_size=tokenizer.vocab_size)
    weights.save(GPT2(config), model)
    tokenizer.save(model)
    rows = [[*tokenizer.encode(text), end] for text in documents]
    for name, some in (("a.bin", rows[:350]), ("b.bin", rows[350:])):
        np.array([i for row in some for i in row], "<u2").tofile(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("a.bin", "b.bin")]
    contamination.write(contamination.summary([], [], [], "document", 0), tmp_path)
    files, tokens = TokenFiles(train=paths, validation=paths, dtype="uint16"), sum(map(len, rows))
    info = {"validation_tokens": tokens, "validation_bytes": sum(len(d.encode()) for d in documents)}
    (tmp_path / "info.json").write_text(json.dumps(info | {"train_tokens": tokens}))

    def held_out(most, own=None):
        return evaluation.HeldOut(files, info, CONTEXT, str(model), most, own)

    def report(most, name, order=None, own=None):
        """The report, and its rows; `order` chooses the pieces that are read beforehand."""
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        part = held_out(most, own)
        calls = list(part.calls(tmp_path / "base", out))
        for call in order(calls) if order else []:
            evaluation._losses(*call)
        left = len(list(part.calls(tmp_path / "base", out)))
        rest = (str(tmp_path), {}, CanaryConfig(), None, [], out)
        told = evaluation._evaluate_base(Store(tmp_path / "store"), str(tmp_path / "base"), part, *rest)
        told["cost"].pop("latency_ms")
        return told, pd.read_parquet(out / "predictions.parquet"), len(calls), left

    return report, rows, tmp_path


def test_pieces_in_any_order_give_the_same_bits_and_a_kill_loses_none(text):
    report, rows, folder = text
    total = sum(map(len, rows))
    whole = TokenDataset(TokenStream([folder / "a.bin", folder / "b.bin"], "uint16"), CONTEXT)
    told, table, count, _ = report(10**9, "at once")
    assert count > 3 and table["tokens"].sum() == len(whole) * CONTEXT == total - total % CONTEXT
    killed, same, _, left = report(10**9, "killed", order=lambda calls: calls[::-2])
    assert 0 < left < count and (killed, True) == (told, same.equals(table))
    everything, same, _, left = report(10**9, "in order", order=list)
    assert left == 0 and (everything, True) == (told, same.equals(table))
    by_own, _, own_count, _ = report(10**9, "own", order=list, own=CONTEXT)
    assert own_count == count and by_own["metrics"]["loss"] == pytest.approx(told["metrics"]["loss"], rel=1e-6)
    # What was read before is what counts: a piece is not read again.
    changed = folder / "killed" / "_losses" / "losses"
    first = min(changed.iterdir())
    np.save(first, np.load(first) + 1)
    assert report(10**9, "killed")[0]["metrics"]["loss"] > told["metrics"]["loss"]


def test_a_bound_draws_whole_documents_evenly_and_says_so(text):
    report, rows, folder = text
    total = sum(map(len, rows))
    told, table, *_ = report(total // 4, "bounded")
    read = sum(len(part) for part in TokenStream([folder / "bounded" / "_part.bin"], "uint16").parts)
    assert 0.9 * total / 4 < read <= total // 4
    assert f"Measured on {read:,} of {total:,} held-out tokens" in " ".join(told["remarks"])
    drawn = [[int(i) for i in part] for part in np.split(*ends(folder / "bounded" / "_part.bin"))][:-1]
    places = [rows.index(document) for document in drawn]  # each is one of the documents, whole, in order
    assert places == sorted(places) and len(set(places)) == len(drawn) == len(table)
    assert all(len([p for p in places if 100 * k <= p < 100 * k + 100]) in range(15, 35) for k in range(6))
    whole, everything, *_ = report(10**9, "whole")
    assert not any("Measured on" in remark for remark in whole["remarks"])
    width = [np.ptp(r["intervals"]["model"]["bits_per_byte"]) for r in (told, whole)]
    assert width[0] > 1.4 * width[1] and len(everything) == 600
    assert json.loads((folder / "bounded" / "report.json").read_text())["counts"]["validation_tokens"] <= read


@pytest.mark.slow
def test_workers_report_the_same_from_a_folder_and_from_a_distant_store(text, monkeypatch):
    report, rows, folder = text
    total, reads = sum(map(len, rows)), {"here": None, "own": CONTEXT}
    wanted = {name: report(total // 2, name, own=own) for name, own in reads.items()}
    info = json.loads((folder / "info.json").read_text())
    monkeypatch.setenv("GPT2_HOME", str(folder / "home"))
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for place in (str(folder / "store"), "s3://bucket/evaluation"):
            monkeypatch.setenv("GPT2_STORE", place)
            put = partial(published, store(), folder)
            shards, tokenizer = put("shards", ["a.bin", "b.bin"]), put("tokenizer", [f"base/{MODEL}"], flat=True)
            names = [f"{shards.name}/{name}" for name in ("a.bin", "b.bin")]
            listing = {"train": names, "validation": names, "dtype": "uint16"}
            (folder / "tokens.json").write_text(json.dumps(listing))
            tokens = put("tokens", ["tokens.json"], info, tokenizer=tokenizer.id)
            searched, model = put("searched", [contamination.FILE]), put("base", [f"base/{MODEL}"])
            try:
                for name, (told, table, count, _) in wanted.items():
                    out = folder / f"{name} {store().distant}"
                    out.mkdir()
                    facts = (model.path, tokens, searched, CONTEXT, out, total // 2)
                    same = evaluation.evaluate_base(*facts, reads=reads[name])
                    same["cost"].pop("latency_ms")
                    assert (same, True) == (told, pd.read_parquet(out / "predictions.parquet").equals(table))
                    assert len(list(out.glob("_losses/*/*.npy"))) == (0 if store().distant else count)
            finally:
                disconnect()


def published(root, folder, kind, names, info=None, flat=False, **inputs):
    """The artifact of these files and folders; `flat` leaves the folder out."""

    def build(out):
        for path in (folder / name for name in names):
            if path.is_dir():
                shutil.copytree(path, out if flat else out / path.name, dirs_exist_ok=True)
            else:
                shutil.copy(path, out)
        return info

    return root.make(Key(kind, {}, inputs), build)


def ends(path):
    """A shard's tokens and the places behind its documents."""
    tokens = np.fromfile(path, "<u2")
    return tokens, np.flatnonzero(tokens == tokens[-1]) + 1


def test_few_long_documents_are_read_from_their_beginning(text):
    _, rows, folder = text
    stream = TokenStream([folder / "a.bin"], "uint16")
    some = base_report.bounded(TokenDataset(stream, CONTEXT), 3 * max(map(len, rows)), rows[0][-1], folder / "few.bin")
    assert (some.stream.read(0, len(some.stream)) == stream.read(0, 3 * max(map(len, rows)))).all()


@pytest.mark.parametrize(
    ("asked", "learned", "most"),
    [(None, 262_144, LEAST), (None, 20_000_000, 1_000_000), (None, 10**10, MOST), (None, None, MOST), (5000, 9, 5000)],
)
def test_the_bound_follows_the_training(asked, learned, most):
    assert EvaluateConfig(max_tokens=asked).most(learned) == most
