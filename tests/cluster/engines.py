"""A small model on a DeepSpeed engine, and batches that follow from the step, for tests on `run_ranks`."""

from pathlib import Path

import torch

from cluster.config import ClusterConfig
from gpt2.model.config import ModelConfig
from gpt2.training.config import OptimizerConfig, TrainConfig

MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=24, n_positions=16, vocab_size=257)


def engine_of(stage: int, precision: str = "fp32", steps: int = 33, kind: str = "adamw", **cluster):
    """A DeepSpeed engine on a language model whose loss is multiplied by `engine.factor[0]`."""
    from cluster.engine.deepspeed_engine import DeepSpeedEngine
    from gpt2.model.heads import LanguageModel
    from gpt2.model.transformer import GPT2

    factor = [1.0]

    class Scaled(LanguageModel):
        def forward(self, **batch):
            return super().forward(**batch) * factor[0]

    torch.manual_seed(0)
    optimizer = OptimizerConfig(kind=kind, learning_rate=1e-2)
    train = TrainConfig(
        steps=steps, batch_size=8, micro_batch_size=2, context=16, precision=precision, optimizer=optimizer
    )
    engine = DeepSpeedEngine(Scaled(GPT2(MODEL)), train, ClusterConfig(zero_stage=stage, **cluster))
    engine.factor = factor
    return engine


def backward(engine, step: int) -> float:
    """Forward and backward of a made-up global batch; its mean loss over all ranks."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 257, (8, 17), generator=generator).cummax(1).values
    total = torch.zeros(())
    for part in ids.reshape(-1, 2, 17)[engine.rank :: engine.world_size]:
        total += engine.backward({"ids": part[:, :-1], "targets": part[:, 1:]})
    return float(engine.sum(total)) / 4


def steps(engine, first: int, last: int) -> list[float]:
    """Train; the losses."""
    losses = []
    for step in range(first, last):
        losses.append(backward(engine, step))
        engine.update(1e-2)
    return losses


def save(engine, folder: Path) -> None:
    """Write the state of all ranks."""
    if engine.rank == 0:
        folder.mkdir(parents=True)
    torch.distributed.barrier()
    engine.snapshot()(folder)
    torch.distributed.barrier()
