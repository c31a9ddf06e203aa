"""Models by id, from a cache laid out as the hub's client lays it out. No network."""

import os
import socket

import pytest
import torch
from safetensors.torch import load_file

from gpt2 import weights
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.weights import huggingface as weights_huggingface

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def model(tmp_path):
    """The cache, and the model in it: files in blobs, linked."""
    model, repository = (
        GPT2(ModelConfig(vocab_size=300, n_positions=16, n_embd=24, n_head=3, n_layer=1), seed=0),
        (tmp_path / "models--acme--tiny"),
    )
    weights_huggingface.save(model, tmp_path / "files")
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    (repository / "snapshots" / REVISION).mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, file in enumerate((tmp_path / "files").iterdir()):
        file.rename(repository / "blobs" / f"{i:040x}")
        (repository / "snapshots" / REVISION / file.name).symlink_to(f"../../blobs/{i:040x}")
    return model


def test_from_the_local_cache(model, tmp_path):
    found = weights_huggingface.folder("acme/tiny", cache=tmp_path)
    loaded = weights.load(found)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(
        ValueError, match=r"acme/other is not a directory, and not in .* local cache; fetch it with gpt2"
    ):
        weights_huggingface.folder("acme/other", cache=tmp_path)


def test_by_string(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"\.\./evil is neither a directory nor the id of a model"):
        weights.load("../evil")
    weights_huggingface.save(model, tmp_path / "plain")
    assert weights.load(str(tmp_path / "plain")).config == model.config


@pytest.mark.parametrize("kept", ["safetensors", "bin", "both"])
def test_by_id(model, tmp_path, monkeypatch, kept):
    """From the cache that the hub's client has by default; a `.bin` is read where there is nothing safer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    [safe] = tmp_path.glob("models--acme--tiny/snapshots/*/model.safetensors")
    if kept != "safetensors":
        torch.save(load_file(safe), safe.with_name("pytorch_model.bin"))
    if kept == "bin":
        safe.unlink()
    elif kept == "both":
        safe.with_name("pytorch_model.bin").write_bytes(b"never read")
    loaded = weights.load("acme/tiny")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))


def test_a_link_out_of_the_cache_is_refused(model, tmp_path):
    folder = weights_huggingface.folder("acme/tiny", cache=tmp_path)
    outside = tmp_path / "outside.safetensors"
    os.rename((folder / "model.safetensors").resolve(), outside)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(outside)
    with pytest.raises(ValueError, match="outside the model's folder"):
        weights.load(folder)
