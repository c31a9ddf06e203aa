"""What is seen inside a model, against `transformers`' own account, plain autograd and sums that must come out."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2.analysis.interpret import (
    direct_effects,
    gradient_norms,
    lens,
    losses_without,
    readers,
    similarity,
    stream_gradients,
    trace,
)
from gpt2.model.config import ModelConfig
from gpt2.model.heads import LanguageModel
from gpt2.model.transformer import GPT2, attend_rows
from gpt2.weights import huggingface

SMALL = {"vocab_size": 300, "n_positions": 16, "n_embd": 32, "n_layer": 3, "n_head": 4}
SWITCHES = st.fixed_dictionaries(
    {
        "positions": st.sampled_from(["learned", "rotary"]),
        "norm": st.sampled_from(["layer", "rms", "none"]),
        "norm_placement": st.sampled_from(["pre", "post"]),
        "residual": st.booleans(),
        "activation": st.sampled_from(["gelu_tanh", "gelu", "relu", "relu2", "tanh", "swiglu"]),
        "bias": st.booleans(),
        "qk_norm": st.booleans(),
        "value_residual": st.booleans(),
        "tied_head": st.booleans(),
        "dropout": st.sampled_from([0.0, 0.3]),
    }
)


def made(seed: int = 0, **changes) -> GPT2:
    """A small model in training mode with random biases and gains."""
    model = GPT2(ModelConfig.model_validate({**SMALL, **changes}), seed=seed).train()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def drawn(seed: int = 0, B: int = 2, T: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids, targets = torch.randint(300, (2, B, T), generator=generator).unbind()
    targets[0, 0] = -100
    return ids, targets


def test_equals_transformers(tmp_path):
    """Attention maps, the stream after each block, and logits."""
    c = GPT2Config(
        vocab_size=300, n_positions=16, n_embd=32, n_layer=3, n_head=4, initializer_range=0.3,
        bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    theirs = GPT2LMHeadModel(c).eval()
    theirs.save_pretrained(tmp_path)
    ids, _ = drawn()
    seen = trace(huggingface.load(tmp_path), ids)
    with torch.no_grad():
        expected = theirs(ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(seen.attention, torch.stack(expected.attentions), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(seen.logits, expected.logits, rtol=1e-4, atol=1e-4)
    *states, normalised = expected.hidden_states  # the last of theirs comes after the final norm
    torch.testing.assert_close(seen.stream[:-1:2], torch.stack(states), rtol=1e-4, atol=1e-5)
    last = theirs.transformer.ln_f(seen.stream[-1])
    torch.testing.assert_close(last, normalised, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(SWITCHES, st.integers(0, 1000))
def test_every_architecture(changes, seed):
    """The trace is of the pass that the model makes, whatever the switches; the lens ends in its logits."""
    model, (ids, _) = made(seed, **changes), drawn(seed)
    seen = trace(model, ids)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not seen.logits.requires_grad and not seen.stream.requires_grad
    model.eval()
    expected = model.logits(model.hidden(ids))
    torch.testing.assert_close(seen.logits, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(lens(model, seen.stream)[-1], seen.logits)
    assert seen.attention.shape == (3, 2, 4, 9, 9)
    torch.testing.assert_close(seen.attention.sum(-1), torch.ones(3, 2, 4, 9))
    assert not seen.attention.triu(1).any()
    norms = [n for b in model.blocks for n in (b.ln_1, b.ln_2)]
    with torch.no_grad():
        for i, norm in enumerate(norms):
            before = seen.stream[i] if model.config.residual else 0
            after = before + seen.branches[i]
            if model.config.norm_placement == "post":
                after = norm(after)
            torch.testing.assert_close(seen.stream[i + 1], after, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["layer", "rms", "none"]), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_effects_sum_to_the_logits(norm, bias, tied, seed):
    model, (ids, _) = made(seed, norm=norm, bias=bias, tied_head=tied), drawn(seed)
    seen = trace(model, ids)
    effects = direct_effects(model, seen, ids)
    centred = seen.logits - seen.logits.mean(-1, keepdim=True)
    assert effects.shape == (8, 2, 9)
    torch.testing.assert_close(effects.sum(0), centred.gather(-1, ids[..., None])[..., 0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("changes", [{"residual": False}, {"norm_placement": "post"}])
def test_effects_need_a_sum(changes):
    model, (ids, _) = made(**changes), drawn()
    with pytest.raises(ValueError, match="not a sum over branches; take a model with residual=True"):
        direct_effects(model, trace(model, ids), ids)


def test_attention_maps_are_what_heads_use():
    """The last attention's output, put together by hand from its map and the values."""
    model, (ids, _) = made(), drawn()
    seen, attention = trace(model, ids), model.blocks[-1].attn
    with torch.no_grad():
        v = attention.qkv(model.blocks[-1].ln_1(seen.stream[-3])).chunk(3, -1)[2].unflatten(-1, (4, -1))
        mixed = torch.einsum("bhts,bshd->bthd", seen.attention[-1], v).flatten(-2)
        torch.testing.assert_close(attention.proj(mixed), seen.branches[-2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [[], [(0, 0)], [(1, 3)], [(0, 1), (0, 3), (2, 2)]])
def test_silent_heads_are_those_without_weights(heads):
    """The same as zeros in the rows of the output matrices that read them; each text has its own mean."""
    model, (ids, targets) = made().eval(), drawn()
    losses = losses_without(model, ids, targets, heads)
    for layer, head in heads:
        model.blocks[layer].attn.proj.weight.data[:, 8 * head : 8 * head + 8] = 0
    for row, loss in enumerate(losses.tolist()):
        assert loss == pytest.approx(model.loss(ids[row : row + 1], targets[row : row + 1]).item(), abs=1e-5)


@pytest.mark.parametrize("head", [(3, 0), (0, 4), (-1, 0)])
def test_a_head_that_is_not_there(head):
    with pytest.raises(ValueError, match=r"of 3 layers with 4 heads each; count from 0"):
        losses_without(made(), *drawn(), [head])


@pytest.mark.parametrize("changes", [{}, {"residual": False}, {"norm_placement": "post", "norm": "rms"}])
def test_stream_gradients_are_slopes(changes):
    """Against finite differences: how the loss moves when a state moves along its gradient's direction."""
    model, (ids, targets) = made(**changes).double().eval(), drawn()
    norms = stream_gradients(model, ids, targets)
    assert norms.shape == (7,) and all(p.grad is None for p in model.parameters())
    for i, reader in enumerate(readers(model)):
        held = {}

        def keep(_, args, held=held):
            held["state"] = args[0]

        handle = reader.register_forward_pre_hook(keep)
        loss = model.loss(ids, targets)
        handle.remove()
        gradient = torch.autograd.grad(loss, held["state"])[0]

        step = 1e-4 * gradient / gradient.norm()
        moved = []
        for sign in (1, -1):
            where = shift(model, i, sign * step)
            with torch.no_grad():
                moved.append(F.cross_entropy(model.logits(where(ids)).flatten(0, 1), targets.flatten()).item())
        assert (moved[0] - moved[1]) / 2e-4 == pytest.approx(norms[i].item(), rel=1e-3)


def shift(model, i, by):
    """The model with `by` added to state i."""
    block, second = divmod(i, 2)

    def hidden(ids):
        x = model.wte(ids) + model.wpe(torch.arange(ids.shape[1]))
        for number, b in enumerate(model.blocks):
            for half, (norm, branch) in enumerate(((b.ln_1, b.attn), (b.ln_2, b.mlp))):
                if (number, half) == (block, second):
                    x = x + by
                read = norm(x) if b.pre else x
                if half == 0:
                    y, _ = branch(read, attend_rows, None, None)
                else:
                    y = branch(read)
                x = x + y if b.residual else y
                x = x if b.pre else norm(x)
        if block == len(model.blocks):
            x = x + by
        return model.ln_f(x)

    return hidden


def test_gradient_norms():
    model, (ids, targets) = made(tied_head=False), drawn()
    module = LanguageModel(model)
    with pytest.raises(ValueError, match=r"no gradients; call backward\(\) first"):
        gradient_norms(module)
    module(ids, targets).backward()
    norms = gradient_norms(module)
    assert list(norms) == ["embeddings", "block 1", "block 2", "block 3", "final norm", "head"]
    total = torch.nn.utils.clip_grad_norm_(module.parameters(), torch.inf).item()
    assert sum(n * n for n in norms.values()) ** 0.5 == pytest.approx(total, rel=1e-5)
    assert norms["head"] == pytest.approx(model.head.weight.grad.norm().item(), rel=1e-6)


def test_no_norm_and_rotary_have_fewer_parts():
    model, (ids, targets) = made(norm="none", positions="rotary"), drawn()
    model.loss(ids, targets).backward()
    assert list(gradient_norms(model)) == ["embeddings", "block 1", "block 2", "block 3"]


def test_similarity_against_every_pair():
    stream = torch.randn(4, 2, 5, 8)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    expected = torch.stack([F.cosine_similarity(stream[..., i, :], stream[..., j, :], dim=-1) for i, j in pairs])
    torch.testing.assert_close(similarity(stream).float(), expected.mean((0, 2)), rtol=1e-4, atol=1e-5)
    assert similarity(torch.ones(1, 3, 8)).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="a text of 1 token has no two positions"):
        similarity(torch.ones(1, 1, 8))
