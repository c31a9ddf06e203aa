"""Models of every architecture to files and back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2 import huggingface, weights
from gpt2.config import ModelConfig
from gpt2.model import GPT2

MODERN = ModelConfig(
    vocab_size=300, n_positions=16, n_embd=32, n_layer=2, n_head=4, positions="rotary", norm="rms",
    qk_norm=True, value_residual=True, bias=False, activation="relu2", tied_head=False,
)  # fmt: skip
PLAIN = ModelConfig(vocab_size=300, n_positions=16, n_embd=32, n_layer=2, n_head=4)


@pytest.mark.parametrize("config", [PLAIN, MODERN])
def test_round_trip(config, tmp_path):
    model = GPT2(config, seed=1)
    weights.save(model, tmp_path)
    again = weights.load(tmp_path)
    assert again.config == config
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_gpt2_keeps_the_layout_of_transformers(tmp_path):
    weights.save(GPT2(PLAIN, seed=1), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "gpt2"
    assert huggingface.load(tmp_path).config == PLAIN


def test_another_architecture_is_refused_by_the_layout_of_transformers(tmp_path):
    from transformers import AutoModelForCausalLM

    with pytest.raises(ValueError, match=r"can't hold a model with positions=rotary, norm=rms.*gpt2.weights.save"):
        huggingface.save(GPT2(MODERN), tmp_path)
    weights.save(GPT2(MODERN), tmp_path)
    with pytest.raises(ValueError, match="gpt2_pipeline"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_what_does_not_fit_is_named(tmp_path):
    weights.save(GPT2(MODERN), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for changed, told in (
        ({k: v for k, v in tensors.items() if k != "head.weight"}, "has no tensor 'head.weight'"),
        ({**tensors, "extra": torch.zeros(1)}, "has the unexpected tensor 'extra'"),
        ({**tensors, "ln_f.weight": torch.zeros(3)}, r"'ln_f.weight' is \(3,\), the model needs \(32,\)"),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=told):
            weights.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="can't be read as safetensors"):
        weights.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2_pipeline", "architecture": {"norm": "x"}}))
    with pytest.raises(ValueError, match=r"(?s)config.json.*norm"):
        weights.load(tmp_path)
