"""Published weights as people have them: imported with the logits of `transformers`, or refused by the true reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2DoubleHeadsModel, GPT2LMHeadModel, GPT2TokenizerFast

from gpt2.loading import load
from gpt2.store.artifact import LFS
from gpt2.weights import published

TEXTS = [
    "The crew was lovely and we landed early</s>",
    "My bag is lost again",
    "Ein Satz, noch einer: 12 Äpfel, keine Birne",
]
SIZE = 320
SPECIAL = ("unk_token", "bos_token", "eos_token")


def publish(folder, kind=GPT2LMHeadModel, size=SIZE, end="<|endoftext|>", **config):
    """A GPT-2 with a tokenizer of 320 ids and an embedding of `size` rows, as `transformers` writes it; the model."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ByteLevelBPETokenizer()
    words.train_from_iterator(TEXTS * 10, vocab_size=SIZE, special_tokens=[end], show_progress=False, min_frequency=1)
    assert words.get_vocab_size() == SIZE
    words.save_model(str(folder))
    shape = {"n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3, "bos_token_id": 0, "eos_token_id": 0}
    model = kind(GPT2Config(vocab_size=size, **{**shape, **config})).eval()
    model.save_pretrained(folder)
    return model


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def same_logits(folder, theirs):
    """Whether it is imported with the logits of `transformers`, also from what is written; the tokenizer."""
    ids = torch.randint(SIZE, (2, 32), generator=torch.Generator().manual_seed(0))
    model, tokenizer = published.read(folder)
    with torch.inference_mode():
        expected = theirs(ids).logits.view(-1, 32, theirs.config.vocab_size)[..., :SIZE]
        assert (model.eval().logits(model.hidden(ids)) - expected).abs().max() <= 1e-5
        published.write(folder, published.digests(folder), folder / "out")
        again = load(folder / "out" / "model").predictor.model
        assert torch.equal(again.logits(again.hidden(ids)), model.logits(model.hidden(ids)))
    return tokenizer


@pytest.mark.parametrize("size", [328, 384])
def test_rows_that_pad_the_embedding_are_left_out(tmp_path, size):
    assert same_logits(tmp_path, publish(tmp_path, size=size)).vocab_size == SIZE


@pytest.mark.parametrize("size", [319, 321, 448])
def test_rows_that_pad_nothing_are_told(tmp_path, size):
    publish(tmp_path, size=size)
    with pytest.raises(ValueError, match=rf"has 320 ids, the model {size}: they don't belong together"):
        published.read(tmp_path)


@pytest.mark.parametrize("whole", [False, True])
def test_another_token_may_end_the_texts(tmp_path, whole):
    theirs = publish(tmp_path, end="</s>")
    fast = GPT2TokenizerFast(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), **dict.fromkeys(SPECIAL, "</s>")
    )
    if whole:
        (tmp_path / "tokenizer.json").write_text(fast.backend_tokenizer.to_str())
    tokenizer = same_logits(tmp_path, theirs)
    assert tokenizer.end_of_text == 0 and tokenizer.token_bytes[0] == b"<|endoftext|>"
    assert tokenizer.encode(TEXTS[1]) == fast(TEXTS[1])["input_ids"]
    assert 0 not in tokenizer.encode(TEXTS[0]) and tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["eos_token_id"] == config["bos_token_id"] == 0
    edit(tmp_path, eos_token_id=50256)  # left over from the model that it was copied from
    with pytest.raises(ValueError, match="give that one's id as eos_token_id in config.json" if whole else "321 ids"):
        published.read(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt", "model.safetensors"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path, name):
    publish(tmp_path)
    (tmp_path / name).write_bytes(LFS + b"v1\noid sha256:" + b"0" * 64 + b"\nsize 548105171\n")
    with pytest.raises(ValueError, match=rf"{name} is a pointer of git-lfs, .* fetch the file with `git lfs pull`"):
        published.digests(tmp_path)


def test_of_two_heads_the_language_models_is_read(tmp_path):
    torch.manual_seed(0)
    same_logits(tmp_path, publish(tmp_path, GPT2DoubleHeadsModel))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_a_wrapper_gave_are_read(tmp_path, prefix):
    theirs, path = publish(tmp_path), tmp_path / "model.safetensors"
    save_file({prefix + name: tensor for name, tensor in load_file(path).items()}, path)
    same_logits(tmp_path, theirs)


@pytest.mark.parametrize("positions", [8, 9, 32])
def test_a_short_context_has_its_own_defaults(tmp_path, positions):
    publish(tmp_path, n_positions=positions)
    published.write(tmp_path, published.digests(tmp_path), tmp_path / "out")
    model = load(tmp_path / "out" / "model")
    assert len(model.predict(list(model.predictor.input_example))) == 1
    assert model.predictor.params["max_tokens"] == positions // 2


@pytest.mark.parametrize(("values", "why"), [
    ({"activation_function": "gelu"}, "activation_function='gelu' is not supported, only 'gelu_new'"),
    ({"attn_pdrop": 0.2}, "'attn_pdrop': 0.2.* is not supported; give the three the same number"),
    ({"model_type": None}, "describes model_type=None, not 'gpt2'"),
])  # fmt: skip
def test_what_would_give_other_logits_is_refused_by_name(tmp_path, values, why):
    publish(tmp_path)
    edit(tmp_path, **values)
    with pytest.raises(ValueError, match=why):
        published.read(tmp_path)


def test_a_configuration_without_its_kind_says_what_to_add(tmp_path):
    theirs, path = publish(tmp_path), tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "model_type"}))
    with pytest.raises(ValueError, match=r'has no model_type, .*; if it is a GPT-2, add "model_type": "gpt2"'):
        published.read(tmp_path)
    edit(tmp_path, model_type="gpt2")
    same_logits(tmp_path, theirs)
