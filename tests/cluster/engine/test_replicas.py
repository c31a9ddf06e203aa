"""A flipped bit in one worker's copy of the parameters is found, and the worker named."""

import re

import pytest
import torch

from cluster.engine.guard import sum_bits
from tests.cluster.engines import backward, engine_of, steps
from tests.cluster.ranks import run_ranks


def flipped(stages, precision: str, victim: int) -> list[str]:
    """What each stage's engine says of a mantissa bit flipped on one rank, "" where it notices nothing."""
    messages = []
    for stage in stages:
        engine = engine_of(stage, precision)
        steps(engine, 0, 2)
        backward(engine, 2)
        if engine.rank == victim:
            # ZeRO 3 holds a piece of each parameter; the others hold all.
            parameter = max(engine.engine.module.parameters(), key=lambda p: getattr(p, "ds_numel", p.numel()))
            held = parameter.ds_tensor if stage == 3 else parameter.data
            bits = held.detach().view(-1).view(torch.int16 if held.element_size() == 2 else torch.int32)
            bits[5] ^= 4
        try:
            engine.update(1e-2)
            messages.append("")
        except RuntimeError as error:
            messages.append(str(error))
    return messages


@pytest.mark.parametrize(
    ("stages", "precision", "size", "victim"),
    [
        ((0, 2), "bf16", 2, 1),
        pytest.param((0, 1, 2, 3), "bf16", 2, 0, marks=pytest.mark.chaos),
        pytest.param((0, 1, 2, 3), "fp32", 4, 2, marks=pytest.mark.chaos),
    ],
)
def test_flipped_bit_is_found_and_the_worker_named(stages, precision, size, victim):
    for messages in run_ranks(size, flipped, stages, precision, victim):
        for stage, message in zip(stages, messages, strict=True):
            assert re.search(rf"worker {victim}: .*differ", message), (stage, message)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("offset", range(5))
@pytest.mark.parametrize("length", [0, 1, 7, 8])
def test_a_sum_of_bits_depends_on_the_values_only(dtype, offset, length):
    values = torch.randn(16, generator=torch.Generator().manual_seed(length)).to(dtype)
    piece = values[offset : offset + length]
    assert sum_bits([piece]) == sum_bits([piece.clone()])
