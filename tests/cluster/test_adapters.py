"""Adapters and a student under ZeRO: every stage learns what plain PyTorch learns, and its state goes anywhere.

Adapters of both tasks: under a classifier, and under a recommender, which gives the model embeddings instead of ids.
"""

from pathlib import Path

import pytest
import torch

from cluster.engine.fragments import Saved
from gpt2.model.config import AdaptationConfig
from gpt2.training.config import OptimizerConfig, TrainConfig
from tests.cluster.engines import MODEL, save
from tests.cluster.ranks import run_ranks

KINDS = {
    "lora": AdaptationConfig(kind="lora", rank=4, dropout=0.0),
    "prefix": AdaptationConfig(kind="prefix", prefix_length=3),
    "head": AdaptationConfig(kind="head"),
    "student": None,
}
RECOMMENDER = {f"recommender-{kind}": KINDS[kind] for kind in ("lora", "prefix", "head")}
ITEMS = 9
STAGES = (2, 3, 0, 1)
HALF, LAST = 3, 6


def module_of(kind: str):
    from gpt2.model.adapters import adapt
    from gpt2.model.heads import Classifier
    from gpt2.model.transformer import GPT2
    from gpt2.tasks.recommendation.dataset import Recommender

    torch.manual_seed(0)
    model = GPT2(MODEL)
    if kind in RECOMMENDER:
        texts = [[10 * item, 3, 200 + item][: 2 + item % 2] for item in range(ITEMS)]
        module = Recommender(model, texts, torch.linspace(-3, -1, ITEMS), width=16)
    else:
        module = Classifier(model, 3, dropout=0.0)
    if adaptation := (KINDS | RECOMMENDER)[kind]:
        adapt(model, adaptation)
        return module
    from gpt2.training.config import DistilConfig
    from gpt2.training.distillation import Distilled, student

    shape = {**MODEL.model_dump(exclude={"vocab_size"}), "n_layer": 1}
    config = DistilConfig(teacher="a", student=shape)
    return Distilled(Classifier(student(model, config), 3, dropout=0.0), module, config)


def settings(precision: str) -> TrainConfig:
    optimizer = OptimizerConfig(learning_rate=1e-2)
    return TrainConfig(
        steps=LAST, batch_size=8, micro_batch_size=2, context=16, precision=precision, optimizer=optimizer
    )


def batch_of(kind: str, step: int) -> dict[str, torch.Tensor]:
    """Texts of unequal length, whose label is in them; or histories, each item one or two after the one before."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(3, (8,), generator=generator)
    ids = torch.randint(50, (8, 12), generator=generator) * 3 + labels[:, None]
    lengths = torch.randint(4, 13, (8,), generator=generator)
    if kind not in RECOMMENDER:
        return {"ids": ids, "lengths": lengths, "labels": labels}
    chosen = torch.randint(1, 3, (8, 13), generator=generator).cumsum(1) % ITEMS
    return {"history": chosen[:, :-1], "following": chosen[:, 1:].where(torch.arange(12) < lengths[:, None], -1)}


def learn(engine, kind: str, first: int, last: int) -> list[float]:
    """The losses of those steps."""
    losses = []
    for step in range(first, last):
        batch, total = batch_of(kind, step), torch.zeros(())
        for start in range(2 * engine.rank, 8, 2 * engine.world_size):
            total += engine.backward({name: value[start : start + 2] for name, value in batch.items()})
        losses.append(float(engine.sum(total)) / 4)
        engine.update(1e-2)
    return losses


def on_ranks(folder: Path, work: dict[str, tuple[int, ...]], precision: str) -> dict[tuple, tuple]:
    """(losses, losses of the second half from the state of another stage, names in weights()) by kind and stage."""
    from cluster.config import ClusterConfig
    from cluster.engine.deepspeed_engine import DeepSpeedEngine

    told = {}
    for kind, stages in work.items():
        for stage in stages:
            engine = DeepSpeedEngine(module_of(kind), settings(precision), ClusterConfig(zero_stage=stage))
            losses = learn(engine, kind, 0, HALF)
            save(engine, folder / f"{kind}-{stage}")
            losses += learn(engine, kind, HALF, LAST)
            engine.load(folder / f"{kind}-{stages[0]}")
            told[kind, stage] = losses, learn(engine, kind, HALF, LAST), engine.weights()
    return told


@pytest.mark.parametrize(
    ("size", "work", "precision", "tolerance"),
    [
        (2, dict.fromkeys(KINDS, STAGES) | {"recommender-lora": (2, 3)}, "fp32", 1e-4),
        pytest.param(2, dict.fromkeys(RECOMMENDER, STAGES), "fp32", 1e-4, marks=pytest.mark.slow),
        pytest.param(2, dict.fromkeys(KINDS | RECOMMENDER, STAGES), "bf16", 3e-2, marks=pytest.mark.slow),
        pytest.param(1, dict.fromkeys(KINDS | RECOMMENDER, STAGES), "fp32", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_zero_trains_adapters_alone(tmp_path, size, work, precision, tolerance):
    from gpt2.training.engine import TorchEngine, trained

    told = run_ranks(size, on_ranks, tmp_path, work, precision)[0]
    assert list(told) == [(kind, stage) for kind, stages in work.items() for stage in stages]
    for (kind, stage), (losses, again, found) in told.items():
        module = module_of(kind)
        names = [name for name, _ in trained(module)]
        plain = learn(TorchEngine(module, settings(precision), "cpu"), kind, 0, LAST)
        assert losses == pytest.approx(plain, rel=tolerance), (kind, stage)
        assert again == pytest.approx(plain[HALF:], rel=tolerance), (kind, stage)
        assert Saved(tmp_path / f"{kind}-{stage}").names() == sorted(names)
        assert sorted(found) == sorted(names)
        if precision == "fp32":
            for name, parameter in trained(module):
                torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-3, atol=1e-4)
