"""Weights of unknown origin: read where they are weights, refused where they are more, and never executed."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import gpt2
from gpt2 import weights
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.weights import adapters, huggingface
from gpt2.weights import tensors as weights_tensors

CONFIG = ModelConfig(vocab_size=300, n_positions=16, n_embd=24, n_layer=3, n_head=3)


@pytest.fixture
def model():
    return GPT2(CONFIG, seed=0)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def as_bin(directory):
    """The folder with `pytorch_model.bin` for its safetensors."""
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory / "pytorch_model.bin"


def test_bin_weights(model, tmp_path):
    huggingface.save(model, tmp_path)
    as_bin(tmp_path)
    assert same(weights.load(tmp_path), model)


@pytest.mark.parametrize("pickled", [False, True])
def test_shards(model, tmp_path, pickled):
    """As `transformers` writes them; the old pickled form by hand."""
    config = GPT2Config(vocab_size=300, n_positions=16, n_embd=24, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path, max_shard_size="30KB")
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    assert len(set(places.values())) > 2
    expected = GPT2LMHeadModel.from_pretrained(tmp_path).transformer.wte.weight
    if pickled:
        for name in set(places.values()):
            torch.save(load_file(tmp_path / name), (tmp_path / name).with_suffix(".bin"))
            (tmp_path / name).unlink()
        places = {tensor: name.replace(".safetensors", ".bin") for tensor, name in places.items()}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
        index.unlink()
    assert torch.equal(weights.load(tmp_path).wte.weight, expected)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_of_git_lfs_is_named(model, tmp_path, name):
    huggingface.save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 7\n")
    with pytest.raises(ValueError, match=rf"{name} is a pointer of git-lfs, not the file itself; .*`git lfs pull`"):
        weights.load(tmp_path)


class Payload:
    """Unpickled, leaves a mark."""

    def __init__(self, mark, how):
        self.mark, self.how = str(mark), how

    def __reduce__(self):
        if self.how == "os.system":
            return os.system, (f"touch {self.mark}",)
        return (exec, (f"open({self.mark!r}, 'w')",)) if self.how == "exec" else (open, (self.mark, "w"))


@pytest.mark.parametrize("how", ["os.system", "exec", "open"])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain pickle", "beside tensors", "named safetensors"])
def test_pickles_with_a_payload_are_not_run(model, tmp_path, how, form):
    mark = tmp_path / "mark"
    huggingface.save(model, tmp_path)
    path, payload = as_bin(tmp_path), Payload(mark, how)
    if form == "beside tensors":
        torch.save({**torch.load(path, weights_only=True), "extra": payload}, path)
    elif form in ("zip", "legacy"):
        torch.save(payload, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(payload, protocol=2))
    told = "holds more than tensors, or is damaged: it was not loaded, as a pickle can run any code; ask for model.safe"
    if form == "named safetensors":
        path.rename(tmp_path / "model.safetensors")
        told = "can't be read as safetensors"
    with pytest.raises(ValueError, match=told):
        weights.load(tmp_path)
    assert not mark.exists()
    # The payload works, where it is let.
    torch.load(path, weights_only=False) if form in ("zip", "legacy", "beside tensors") else pickle.loads(
        (path if path.exists() else tmp_path / "model.safetensors").read_bytes()
    )
    assert mark.exists()


def test_code_that_a_configuration_points_to_is_not_run(model, tmp_path):
    huggingface.save(model, tmp_path)
    mark, config = tmp_path / "mark", json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": "evil.T"}
    config |= {"custom_pipelines": {"text-generation": {"impl": "evil.P"}}, "trust_remote_code": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("evil.py", "modeling_evil.py", "__init__.py", "sitecustomize.py", "conftest.py"):
        (tmp_path / name).write_text(f"open({str(mark)!r}, 'w')")
    assert same(weights.load(tmp_path), model) and not mark.exists()


@pytest.mark.parametrize("size", [2**63, 2**40, 200_000_000, 10_000])
def test_headers_that_are_too_large_are_refused(model, tmp_path, size):
    """Before memory is asked for: what the first 8 bytes promise is not in the file, or more than the format allows."""
    huggingface.save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", size) + b"{")
        if size == 200_000_000:
            file.truncate(size + 8)  # sparse, and all there
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read as safetensors"):
        weights.load(tmp_path)


@pytest.mark.parametrize("offsets", [[0, 2**50], [8, 4], [100, 200]])
def test_tensors_outside_the_file_are_refused(model, tmp_path, offsets):
    huggingface.save(model, tmp_path)
    header = json.dumps({"transformer.wte.weight": {"dtype": "F32", "shape": [300, 24], "data_offsets": offsets}})
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(ValueError, match="can't be read as safetensors"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "..\\x.safetensors", "./m.safetensors",
     "m\0.safetensors", "\ud800.safetensors", "m" * 5000]
)  # fmt: skip
def test_an_index_points_to_files_beside_it_only(model, tmp_path, name):
    folder = tmp_path / "model"
    huggingface.save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, name)}))
    with pytest.raises(ValueError, match=r"points to .*, which is no file beside it; don't use this model"):
        weights.load(folder)


@pytest.mark.parametrize("shard", [False, True])
def test_links_out_of_the_folder_are_refused(model, tmp_path, shard):
    folder = tmp_path / "model"
    huggingface.save(model, folder)
    outside, name = tmp_path / "other.safetensors", "part.safetensors" if shard else "model.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / name).symlink_to(outside)
    if shard:
        places = dict.fromkeys(load_file(outside), name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ValueError, match=f"{name} is a link to .*outside the model's folder; put the file itself"):
        weights.load(folder)
    (folder / name).unlink()
    outside.rename(folder / "beside.safetensors")
    (folder / name).symlink_to("beside.safetensors")
    assert same(weights.load(folder), model)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "\x00", "[" * 100_000]
)
def test_damaged_indices_are_refused(model, tmp_path, text):
    huggingface.save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not an index of weights|is not JSON, or nested too deeply"):
        weights.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "adapter.safetensors", "tokenizer.json", "merges.txt", "task.json",
                                  "items.jsonl"])  # fmt: skip
def test_no_file_is_read_through_a_link_out_of_the_folder(model, tmp_path, name):
    """Or a model could show what it does not have: a file of whoever loads it."""
    folder, outside = tmp_path / "model", tmp_path / "outside"
    weights.save(model, folder)
    Tokenizer.train(["some words"] * 9, 265).save(folder)
    path = folder / name
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("{}")
    path.symlink_to(outside)
    readers = {"tokenizer.json": Tokenizer.load, "merges.txt": Tokenizer.load, "adapter.safetensors": adapters.read}
    for read in {gpt2.load, readers.get(name, weights.load if name == "config.json" else gpt2.load)}:
        with pytest.raises(ValueError, match=f"{name} is a link to .*outside the model's folder; put the file itself"):
            read(folder)


@pytest.mark.parametrize("name", ["config.json", "task.json", "model.safetensors", "tokenizer.json"])
def test_folders_and_links_to_themselves_are_no_files(model, tmp_path, name):
    weights.save(model, tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"(can't be read|is not a tokenizer).*{name}|{name} can't be read"):
        gpt2.load(tmp_path)
    (tmp_path / name).rmdir()
    (tmp_path / name).symlink_to(name)
    with pytest.raises(ValueError, match=f"{name} is a link to itself"):
        gpt2.load(tmp_path)


def test_shards_that_disagree_with_the_index_are_refused(model, tmp_path):
    huggingface.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "part.safetensors")
    places = dict.fromkeys(tensors, "part.safetensors")
    for wrong in ({**places, "more": "part.safetensors"}, {k: v for k, v in places.items() if "ln_f" not in k}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ValueError, match="disagree about the tensor"):
            weights.load(tmp_path)


@pytest.mark.parametrize(
    "found",
    [[torch.ones(1)], {"model": {"wte.weight": torch.ones(1)}, "step": 3}, torch.ones(2), {3: torch.ones(1)}],
)
def test_a_bin_that_is_no_model_is_refused(model, tmp_path, found):
    huggingface.save(model, tmp_path)
    torch.save(found, as_bin(tmp_path))
    with pytest.raises(ValueError, match="holds no tensors by name; is it a training checkpoint"):
        weights.load(tmp_path)


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, -1])
def test_a_damaged_bin_is_refused(model, tmp_path, cut):
    huggingface.save(model, tmp_path)
    path = as_bin(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content)) if cut == 0.5 else cut])
    with pytest.raises(ValueError, match=r"pytorch_model.bin (can't be read|holds more than tensors, or is damaged)"):
        weights.load(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (torch.ones(24, device="meta"), "a strided meta tensor"),
        (torch.ones(24).to_sparse(), "a sparse_coo cpu tensor"),
        (torch.nested.nested_tensor([torch.ones(24)]), "a nested tensor"),
    ],
)
@pytest.mark.parametrize("name", ["transformer.ln_f.weight", "lm_head.weight"])
def test_tensors_that_are_not_plain_are_refused(model, tmp_path, wrong, told, name):
    """A model with them would have parameters without numbers."""
    huggingface.save(model, tmp_path)
    path = as_bin(tmp_path)
    torch.save({**torch.load(path, weights_only=True), name: wrong}, path)
    with pytest.raises(ValueError, match=f"{name}' is {told}; save the model's weights as plain ones of the CPU"):
        weights.load(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused(model, tmp_path, number, dtype):
    with torch.no_grad():
        model.blocks[1].mlp.fc.bias[3] = number
    huggingface.save(model, tmp_path, dtype)
    told = r"'h\.1\.mlp\.c_fc\.bias' holds numbers from .* to .*, which are not finite; did its training diverge"
    with pytest.raises(ValueError, match=told):
        weights.load(tmp_path)


def test_integers_are_no_weights(model, tmp_path):
    huggingface.save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "transformer.ln_f.weight": torch.ones(24, dtype=torch.int32)}, path)
    with pytest.raises(ValueError, match=r"'ln_f.weight' holds torch.int32, not floating point numbers; is it quant"):
        weights.load(tmp_path)


def test_a_head_of_another_shape_is_refused(tmp_path):
    save_file({"weight": torch.ones(3, 5), "bias": torch.ones(3)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"'weight' is \(3, 5\), the model needs \(3, 4\); is it another"):
        weights_tensors.fill(torch.nn.Linear(4, 3), tmp_path / "head.safetensors")
