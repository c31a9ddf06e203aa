"""Muon against the singular value decomposition, PyTorch's own Muon, and AdamW."""

import math

import pytest
import torch

from gpt2.model.config import ModelConfig
from gpt2.model.heads import LanguageModel
from gpt2.model.transformer import GPT2
from gpt2.training.config import OptimizerConfig, TrainConfig
from gpt2.training.engine import TorchEngine
from gpt2.training.optimizer import (
    COEFFICIENTS,
    ITERATIONS,
    Muon,
    direction,
    muon_groups,
    optimizer,
    orthogonalise,
    parameter_groups,
)

SHAPE = {"vocab_size": 300, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}


def decomposed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Singular vectors, and the values that the quintic makes of the singular values of x / |x|, in fp64."""
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        s = a * s + b * s**3 + c * s**5
    return u, s, v


@pytest.mark.parametrize("shape", [(32, 32), (96, 24), (24, 96), (256, 256), (1024, 256), (7, 5), (1, 9)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_newton_schulz_makes_of_singular_values_what_the_quintic_does(shape, scale):
    x = scale * torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))
    u, s, v = decomposed(x)
    y = orthogonalise(x[None])[0].double()
    assert (y - u @ s.diag() @ v).norm() / s.norm() < 0.03  # bf16 has 8 bits


def test_a_matrix_of_any_spectrum_ends_near_an_orthogonal_one():
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(64, 48, generator=generator), full_matrices=False)
    y = orthogonalise((u @ torch.logspace(0, -1.9, 48).diag() @ v)[None])[0].float()
    values = torch.linalg.svdvals(y)
    assert values.min() > 0.65 and values.max() < 1.2
    assert not orthogonalise(torch.zeros(1, 4, 6)).any()


@pytest.mark.parametrize(
    ("shape", "parts"), [((64, 64), 1), ((192, 64), 3), ((256, 64), 1), ((64, 256), 1), ((344, 64), 2)]
)
def test_an_update_has_the_size_of_adamws_and_parts_are_matrices_of_their_own(shape, parts):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    update = direction(x, parts)
    assert update.float().square().mean().sqrt() == pytest.approx(0.2, rel=0.15)
    for part, whole in zip(x.chunk(parts), update.chunk(parts), strict=True):
        torch.testing.assert_close(direction(part), whole, rtol=0.02, atol=0.01)


def test_steps_as_pytorchs_muon_on_matrices_and_as_adamw_elsewhere():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        [torch.nn.Parameter(p.clone()) for p in start]
        for start in 2 * [list(torch.randn(2, 24, 40, generator=generator))]
    )
    groups = [{"params": ours[:1], "weight_decay": 0.1, "parts": 1}, {"params": ours[1:], "weight_decay": 0.1}]
    muon = Muon(groups, momentum=0.95, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    peers = [
        torch.optim.Muon(theirs[:1], lr=1e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(theirs[1:], lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8, fused=True),
    ]
    for _ in range(5):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=generator)
            q.grad = p.grad.clone()
        for stepped in (muon, *peers):
            stepped.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=5e-4)  # of a path of about 5 x 1e-2 x 0.2 x sqrt(40)
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("activation", ["gelu_tanh", "swiglu"])
def test_the_blocks_matrices_are_muons_and_the_rest_adamws(activation):
    model = GPT2(ModelConfig(**SHAPE, activation=activation, tied_head=False))
    names = {p: name for name, p in model.named_parameters()}
    groups = muon_groups(model, 0.1)
    parts = {names[p]: group.get("parts", 0) for group in groups for p in group["params"]}
    expected = {
        "attn.qkv.weight": 3,
        "attn.proj.weight": 1,
        "mlp.fc.weight": 1 + (activation == "swiglu"),
        "mlp.proj.weight": 1,
    }
    assert parts == {name: expected.get(name.split(".", 2)[-1], 0) for name in names.values()}
    decays = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {names[p]: g["weight_decay"] for g in parameter_groups(model, 0.1) for p in g["params"]}


def test_frozen_matrices_are_left_out():
    model = GPT2(ModelConfig(**SHAPE)).requires_grad_(False)
    model.blocks[1].mlp.proj.weight.requires_grad_(True)
    (group,) = muon_groups(model, 0.1)
    assert group["params"] == [model.blocks[1].mlp.proj.weight] and group["parts"] == 1


def engine() -> TorchEngine:
    torch.manual_seed(0)
    settings = OptimizerConfig(kind="muon", learning_rate=1e-2)
    config = TrainConfig(steps=9, batch_size=4, micro_batch_size=4, context=16, precision="fp32", optimizer=settings)
    return TorchEngine(LanguageModel(GPT2(ModelConfig(**SHAPE))), config, "cpu")


def learn(engine: TorchEngine, first: int, last: int) -> list[float]:
    losses = []
    for step in range(first, last):
        ids = torch.randint(0, 300, (4, 17), generator=torch.Generator().manual_seed(step)).cummax(1).values
        losses.append(float(engine.backward({"ids": ids[:, :-1], "targets": ids[:, 1:]})))
        engine.update(1e-2)
    return losses


def test_a_resumed_training_is_bitwise_the_unbroken_one(tmp_path):
    unbroken, broken = engine(), engine()
    expected = learn(unbroken, 0, 9)
    assert expected[-1] < expected[0] - 0.1
    learn(broken, 0, 4)
    broken.snapshot()(tmp_path)
    resumed = engine()
    resumed.load(tmp_path)
    assert learn(resumed, 4, 9) == expected[4:]
    assert all(torch.equal(a, b) for a, b in zip(unbroken.weights().values(), resumed.weights().values(), strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_step_changes_nothing(tmp_path, value):
    clean, poisoned = engine(), engine()
    learn(clean, 0, 5)
    learn(poisoned, 0, 3)
    poisoned.backward({"ids": torch.zeros(4, 16, dtype=torch.long), "targets": torch.ones(4, 16, dtype=torch.long)})
    poisoned.module.model.wpe.weight.grad[0, 0] = value
    assert not math.isfinite(poisoned.update(1e-2))
    learn(poisoned, 3, 5)
    assert all(torch.equal(a, b) for a, b in zip(clean.weights().values(), poisoned.weights().values(), strict=True))


def test_the_kind_decides():
    model = GPT2(ModelConfig(**SHAPE))
    assert type(optimizer(model, OptimizerConfig())) is torch.optim.AdamW
    assert type(optimizer(model, OptimizerConfig(kind="muon"))) is Muon
