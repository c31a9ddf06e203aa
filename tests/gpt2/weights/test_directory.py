"""Models of every architecture to files and back."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from tokenizers import Tokenizer as Rust
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig

import gpt2
from gpt2 import weights
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.weights import huggingface

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


def works(folder):
    return len(gpt2.load(folder).predict(["words"], max_tokens=2)) == 1


@pytest.mark.parametrize("config", [PLAIN, MODERN])
def test_a_model_tells_its_tokenizer(config, tmp_path):
    """Another of the same size is refused, wherever the two meet; a model that tells none loads with any."""
    own, other = (
        Tokenizer.train([text * 9], 270) for text in ("words that are one's own ", "others have other words ")
    )
    model, folder = GPT2(config.model_copy(update={"vocab_size": 270}), seed=1), tmp_path / "model"
    weights.save(model, folder, tokenizer=own)
    (folder / "task.json").write_text('{"task": "base"}')
    assert Tokenizer.load(folder, 270).record == own.record and works(folder)
    respelled = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(respelled, indent=3))  # the same ids of another file
    assert works(folder)
    own.check_model(folder)
    other.save(folder)
    told = r"gives other ids than the one that the model in .* was saved with \(tokenizer_sha256 .*\); give its own"
    for read in (gpt2.load, Tokenizer.load, other.check_model):
        with pytest.raises(ValueError, match=told):
            read(folder)
    weights.save(model, folder)
    assert works(folder)
    with pytest.raises(ValueError, match=r"has 265 ids, the model 270: they don't belong together"):
        weights.save(model, folder, tokenizer=Tokenizer.train(["words that are one's own " * 9], 265))


def test_merges_in_another_order_are_another_tokenizer():
    """Same tokens, same ids, same size."""
    made = []
    for merges in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")]):
        tokens = [*sorted(ByteLevel.alphabet()), "ab", "bc", "<|endoftext|>"]
        rust = Rust(BPE({token: i for i, token in enumerate(tokens)}, merges))
        rust.pre_tokenizer, rust.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
        rust.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
        made.append(Tokenizer(rust))
    assert made[0].encode("abc") != made[1].encode("abc")
    assert made[0].record != made[1].record


def test_end_of_text_may_be_any_id(tmp_path):
    """`transformers` stops where our own generation does."""
    tokens = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    rust = Rust(BPE({token: i for i, token in enumerate(tokens)}, []))
    rust.pre_tokenizer, rust.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    rust.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    tokenizer = Tokenizer(rust)
    weights.save(GPT2(ModelConfig(**{**PLAIN.model_dump(), "vocab_size": 257})), tmp_path, tokenizer=tokenizer)
    told = AutoConfig.from_pretrained(tmp_path)
    assert told.eos_token_id == told.bos_token_id == tokenizer.end_of_text == 0


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
    with pytest.raises(ValueError, match=r"config.json: norm='x': Input should be 'layer', 'rms' or 'none'$"):
        weights.load(tmp_path)
