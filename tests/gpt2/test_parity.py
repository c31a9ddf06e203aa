"""Parity with `transformers` where texts are of unequal length, at the published sizes, and with its classifier."""

import random

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from gpt2.model.config import SIZES, ModelConfig
from gpt2.model.layers import cross_entropy
from gpt2.model.transformer import GPT2, Packed
from gpt2.weights import huggingface
from gpt2.weights.huggingface import TRANSPOSED, their_name
from tests.gpt2.model.test_transformer import drawn_shape, reference

PARAMETERS = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}


def with_gains(model: GPT2, generator: torch.Generator) -> GPT2:
    """Biases and gains that matter."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    return model


def drawn(seed: int):
    """A model of a random shape, biases and gains that matter, and two or more texts, of which the first is longest."""
    config, rows, longest = drawn_shape(seed)
    rows, longest, generator = max(2, rows), max(2, longest), torch.Generator().manual_seed(seed)
    model, draw = with_gains(GPT2(config, seed=seed), generator), random.Random(seed)
    lengths = [longest, *(draw.randint(1, longest - 1) for _ in range(rows - 1))]
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
    assert not mask.all()
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


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", range(200, 220))
def test_classifier(seed, side):
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
    ids, mask, positions = padded(texts, side, pad)
    labels = torch.randint(3, (len(texts),), generator=torch.Generator().manual_seed(seed))
    out = theirs(ids, attention_mask=mask, position_ids=positions, labels=labels)
    packed = Packed(torch.tensor([len(t) for t in texts]))
    score = theirs.score.weight.detach().clone().requires_grad_()
    logits = F.linear(ours.hidden(torch.cat(texts), packed=packed)[packed.last], score)
    loss = F.cross_entropy(logits, labels)
    assert (logits - out.logits).abs().max() <= 1e-5 and abs(loss.item() - out.loss.item()) <= 1e-5
    out.loss.backward()
    loss.backward()
    assert (score.grad - theirs.score.weight.grad).abs().max() <= 1e-5
    assert_equal_gradients(ours, theirs.transformer)


@pytest.mark.parametrize("seed", range(300, 320))
def test_dropout(seed):
    """As published, of embeddings, attention, and both branches: the same numbers drawn, the same logits and loss."""
    config, rows, length = drawn_shape(seed)
    generator = torch.Generator().manual_seed(seed)
    ours = with_gains(GPT2(config.model_copy(update={"dropout": 0.3}), seed=seed), generator).train()
    theirs, ids = reference(ours).train(), torch.randint(config.vocab_size, (rows, length), generator=generator)
    dropped = []
    for model in (ours, theirs):
        torch.manual_seed(seed)
        dropped.append(ours.logits(ours.hidden(ids)) if model is ours else theirs(ids).logits)
    assert (dropped[0] - dropped[1]).abs().max() <= 1e-5
    assert (dropped[0] - ours.logits(ours.hidden(ids))).abs().max() > 1e-3  # drawn anew, it is another
    losses = [F.cross_entropy(logits.flatten(0, 1), ids.flatten()) for logits in dropped]
    assert abs(losses[0].item() - losses[1].item()) <= 1e-5
    for loss in losses:
        loss.backward()
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
    """124M, V=50,257, 1,024 positions: what `transformers` reads of our file, logits, loss and every gradient, of
    three texts padded left and right."""
    generator = torch.Generator().manual_seed(0)
    ours = with_gains(GPT2(ModelConfig(), seed=0), generator)
    huggingface.save(ours, tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0).train()
    texts = [torch.randint(50256, (n,), generator=generator) for n in (128, 57, 100)]
    packed, tokens = Packed(torch.tensor([len(t) for t in texts])), torch.cat(texts)
    targets = tokens.roll(-1)
    targets[packed.last] = -100
    hidden = ours.hidden(tokens, packed=packed)
    mine = cross_entropy(hidden, ours.head_weight, targets) / (targets != -100).sum()
    mine.backward()
    for side in ("left", "right"):
        ids, mask, positions = padded(texts, side, 50256)
        logits = theirs(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
        assert (ours.logits(hidden) - logits).abs().max() <= 1e-5
        loss = F.cross_entropy(logits, targets)
        assert abs(loss.item() - mine.item()) <= 1e-5
        theirs.zero_grad()
        loss.backward()
        assert_equal_gradients(ours, theirs.transformer)
