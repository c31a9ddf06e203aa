"""ZeRO changes nothing: every stage, number of ranks, offload and precision learns what one plain process learns."""

import itertools

import pytest
import torch

from gpt2.training.config import OptimizerConfig, TrainConfig
from tests.cluster.engines import MODEL, engine_of, steps
from tests.cluster.ranks import run_ranks

TOLERANCE = {("adamw", "fp32"): 1e-5, ("adamw", "bf16"): 1e-2, ("muon", "fp32"): 1e-3, ("muon", "bf16"): 1e-2}
"""Largest relative difference of any loss. bf16, in which Muon orthogonalises at any precision: other sums of rounded
numbers, not another algorithm."""


def cells(stages, precisions, last: int, kind: str = "adamw") -> list[tuple]:
    """(stage, precision, offload, losses)."""
    told = []
    for stage, precision, offload in itertools.product(stages, precisions, (False, True)):
        if offload and stage == 0:
            continue
        options = {"offload_optimizer": offload, "offload_parameters": offload and stage == 3, "kind": kind}
        told.append((stage, precision, offload, steps(engine_of(stage, precision, **options), 0, last)))
    return told


def plain(precision: str, last: int, kind: str) -> list[float]:
    """Losses of one process of plain PyTorch."""
    from gpt2.model.heads import LanguageModel
    from gpt2.model.transformer import GPT2
    from gpt2.training.engine import TorchEngine

    torch.manual_seed(0)
    config = TrainConfig(
        steps=last,
        batch_size=8,
        micro_batch_size=2,
        context=16,
        precision=precision,
        optimizer=OptimizerConfig(kind=kind, learning_rate=1e-2),
    )
    return steps(TorchEngine(LanguageModel(GPT2(MODEL)), config, "cpu"), 0, last)


@pytest.mark.parametrize(
    ("sizes", "stages", "precisions", "last", "kind"),
    [
        ((2,), (2, 3), ("fp32",), 6, "adamw"),
        pytest.param((1, 2, 4), (0, 1, 2, 3), ("fp32", "bf16"), 20, "adamw", marks=pytest.mark.chaos),
        pytest.param((1, 2, 4), (0, 1, 2, 3), ("fp32", "bf16"), 20, "muon", marks=pytest.mark.chaos),
    ],
)
def test_every_placement_learns_the_same(sizes, stages, precisions, last, kind):
    expected = {precision: plain(precision, last, kind) for precision in precisions}
    print("\n| ranks | ZeRO | offload | precision | last loss | largest relative difference |")
    print("|---|---|---|---|---|---|")
    beyond = []
    for size in sizes:
        for stage, precision, offload, losses in run_ranks(size, cells, stages, precisions, last, kind)[0]:
            off = max(abs(a - b) / b for a, b in zip(losses, expected[precision], strict=True))
            print(f"| {size} | {stage} | {'yes' if offload else 'no'} | {precision} | {losses[-1]:.5f} | {off:.1e} |")
            if not off <= TOLERANCE[kind, precision]:
                beyond.append((size, stage, precision, offload))
    assert not beyond


def test_half_precision_steps_alike_at_stages_0_and_1():
    """At stage 0 DeepSpeed steps once on no gradients while it is made: that must leave no trace."""
    told = run_ranks(1, cells, (0, 1), ("bf16",), 4)[0]
    (_, _, _, zero), (_, _, _, one), _ = told
    assert zero == pytest.approx(one, rel=1e-4)
