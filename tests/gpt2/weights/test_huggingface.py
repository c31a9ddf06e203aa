"""Weights in `transformers`' layout, there and back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

from gpt2 import weights
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.weights import huggingface

CONFIG = ModelConfig(
    vocab_size=300, n_positions=16, n_embd=24, n_layer=2, n_head=3, layer_norm_epsilon=1e-4, initializer_range=0.1
)
IDS = torch.randint(300, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    model = GPT2(CONFIG, seed=0).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    return model


def logits(model):
    with torch.no_grad():
        return model.logits(model.hidden(IDS))


def test_transformers_reads_what_we_write(model, tmp_path):
    huggingface.save(model, tmp_path)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert isinstance(theirs, GPT2LMHeadModel)
    assert theirs.config.eos_token_id == theirs.config.bos_token_id == 299
    with torch.no_grad():
        assert (theirs.eval()(IDS).logits - logits(model)).abs().max() <= 1e-5


def test_there_and_back_is_exact(model, tmp_path):
    huggingface.save(model, tmp_path)
    again = huggingface.load(tmp_path)
    assert again.config == CONFIG
    for (name, p), q in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert name == q[0] and torch.equal(p, q[1]) and q[1].is_contiguous() and q[1].requires_grad, name
    assert torch.equal(logits(model), logits(again.eval()))


def test_half_precision_file_is_read_as_fp32(model, tmp_path):
    huggingface.save(model.bfloat16(), tmp_path, torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = huggingface.load(tmp_path)
    assert all(
        p.dtype == torch.float32 and torch.equal(p, q)
        for p, q in zip(again.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.parametrize("kind", [GPT2LMHeadModel, GPT2Model])
def test_we_read_what_transformers_writes(kind, tmp_path):
    """With and without the `transformer.` prefix."""
    config = GPT2Config(vocab_size=300, n_positions=16, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0)
    theirs = kind(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = huggingface.load(tmp_path).eval()
    assert ours.config.dropout == 0.1
    with torch.no_grad():
        hidden = getattr(theirs, "transformer", theirs)(IDS).last_hidden_state
        assert (ours.hidden(IDS) - hidden).abs().max() <= 1e-5


def test_a_classifier_is_refused_and_its_body_read(tmp_path):
    """As the message says."""
    config = GPT2Config(
        vocab_size=300, n_positions=16, n_embd=24, n_layer=2, n_head=3, bos_token_id=0, eos_token_id=0, num_labels=3
    )
    theirs = GPT2ForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors is a classifier's: score.weight .* for its body, give"):
        huggingface.load(tmp_path)
    GPT2Model.from_pretrained(tmp_path).save_pretrained(tmp_path / "body")
    with torch.no_grad():
        hidden = theirs.transformer(IDS).last_hidden_state
        assert (huggingface.load(tmp_path / "body").eval().hidden(IDS) - hidden).abs().max() <= 1e-5


def edit(directory, **values):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**config, **values}.items() if v != "removed"}))


def change(directory, function):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    function(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)


def test_old_buffers_and_an_equal_head_are_ignored(model, tmp_path):
    huggingface.save(model, tmp_path)

    def add(tensors):
        tensors["transformer.h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
        tensors["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    change(tmp_path, add)
    assert torch.equal(logits(huggingface.load(tmp_path).eval()), logits(model))


def test_of_the_tied_tensors_either_is_enough(model, tmp_path):
    huggingface.save(model, tmp_path)
    change(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("transformer.wte.weight")}))
    assert torch.equal(logits(huggingface.load(tmp_path).eval()), logits(model))
    edit(tmp_path, tie_word_embeddings=False)
    with pytest.raises(ValueError, match="tie_word_embeddings=False is not supported"):
        huggingface.load(tmp_path)


def test_the_other_name_of_gelu_new_is_the_same(model, tmp_path):
    huggingface.save(model, tmp_path)
    edit(tmp_path, activation_function="gelu_pytorch_tanh")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(huggingface.load(tmp_path).eval())).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda t: t.pop("transformer.h.1.mlp.c_fc.bias"), "has no tensor 'h.1.mlp.c_fc.bias'"),
        (lambda t: t.update(extra=torch.ones(1)), "has the unexpected tensor 'extra'"),
        (lambda t: t.update({"transformer.ln_f.weight": torch.ones(7)}), r"'ln_f.weight' is \(7,\).* \(24,\)"),
        (lambda t: t.update({"lm_head.weight": torch.ones(300, 24)}), "lm_head.weight differs from wte.weight"),
        (lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].half()}), "differs from wte.weight"),
    ],
)
def test_wrong_tensors_are_refused(model, tmp_path, function, message):
    huggingface.save(model, tmp_path)
    change(tmp_path, function)
    with pytest.raises(ValueError, match=message):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "llama"}, "describes model_type='llama', not 'gpt2'; give a GPT-2's directory"),
        ({"model_type": "removed"}, "has no model_type, so it may be any model"),
        ({"n_inner": "96"}, "n_inner='96' is not supported, only 96"),
        ({"attn_pdrop": [1]}, r"'attn_pdrop': \[1\].*the same number"),
        ({p: [1] for p in ("embd_pdrop", "attn_pdrop", "resid_pdrop")}, r"'attn_pdrop': \[1\].*the same number"),
        ({"n_layer": [[2]]}, r"config.json: n_layer=\[\[2\]\]: Input should be a valid integer$"),
        ({"activation_function": "relu"}, "activation_function='relu' is not supported, only 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
        ({"n_inner": 50}, "n_inner=50 is not supported, only 96"),
        ({"n_inner": 50, "n_embd": "removed"}, "n_inner=50 is not supported, only 3072"),
        ({"attn_pdrop": 0.5}, "attn_pdrop.*the same number"),
        ({"n_head": 7}, "config.json: n_embd=24 is not divisible by n_head=7; choose a width .*7$"),
        ({"n_layer": 3}, "has no tensor 'h.2.attn.c_attn.bias' and 11 more"),
        ({"n_layer": 1}, "has the unexpected tensor 'h.1.attn.c_attn.bias' and 11 more"),
    ],
)
def test_wrong_configurations_are_refused(model, tmp_path, values, message):
    huggingface.save(model, tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(ValueError, match=message):
        huggingface.load(tmp_path)


def test_missing_and_damaged_files_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        huggingface.load(tmp_path)
    huggingface.save(model, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        huggingface.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors can't be read"):
        huggingface.load(tmp_path)
    for text in ("{", "", "[" * 100_000, '{"a":' * 100_000, "\udcff"):
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        for load in (huggingface.load, weights.load):
            with pytest.raises(ValueError, match="is not JSON, or nested too deeply"):
                load(tmp_path)
