"""Parity with `transformers` where texts are of unequal length, at the published sizes, and with its classifier."""

import random

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from gpt2 import huggingface
from gpt2.config import SIZES, ModelConfig
from gpt2.huggingface import TRANSPOSED, their_name
from gpt2.model import GPT2, Packed
from tests.gpt2.test_model import drawn_shape, reference

PARAMETERS = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


def drawn(seed: int):
    """A model of a random shape, biases and gains that matter, and texts of unequal length."""
    config, rows, longest = drawn_shape(seed)
    model, generator = GPT2(config, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    draw = random.Random(seed)
    lengths = [longest, *(draw.randint(1, longest) for _ in range(rows - 1))]
    return model, [torch.randint(config.vocab_size - 1, (n,), generator=generator) for n in lengths]


def padded(texts, side: str, value: int):
    """(B, T) ids, mask and positions as `transformers` reads them, padded on one side."""
    longest = max(map(len, texts))
    ids = torch.full((len(texts), longest), value)
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for i, text in enumerate(texts):
        place = slice(longest - len(text), longest) if side == "left" else slice(0, len(text))
        ids[i, place], mask[i, place] = text, 1
    return ids, mask, (mask.cumsum(1) - 1).clamp_min(0)


def assert_equal_gradients(ours: GPT2, theirs) -> None:
    for name, p in ours.named_parameters():
        expected = theirs.get_parameter(their_name(name)).grad
        expected = expected.T if name.endswith(TRANSPOSED) else expected
        assert (p.grad - expected).abs().max() <= 1e-5, name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(100, 120))
def test_padded_texts(seed, side):
    """Logits, loss and every gradient: theirs padded, ours packed."""
    ours, texts = drawn(seed)
    theirs, lengths = reference(ours).train(), torch.tensor([len(t) for t in texts])
    ids, mask, positions = padded(texts, side, ours.config.vocab_size - 1)
    packed, tokens = Packed(lengths), torch.cat(texts)
    expected = theirs(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    found = ours.logits(ours.hidden(tokens, packed=packed))
    assert (found - expected).abs().max() <= 1e-5
    targets = tokens.roll(-1)
    targets[packed.last] = -100
    targets[0] = 1
    theirs_loss, our_loss = (F.cross_entropy(logits, targets) for logits in (expected, found))
    assert abs(theirs_loss.item() - our_loss.item()) <= 1e-5
    theirs_loss.backward()
    our_loss.backward()
    assert_equal_gradients(ours, theirs.transformer)


@pytest.mark.parametrize("seed", range(200, 220))
def test_classifier(seed):
    """`GPT2ForSequenceClassification`: its head on each text's last token; logits, loss and every gradient."""
    ours, texts = drawn(seed)
    c, pad = ours.config, ours.config.vocab_size - 1  # no text has it
    theirs = GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.n_positions, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
            layer_norm_epsilon=c.layer_norm_epsilon, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, num_labels=3,
            pad_token_id=pad, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    theirs.transformer.load_state_dict(reference(ours).transformer.state_dict())
    ids, mask, _ = padded(texts, "right", pad)
    labels = torch.randint(3, (len(texts),), generator=torch.Generator().manual_seed(seed))
    out = theirs(ids, attention_mask=mask, labels=labels)
    packed = Packed(torch.tensor([len(t) for t in texts]))
    score = theirs.score.weight.detach().clone().requires_grad_()
    logits = F.linear(ours.hidden(torch.cat(texts), packed=packed)[packed.last], score)
    loss = F.cross_entropy(logits, labels)
    assert (logits - out.logits).abs().max() <= 1e-5 and abs(loss.item() - out.loss.item()) <= 1e-5
    out.loss.backward()
    loss.backward()
    assert (score.grad - theirs.score.weight.grad).abs().max() <= 1e-5
    assert_equal_gradients(ours, theirs.transformer)


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_sizes(name):
    """By name: the parameters of the published models, and of `transformers`' at that shape."""
    config = ModelConfig(**SIZES[name].model_dump())
    c = GPT2Config(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd)
    with torch.device("meta"):
        ours, theirs = GPT2(config), GPT2LMHeadModel(c)
    assert config.n_parameters == PARAMETERS[name]
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == PARAMETERS[name]
    assert {their_name(n) for n in ours.state_dict()} == set(theirs.transformer.state_dict())


@pytest.mark.slow
def test_the_true_shape(tmp_path):
    """124M, V=50,257, 1,024 positions: what `transformers` reads of our file, logits, loss and every gradient."""
    ours = GPT2(ModelConfig(), seed=0)
    huggingface.save(ours, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0).train()
    ids = torch.randint(50257, (1, 256), generator=torch.Generator().manual_seed(0))
    targets = ids.roll(-1)
    logits = theirs(ids).logits
    assert (ours.logits(ours.hidden(ids)) - logits).abs().max() <= 1e-5
    loss, mine = F.cross_entropy(logits.flatten(0, 1), targets.flatten()), ours.loss(ids, targets)
    assert abs(loss.item() - mine.item()) <= 1e-5
    loss.backward()
    mine.backward()
    assert_equal_gradients(ours, theirs.transformer)
