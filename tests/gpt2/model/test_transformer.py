"""The model against `transformers`, and the sliced loss against the plain one."""

import random

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2.model import layers as model_loss
from gpt2.model.config import ModelConfig
from gpt2.model.layers import cross_entropy
from gpt2.model.transformer import GPT2, KVCache, Packed, causal_attention, gelu_tanh, rotate, rotations
from gpt2.weights.huggingface import TRANSPOSED, their_name

SMALL = ModelConfig(vocab_size=300, n_positions=16, n_embd=32, n_layer=2, n_head=4)


def reference(model: GPT2) -> GPT2LMHeadModel:
    """`transformers`' model with the same weights."""
    c = model.config
    config = GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.n_positions,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        layer_norm_epsilon=c.layer_norm_epsilon,
        resid_pdrop=c.dropout,
        embd_pdrop=c.dropout,
        attn_pdrop=c.dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    theirs = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            theirs.transformer.get_parameter(their_name(name)).copy_(p.T if name.endswith(TRANSPOSED) else p)
    return theirs


def drawn_shape(seed: int) -> tuple[ModelConfig, int, int]:
    draw = random.Random(seed)
    heads = draw.choice([1, 2, 3, 4, 8])
    config = ModelConfig(
        vocab_size=draw.randint(257, 1200),
        n_positions=draw.randint(8, 64),
        n_embd=max(8, heads * draw.choice([4, 8, 12])),
        n_layer=draw.randint(1, 4),
        n_head=heads,
        layer_norm_epsilon=draw.choice([1e-5, 1e-3]),
        initializer_range=draw.choice([0.02, 0.1]),
    )
    return config, draw.randint(1, 5), draw.randint(1, config.n_positions)


@pytest.mark.parametrize("seed", range(20))
def test_equals_transformers(seed, monkeypatch):
    """Logits, loss and every gradient, with targets left out and a loss of several slices and tiles."""
    monkeypatch.setattr(model_loss, "loss_rows", lambda *_: 7)
    monkeypatch.setattr(model_loss, "DW_TILE_CPU", 100)
    config, B, T = drawn_shape(seed)
    ours = GPT2(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # biases and gains that matter
        for p in ours.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    theirs = reference(ours).train()
    ids = torch.randint(config.vocab_size, (B, T), generator=generator)
    targets = torch.randint(config.vocab_size, (B, T), generator=generator)
    targets[torch.rand(B, T, generator=generator) < 0.2] = -100
    targets[0, 0] = 1

    logits = theirs(ids).logits
    assert (ours.logits(ours.hidden(ids)) - logits).abs().max() <= 1e-5
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    mine = ours.loss(ids, targets)
    mine.backward()
    assert abs(mine.item() - loss.item()) <= 1e-5
    for name, p in ours.named_parameters():
        expected = theirs.transformer.get_parameter(their_name(name)).grad
        expected = expected.T if name.endswith(TRANSPOSED) else expected
        assert (p.grad - expected).abs().max() <= 1e-5, name


def test_parameter_count():
    assert sum(p.numel() for p in GPT2(SMALL).parameters()) == SMALL.n_parameters


def test_initialisation():
    config = ModelConfig(vocab_size=2000, n_positions=256, n_embd=128, n_layer=8, n_head=4)
    model, again, other = GPT2(config, seed=1), GPT2(config, seed=1), GPT2(config, seed=2)
    for (name, p), q, r in zip(model.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
        if name.endswith("bias"):
            assert not p.any(), name
        elif p.ndim == 1:
            assert (p == 1).all(), name
        else:
            assert not torch.equal(p, r), name
            std = 0.02 / (16**0.5 if name.endswith("proj.weight") else 1)
            assert p.std().item() == pytest.approx(std, rel=0.05), name


def test_causal_and_right_padding():
    model = GPT2(SMALL, seed=0)
    ids = torch.randint(300, (2, 12))
    changed = ids.clone()
    changed[:, 7:] = 0
    assert torch.equal(model.hidden(ids)[:, :7], model.hidden(changed)[:, :7])
    assert torch.allclose(model.hidden(ids[:, :7]), model.hidden(ids)[:, :7], atol=1e-6)


def test_too_long():
    with pytest.raises(ValueError, match="17 tokens are more than the model's 16 positions; shorten"):
        GPT2(SMALL).hidden(torch.zeros(1, 17, dtype=torch.long))


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (0, 300), (1, 2**40)])
def test_ids_out_of_range(low, high):
    """In training too, read in rows or packed; and the model works on."""
    model, ids = GPT2(SMALL, seed=0), torch.tensor([[1, low, high, 2]])
    told = f"ids from {low} to {high} are not all in the model's range, 0 to 299; use the model's own tokenizer"
    for read in (lambda: model.loss(ids, ids), lambda: model.hidden(ids[0], packed=Packed(torch.tensor([3, 1])))):
        with pytest.raises(ValueError, match=told):
            read()
    model.loss(ids * 0, ids * 0).backward()


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (0, 300), (-99, 2**40)])
def test_targets_out_of_range(low, high):
    model, ids = GPT2(SMALL, seed=0), torch.tensor([[1, 2, 3, 4]])
    with pytest.raises(
        ValueError, match=f"targets from {low} to {high} are not all in the model's range, 0 to 299, or -100"
    ):
        model.loss(ids, torch.tensor([[low, -100, high, 1]]))


@pytest.mark.parametrize("rows", [1, 5, 64, 1000])
def test_sliced_loss_equals_plain(rows, monkeypatch):
    monkeypatch.setattr(model_loss, "loss_rows", lambda *_: rows)
    monkeypatch.setattr(model_loss, "DW_TILE_CPU", rows)
    hidden, weight = torch.randn(64, 24, requires_grad=True), torch.randn(500, 24, requires_grad=True)
    targets = torch.randint(500, (64,))
    targets[::5] = -100
    plain = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    sliced = cross_entropy(hidden, weight, targets)
    assert sliced.item() == pytest.approx(plain.item(), rel=5e-6)  # 13 sums of fp32 in another order
    with torch.no_grad():
        assert cross_entropy(hidden, weight, targets).item() == pytest.approx(plain.item(), rel=5e-6)
    for a, b in zip(
        torch.autograd.grad(sliced * 3, (hidden, weight)), torch.autograd.grad(plain * 3, (hidden, weight)), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)


def test_bf16_gradients_are_scaled_exactly():
    """A mean over 3 targets: 1/3 is not rounded to bf16 (a bias of all gradients), only each result is."""
    hidden, weight = torch.randn(3, 64).bfloat16().requires_grad_(), torch.randn(999, 64).bfloat16().requires_grad_()
    loss, inputs = cross_entropy(hidden, weight, torch.tensor([1, 2, 998])), (hidden, weight)
    whole = torch.autograd.grad(loss, inputs, retain_graph=True)
    third = torch.autograd.grad(loss / 3, inputs)
    for a, b in zip(whole, third, strict=True):
        assert (b.float().norm() / a.float().norm()).item() == pytest.approx(1 / 3, rel=5e-4)


def test_loss_of_extreme_logits():
    """Where the target's probability is below fp32's smallest number."""
    hidden, weight = torch.full((1, 1), 50.0, requires_grad=True), torch.tensor([[10.0], [-10.0], [0.0]])
    loss = cross_entropy(hidden, weight, torch.tensor([1]))
    loss.backward()
    assert loss.item() == 1000
    assert hidden.grad.item() == 20


def test_bf16_gradients_are_near_fp32():
    config = ModelConfig(vocab_size=2000, n_positions=64, n_embd=64, n_layer=2, n_head=4, initializer_range=0.1)
    exact = GPT2(config, seed=0)
    low = GPT2(config, seed=0).bfloat16()
    mixed = GPT2(config, seed=0)
    ids, targets = torch.randint(2000, (8, 64)), torch.randint(2000, (8, 64))
    loss = exact.loss(ids, targets)
    loss.backward()
    low_loss = low.loss(ids, targets)
    low_loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed_loss = mixed.loss(ids, targets)
    mixed_loss.backward()
    assert low_loss.dtype == mixed_loss.dtype == torch.float32
    assert low_loss.item() == pytest.approx(loss.item(), rel=3e-3)
    assert mixed_loss.item() == pytest.approx(loss.item(), rel=3e-3)
    for (name, p), q, r in zip(exact.named_parameters(), low.parameters(), mixed.parameters(), strict=True):
        if "qkv.bias" in name:
            continue  # a key's bias has no gradient: softmax ignores it
        assert (q.grad.float() - p.grad).norm() <= 0.05 * p.grad.norm(), name
        assert (r.grad - p.grad).norm() <= 0.05 * p.grad.norm(), name


@pytest.mark.parametrize("T", [1, 37, 129, 256])
def test_short_bf16_attention_is_as_exact_as_the_fused_one(T):
    q, k, v = torch.randn(3, 2, 4, T, 32, requires_grad=True)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    low = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
    ours, fused = causal_attention(*low), F.scaled_dot_product_attention(*low, is_causal=True)
    direction = torch.randn_like(exact)

    def error(y, inputs):
        gradients = torch.autograd.grad(y, inputs, direction.to(y.dtype))
        return torch.stack(
            [(g.float() - e).norm() / e.norm().clamp_min(1) for g, e in zip(gradients, wanted, strict=True)]
        )

    wanted = torch.autograd.grad(exact, (q, k, v), direction)
    assert (ours.float() - exact).norm() <= 0.01 * exact.norm()
    assert (error(ours, low) <= 1.5 * error(fused, low) + 0.002).all()


def test_activation_checkpointing_changes_nothing():
    model = GPT2(SMALL.model_copy(update={"dropout": 0.1}), seed=0).train()
    ids = torch.randint(300, (2, 16))

    def gradients():
        torch.manual_seed(0)
        model.zero_grad()
        model.loss(ids, ids).backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.activation_checkpointing = True
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_loss_sum():
    model = GPT2(SMALL, seed=0)
    ids, targets = torch.randint(300, (3, 16)), torch.randint(300, (3, 16))
    targets[1] = -100
    total, count = model.loss_sum(ids, targets)
    assert count == 32
    assert total / count == pytest.approx(model.loss(ids, targets).item(), rel=1e-6)
    assert model.loss_sum(ids, torch.full_like(targets, -100)) == (0.0, 0)


def test_nothing_to_learn_is_a_zero_loss():
    model = GPT2(SMALL, seed=0)
    ids = torch.randint(300, (2, 8))
    loss = model.loss(ids, torch.full_like(ids, -100))
    loss.backward()
    assert loss.item() == 0
    assert not any(p.grad.any() for p in model.parameters())


SWITCHED = [
    {},
    {"positions": "rotary", "norm": "rms", "bias": False, "qk_norm": True, "activation": "relu2"},
    {"value_residual": True, "tied_head": False, "zero_init": True},
    {"activation": "swiglu", "norm_placement": "post"},
    {"norm": "none", "residual": False, "activation": "tanh"},
    {"positions": "rotary", "value_residual": True, "bias": False},
]


def switched(changes: dict, seed: int = 0) -> GPT2:
    """A small model with random biases and gains, and nothing at zero."""
    model = GPT2(ModelConfig.model_validate({**SMALL.model_dump(), **changes}), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.05)
    return model


@pytest.mark.parametrize("changes", SWITCHED)
def test_parameters_of_every_architecture(changes):
    model = switched(changes)
    assert sum(p.numel() for p in model.parameters()) == model.config.n_parameters


@pytest.mark.parametrize("changes", SWITCHED)
def test_packed_equals_one_by_one(changes):
    """Hidden states and gradients of texts end to end are those of each text alone."""
    model = switched(changes)
    lengths = torch.tensor([3, 16, 1, 7])
    ids = torch.randint(300, (int(lengths.sum()),), generator=torch.Generator().manual_seed(1))
    together = model.hidden(ids, packed=Packed(lengths))
    together.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    alone = torch.cat([model.hidden(text[None])[0] for text in ids.split(lengths.tolist())])
    alone.square().sum().backward()
    torch.testing.assert_close(together, alone)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-4)


def test_packed_means_and_places():
    packed, values = Packed(torch.tensor([2, 1])), torch.tensor([[1.0], [3.0], [5.0]])
    assert packed.means(values).tolist() == [[2.0], [5.0]]
    assert packed.last.tolist() == [1, 2] and packed.positions.tolist() == [0, 1, 0]
    assert packed.pad(values)[..., 0].tolist() == [[1.0, 3.0], [5.0, 0.0]]
    assert torch.equal(packed.unpad(packed.pad(values)), values)


def test_packed_text_of_no_token():
    with pytest.raises(ValueError, match=r"lengths=\[2, 0\], but a text needs one token or more"):
        Packed(torch.tensor([2, 0]))


def test_packed_text_too_long():
    with pytest.raises(ValueError, match="17 tokens are more than"):
        GPT2(SMALL).hidden(torch.zeros(17, dtype=torch.long), packed=Packed(torch.tensor([17])))


@pytest.mark.parametrize("changes", SWITCHED)
def test_cached_equals_whole(changes):
    model = switched(changes).eval()
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    caches = [KVCache(2, 9, model.config, model.wte.weight) for _ in model.blocks]
    steps = []
    for part in ids.split([4, 1, 3, 1], dim=1):
        start = sum(s.shape[1] for s in steps)
        for cache in caches:
            cache.positions = torch.arange(start, start + part.shape[1]).expand(2, -1)
        steps.append(model.hidden(part, caches))
    torch.testing.assert_close(torch.cat(steps, dim=1), model.hidden(ids), rtol=1e-4, atol=1e-5)


def test_rotary_scores_depend_on_distance_alone():
    q, k = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0)).unbind()
    at = [rotations(torch.tensor([place]), 8, torch.float32) for place in range(12)]
    scores = [float((rotate(q, *at[i]) * rotate(k, *at[i - 3])).sum()) for i in range(3, 12)]
    assert max(scores) - min(scores) < 1e-5
    assert abs(scores[0] - float((rotate(q, *at[5]) * rotate(k, *at[0])).sum())) > 1e-3


def test_rotary_equals_transformers():
    """Against the rotation of GPT-NeoX."""
    from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

    x = torch.randn(1, 2, 7, 8, generator=torch.Generator().manual_seed(0))  # (B, heads, T, d)
    cos, sin = rotations(torch.arange(7), 8, torch.float32)
    theirs = apply_rotary_pos_emb(x, x, cos.repeat(1, 1, 2)[:, 0][None], sin.repeat(1, 1, 2)[:, 0][None])[0]
    torch.testing.assert_close(rotate(x.transpose(1, 2), cos, sin).transpose(1, 2), theirs)


def test_first_values_reach_the_layers_above():
    model = switched({"value_residual": True})
    before = model.hidden(torch.tensor([[1, 2, 3]]))
    with torch.no_grad():
        model.blocks[1].attn.value_mix.zero_()
    assert not torch.allclose(before, model.hidden(torch.tensor([[1, 2, 3]])))


def test_odd_heads_do_not_turn():
    with pytest.raises(ValueError, match="needs an even head width, not n_embd / n_head = 3"):
        ModelConfig(vocab_size=300, n_embd=24, n_head=8, positions="rotary")


def test_gelu_in_bf16_is_as_near_as_pytorch_s():
    """Against fp32, over all bf16 but the tiniest; gradients are PyTorch's own."""
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    x = bits.view(torch.bfloat16)
    x = x[(x.abs() > 1e-30) & (x.abs() < 50)].requires_grad_()
    exact = torch.nn.functional.gelu(x.float(), approximate="tanh")
    theirs = torch.nn.functional.gelu(x, approximate="tanh")
    found = gelu_tanh(x)
    ours, peer = ((y.float() - exact).abs() for y in (found, theirs))
    assert (ours <= 0.01 * x.abs()).all() and ours.max() <= 1.5 * peer.max()
    torch.testing.assert_close(*(torch.autograd.grad(y, x, torch.ones_like(y))[0] for y in (found, theirs)))
