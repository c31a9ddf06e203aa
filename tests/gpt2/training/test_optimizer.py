"""Parameter groups and learning-rate schedules."""

import math

import pytest

from gpt2.model.config import ModelConfig
from gpt2.model.transformer import GPT2
from gpt2.training.config import OptimizerConfig
from gpt2.training.optimizer import learning_rate, optimizer, parameter_groups, set_rate


def test_matrices_decay_and_nothing_else():
    model = GPT2(ModelConfig(vocab_size=300, n_positions=8, n_embd=16, n_layer=2, n_head=2))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in (decayed, plain))
    assert decayed | plain == set(names.values())
    assert not decayed & plain
    assert "wte.weight" in decayed and "blocks.1.mlp.proj.weight" in decayed
    assert {"wpe.weight", "ln_f.weight", "blocks.0.ln_1.weight", "blocks.0.attn.qkv.bias"} <= plain
    assert all("wpe" in n or "ln_" in n or n.endswith("bias") for n in plain)


def test_frozen_parameters_are_left_out():
    model = GPT2(ModelConfig(vocab_size=300, n_positions=8, n_embd=16, n_layer=1, n_head=2)).requires_grad_(False)
    model.ln_f.weight.requires_grad_(True)
    (group,) = parameter_groups(model, 0.1)
    assert group["params"] == [model.ln_f.weight]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_embeddings_have_a_rate_of_their_own(kind):
    model = GPT2(ModelConfig(vocab_size=300, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    made = optimizer(model, OptimizerConfig(kind=kind, embedding_rate=3))
    set_rate(made, 0.01)
    rates = {p: group["lr"] for group in made.param_groups for p in group["params"]}
    assert rates == {p: 0.03 if p is model.wte.weight else 0.01 for p in model.parameters()}


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_warmup_is_linear_and_reaches_the_peak(schedule):
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=4, schedule=schedule)
    rates = [learning_rate(step, 100, config) for step in range(5)]
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])


def test_cosine_by_hand():
    config = OptimizerConfig(learning_rate=1.0, final_ratio=0.2, warmup_steps=10)
    assert learning_rate(10, 111, config) == pytest.approx(1.0)
    assert learning_rate(60, 111, config) == pytest.approx(0.6)
    assert learning_rate(35, 111, config) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate(110, 111, config) == pytest.approx(0.2)
    assert learning_rate(500, 111, config) == pytest.approx(0.2)


def test_wsd_by_hand():
    config = OptimizerConfig(learning_rate=1.0, final_ratio=0.0, warmup_steps=10, schedule="wsd", decay_share=0.2)
    rates = [learning_rate(step, 101, config) for step in (10, 50, 80, 85, 90, 100, 200)]
    assert rates == pytest.approx([1.0, 1.0, 1.0, 0.75, 0.5, 0.0, 0.0])


def test_wsd_that_decays_all_the_way_has_no_jump_after_warmup():
    config = OptimizerConfig(learning_rate=1.0, final_ratio=0.0, warmup_steps=50, schedule="wsd", decay_share=1.0)
    rates = [learning_rate(step, 101, config) for step in range(101)]
    assert rates[49:52] == pytest.approx([1.0, 1.0, 0.98])
    assert rates[-1] == 0


def test_constant():
    config = OptimizerConfig(learning_rate=0.5, schedule="constant")
    assert {learning_rate(step, 10, config) for step in range(20)} == {0.5}


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (2, 2), (7, 3)])
def test_every_rate_is_within_bounds(schedule, total, warmup):
    config = OptimizerConfig(learning_rate=0.3, warmup_steps=warmup, schedule=schedule)
    assert all(0 < learning_rate(step, total, config) < 0.3 + 1e-12 for step in range(total + 3))
