"""Held-out text in parts: each has its bits per byte, and together they are the whole."""

import math

import pytest
import torch

from gpt2 import language_model, weights
from gpt2.jobs import token_dataset
from tests.gpt2.test_mixture import job_in


def test_parts_of_the_validation_split_are_measured_each_and_together(tmp_path):
    job = job_in(tmp_path)
    old, new = job.tokens.old_and_new()
    parts = {"old": (token_dataset(old, "validation", 16), 2.5), "new": (token_dataset(new, "validation", 16), 3.0)}
    training = token_dataset(job.tokens, "train", 16)
    found = language_model.evaluate(tmp_path / "model", parts, training, tmp_path)["metrics"]

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

    whole = language_model.evaluate(tmp_path / "model", {"": parts["old"]}, training, tmp_path)["metrics"]
    assert whole["bits_per_byte"] == pytest.approx(found["bits_per_byte_old"], rel=1e-5)
    assert not any(name.endswith("_old") or name.endswith("_") for name in whole)
    # A part too short for a sample is left out.
    nothing = token_dataset(new.model_copy(update={"validation": []}), "validation", 16)
    without = language_model.evaluate(tmp_path / "model", {**parts, "new": (nothing, 0.0)}, training, tmp_path)[
        "metrics"
    ]
    assert "bits_per_byte_new" not in without and without["bits_per_byte"] == whole["bits_per_byte"]
