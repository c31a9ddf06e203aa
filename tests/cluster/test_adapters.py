"""Adapters and a student under ZeRO: every stage learns what plain PyTorch learns, and its state goes anywhere."""

from pathlib import Path

import pytest
import torch

from cluster.fragments import Saved
from gpt2.config import AdaptationConfig, OptimizerConfig, TrainConfig
from tests.cluster.engines import MODEL, save
from tests.cluster.ranks import run_ranks

KINDS = {
    "lora": AdaptationConfig(kind="lora", rank=4, dropout=0.0),
    "prefix": AdaptationConfig(kind="prefix", prefix_length=3),
    "head": AdaptationConfig(kind="head"),
    "student": None,
}
HALF, LAST = 3, 6


def module_of(kind: str):
    from gpt2.adapters import adapt
    from gpt2.heads import Classifier
    from gpt2.model import GPT2

    torch.manual_seed(0)
    model = GPT2(MODEL)
    module = Classifier(model, 3, dropout=0.0)
    if adaptation := KINDS[kind]:
        adapt(model, adaptation)
        return module
    from gpt2.distillation import Distilled, student
    from gpt2.task import DistilConfig

    shape = {**MODEL.model_dump(exclude={"vocab_size"}), "n_layer": 1}
    config = DistilConfig(teacher="a", student=shape)
    return Distilled(Classifier(student(model, config), 3, dropout=0.0), module, config)


def settings(precision: str) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=1e-2)
    return TrainConfig(
        steps=LAST, batch_size=8, micro_batch_size=2, context=16, precision=precision, optimizer=optimizer
    )


def learn(engine, first: int, last: int) -> list[float]:
    """Losses of made-up texts of unequal length, whose label is in them."""
    losses = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(3, (8,), generator=generator)
        ids = torch.randint(50, (8, 12), generator=generator) * 3 + labels[:, None]
        lengths = torch.randint(4, 13, (8,), generator=generator)
        total = torch.zeros(())
        for start in range(2 * engine.rank, 8, 2 * engine.world_size):
            part = slice(start, start + 2)
            total += engine.backward({"ids": ids[part], "lengths": lengths[part], "labels": labels[part]})
        losses.append(float(engine.sum(total)) / 4)
        engine.update(1e-2)
    return losses


def on_ranks(folder: Path, kinds, stages, precision: str) -> dict[tuple, tuple]:
    """(losses, losses of the second half from the state of another stage, names in weights()) by kind and stage."""
    from cluster.config import ClusterConfig
    from cluster.engine import DeepSpeedEngine

    told = {}
    for kind in kinds:
        for stage in stages:
            engine = DeepSpeedEngine(module_of(kind), settings(precision), ClusterConfig(zero_stage=stage))
            losses = learn(engine, 0, HALF)
            save(engine, folder / f"{kind}-{stage}")
            losses += learn(engine, HALF, LAST)
            engine.load(folder / f"{kind}-{stages[0]}")
            told[kind, stage] = losses, learn(engine, HALF, LAST), engine.weights()
    return told


@pytest.mark.parametrize(
    ("size", "stages", "precision", "tolerance"),
    [
        (2, (2, 3, 0, 1), "fp32", 1e-4),
        pytest.param(2, (2, 3, 0, 1), "bf16", 3e-2, marks=pytest.mark.slow),
        pytest.param(1, (2, 3, 0, 1), "fp32", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_zero_trains_adapters_alone(tmp_path, size, stages, precision, tolerance):
    from gpt2.engine import TorchEngine, trained

    told = run_ranks(size, on_ranks, tmp_path, tuple(KINDS), stages, precision)[0]
    for (kind, stage), (losses, again, found) in told.items():
        module = module_of(kind)
        names = [name for name, _ in trained(module)]
        plain = learn(TorchEngine(module, settings(precision), "cpu"), 0, LAST)
        assert losses == pytest.approx(plain, rel=tolerance), (kind, stage)
        assert again == pytest.approx(plain[HALF:], rel=tolerance), (kind, stage)
        assert Saved(tmp_path / f"{kind}-{stage}").names() == sorted(names)
        assert sorted(found) == sorted(names)
        if precision == "fp32":
            for name, parameter in trained(module):
                torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-3, atol=1e-4)
