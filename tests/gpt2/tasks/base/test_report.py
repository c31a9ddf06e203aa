"""Held-out text in parts: each has its bits per byte, and together they are the whole."""

import math

import pandas as pd
import pytest
import torch

from gpt2 import weights
from gpt2.data.tokenizer import Tokenizer
from gpt2.tasks.base import report
from gpt2.tasks.base.kind import BASE
from gpt2.training_job import token_dataset
from tests.gpt2.data.test_mixture import job_in


def test_parts_of_the_validation_split_are_measured_each_and_together(tmp_path):
    job = job_in(tmp_path)
    old, new = job.tokens.old_and_new()
    parts = {"old": (token_dataset(old, "validation", 16), 2.5), "new": (token_dataset(new, "validation", 16), 3.0)}
    training = token_dataset(job.tokens, "train", 16)
    found = report.evaluate(tmp_path / "model", parts, training, tmp_path)["metrics"]

    model = weights.load(tmp_path / "model").eval()
    bits, sizes = {}, {}
    for name, (data, ratio) in parts.items():
        batch = data.batch(range(len(data)), 0)
        with torch.no_grad():
            logits = model.logits(model.hidden(batch["ids"]))
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
        bits[name], sizes[name] = float(loss) / math.log(2), batch["targets"].numel() * ratio
        assert found[f"bits_per_byte_{name}"] == pytest.approx(bits[name] / sizes[name], rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(sum(bits.values()) / sum(sizes.values()), rel=1e-5)

    whole = report.evaluate(tmp_path / "model", {"": parts["old"]}, training, tmp_path)["metrics"]
    assert whole["bits_per_byte"] == pytest.approx(found["bits_per_byte_old"], rel=1e-5)
    assert not any(name.endswith("_old") or name.endswith("_") for name in whole)
    # A part too short for a sample is left out.
    nothing = token_dataset(new.model_copy(update={"validation": []}), "validation", 16)
    without = report.evaluate(tmp_path / "model", {**parts, "new": (nothing, 0.0)}, training, tmp_path)["metrics"]
    assert "bits_per_byte_new" not in without and without["bits_per_byte"] == whole["bits_per_byte"]


def test_each_document_has_its_share(tmp_path, monkeypatch):
    """What the report stores of each document is what the model says of its tokens, its end among them."""
    monkeypatch.setattr(report, "FEW", 2)
    job = job_in(tmp_path)
    data = token_dataset(job.tokens, "validation", 16)
    found = report.evaluate(tmp_path / "model", {"": (data, 2.5)}, token_dataset(job.tokens, "train", 16), tmp_path)
    model, end = weights.load(tmp_path / "model").eval(), Tokenizer.load(tmp_path / "model").end_of_text
    batch = data.batch(range(len(data)), 0)
    with torch.no_grad():
        logits = model.logits(model.hidden(batch["ids"])).flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, batch["targets"].flatten(), reduction="none").tolist()
    documents: list[list[float]] = [[]]
    for token, loss in zip(batch["targets"].flatten().tolist(), losses, strict=True):
        documents[-1].append(loss)
        if token == end:
            documents.append([])
    documents = [losses for losses in documents if losses]
    assert found["unit"] == "document" and found["units"] == len(documents) > 2
    stored = pd.read_parquet(tmp_path / "predictions.parquet")
    assert stored["nll"].tolist() == pytest.approx([sum(losses) for losses in documents], rel=1e-4)
    assert stored["tokens"].tolist() == [len(losses) for losses in documents]
    again = BASE.unit_results(stored)
    for name in ("bits_per_byte", "loss", "perplexity"):
        assert again.value(name) == pytest.approx(found["metrics"][name])
        low, high = found["intervals"]["model"][name]
        assert low < found["metrics"][name] < high
    assert again.value("bits_per_byte", "unigram") == pytest.approx(found["baselines"]["unigram"]["bits_per_byte"])
