"""The gradient of both engines, of any number of micro-batches at every ZeRO stage, in bf16 beside fp32."""

import itertools
from pathlib import Path

import pytest
import torch

from cluster.config import ClusterConfig
from cluster.engine.fragments import Saved
from gpt2.training.config import OptimizerConfig, TrainConfig
from gpt2.training.engine import trained
from tests.cluster.engines import MODEL, save
from tests.cluster.ranks import run_ranks

STAGES = [(stage, False) for stage in range(4)]
PLACES = [*STAGES, (1, True), (2, True), (3, True)]
"""ZeRO stages, and whether the optimizer is on the CPU, as stage 0 can't."""


class Ones(torch.nn.Module):
    """Its gradient is 1, and another parameter has none."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = (torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs.to(self.used.dtype) @ self.used).sum()


def module_of(kind: str) -> torch.nn.Module:
    from gpt2.model.heads import LanguageModel
    from gpt2.model.transformer import GPT2

    return Ones() if kind == "ones" else LanguageModel(GPT2(MODEL, seed=0))


def batches(kind: str, count: int) -> list[dict[str, torch.Tensor]]:
    if kind == "ones":
        return [{"inputs": torch.ones(1, 8)}] * count
    ids = torch.randint(0, 257, (count, 1, 17), generator=torch.Generator().manual_seed(0)).cummax(-1).values
    return [{"ids": row[:, :-1], "targets": row[:, 1:]} for row in ids]


def settings(count: int, precision: str) -> TrainConfig:
    """One step on `count` samples whose first moment is half the gradient."""
    optimizer = OptimizerConfig(clip=0, beta1=0.5, weight_decay=0)
    return TrainConfig(
        steps=1, batch_size=count, micro_batch_size=1, context=16, precision=precision, optimizer=optimizer
    )


def plain(kind: str, count: int, precision: str) -> dict[str, torch.Tensor]:
    """The gradients of one process of plain PyTorch by parameter, and their norm."""
    from gpt2.training.engine import TorchEngine

    engine = TorchEngine(module_of(kind), settings(count, precision), "cpu")
    for batch in batches(kind, count):
        engine.backward(batch)
    norm, state = engine.update(0.0), engine.optimizer.state
    found = {name: 2 * state[p]["exp_avg"].flatten() for name, p in trained(engine.module) if p in state}
    return found | {"norm": torch.tensor([norm])}


def on_ranks(
    folder: Path, kind: str, counts: tuple[int, ...], places: list[tuple]
) -> dict[tuple, dict[str, torch.Tensor]]:
    """The same of DeepSpeed by place and number of micro-batches of all ranks."""
    from cluster.engine.deepspeed_engine import DeepSpeedEngine

    told = {}
    for count, (stage, offload) in itertools.product(counts, places):
        engine = DeepSpeedEngine(
            module_of(kind), settings(count, "bf16"), ClusterConfig(zero_stage=stage, offload_optimizer=offload)
        )
        sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in trained(engine.engine.module)}
        for batch in batches(kind, count)[engine.rank :: engine.world_size]:
            engine.backward(batch)
        norm = torch.tensor([engine.update(0.0)])
        save(engine, place := folder / f"{count}-{stage}-{offload}")
        saved = Saved(place)
        told[count, stage, offload] = {n: 2 * saved.full("exp_avg", n, size) for n, size in sizes.items()} | {
            "norm": norm
        }
    return told


@pytest.mark.parametrize(("size", "places"), [(1, STAGES), pytest.param(2, PLACES, marks=pytest.mark.slow)])
def test_512_equal_micro_batches_are_one(tmp_path, size, places):
    """In bf16 they would add up to a half."""
    told = run_ranks(size, on_ranks, tmp_path, "ones", (512,), places)[0]
    assert [key[1:] for key in told] == places
    for found in [*told.values(), plain("ones", 512, "bf16")]:
        assert found["used"].tolist() == [1] * 64
        assert float(found["norm"]) == 8
        assert not found.get("unused", torch.zeros(1)).any()


@pytest.mark.parametrize(
    ("size", "counts", "places"),
    [(2, (8,), STAGES), *(pytest.param(s, (4, 64, 512), PLACES, marks=pytest.mark.slow) for s in (1, 2, 4))],
)
def test_every_parameter_of_the_model(tmp_path, size, counts, places):
    told = run_ranks(size, on_ranks, tmp_path, "model", counts, places, timeout=3000)[0]
    for count in counts:
        exact = plain("model", count, "fp32")
        engines = {key: found for key, found in told.items() if key[0] == count}
        assert len(engines) == len(places)
        for place, found in (engines | {"plain": plain("model", count, "bf16")}).items():
            off = {name: float((found[name] - g).norm() / g.norm()) for name, g in exact.items()}
            print(size, count, place, "worst", max(off.values()))
            assert max(off.values()) < 0.02, (place, max(off, key=off.__getitem__))
