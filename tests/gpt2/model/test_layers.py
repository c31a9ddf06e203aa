"""Layers in bf16 on a CPU: values as PyTorch has them, gradients as exact as fp32's once rounded."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gpt2.model.config import ModelConfig
from gpt2.model.layers import Embedding, LayerNorm, take
from gpt2.model.transformer import Block, attend_rows

ROWS = 4096


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact.float()).norm() / exact.float().norm())


def test_many_equal_rows_add_up(threads):
    """PyTorch's own layer norm and embedding stop at 256 a thread."""
    norm = LayerNorm(8).bfloat16()
    norm(torch.randn(ROWS, 8).bfloat16()).sum().backward()
    assert norm.bias.grad.tolist() == [ROWS] * 8
    table = torch.zeros(3, 8, dtype=torch.bfloat16, requires_grad=True)
    take(table, torch.ones(ROWS // 8, 8, dtype=torch.long)).sum().backward()
    assert table.grad.tolist() == [[0] * 8, [ROWS] * 8, [0] * 8]


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(threads, bias):
    generator = torch.Generator().manual_seed(0)
    x, dy = ((torch.randn(16, ROWS // 16, 32, generator=generator) + 0.1).bfloat16() for _ in range(2))
    ours, theirs, exact = (
        LayerNorm(32, 1e-3, bias=bias),
        nn.LayerNorm(32, 1e-3, bias=bias),
        nn.LayerNorm(32, 1e-3, bias=bias),
    )
    results = []
    for module, dtype in ((ours, torch.bfloat16), (theirs, torch.bfloat16), (exact, torch.float32)):
        with torch.no_grad():
            module.weight.copy_(torch.linspace(0.5, 2, 32).bfloat16())
        read = x.to(dtype, copy=True).requires_grad_()
        y = module.to(dtype)(read)
        y.backward(dy.to(dtype))
        results.append((y, read.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert off(ours.weight.grad, exact.weight.grad) < 0.005
    assert not bias or off(ours.bias.grad, exact.bias.grad) < 0.005


def test_frozen_parameters_and_inputs_have_no_gradient():
    norm = LayerNorm(8).bfloat16()
    norm.weight.requires_grad_(False)
    norm(torch.randn(4, 8).bfloat16()).sum().backward()
    assert norm.weight.grad is None and norm.bias.grad.tolist() == [4] * 8


def test_embedding():
    generator = torch.Generator().manual_seed(0)
    ids, dy = torch.randint(5, (64, 64), generator=generator), torch.randn(64, 64, 16, generator=generator).bfloat16()
    embedding = Embedding(9, 16)
    exact = embedding.weight.detach().bfloat16().float().requires_grad_()
    F.embedding(ids, exact).backward(dy.float())
    found = embedding.bfloat16()(ids)
    found.backward(dy)
    assert torch.equal(found.float(), F.embedding(ids, exact))
    assert off(embedding.weight.grad, exact.grad) < 0.005
    with pytest.raises(IndexError):
        embedding(torch.tensor([9]))


@pytest.mark.slow
def test_a_compiled_block():
    """As the presets train it: gains and biases of 4,096 rows beside fp32 that is not compiled."""
    config = ModelConfig(n_layer=1, n_head=2, n_embd=32, n_positions=64, vocab_size=257)
    generator = torch.Generator().manual_seed(0)
    x, dy = ((torch.randn(ROWS // 64, 64, 32, generator=generator) + 0.1).bfloat16() for _ in range(2))
    torch.manual_seed(0)
    exact, ours = Block(config).bfloat16().float(), Block(config)
    ours.load_state_dict(exact.state_dict())
    ours.bfloat16().compile()
    exact(x.float(), attend_rows)[0].backward(dy.float())
    ours(x, attend_rows)[0].backward(dy)
    for (name, p), q in zip(ours.named_parameters(), exact.parameters(), strict=True):
        assert off(p.grad, q.grad) < 0.02, name
