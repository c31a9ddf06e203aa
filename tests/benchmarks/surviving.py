"""What it costs to survive: the stall of a save in the background against one in the foreground, and the checks of a
step, at the laptop's model on two ranks."""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from cluster.checkpoints.checkpointer import Checkpointer
from cluster.config import ClusterConfig
from gpt2.model.config import ModelConfig
from gpt2.training.config import TrainConfig
from gpt2.training.journal import Events
from tests.cluster.ranks import run_ranks

MODEL = ModelConfig(n_layer=4, n_head=4, n_embd=256, n_positions=256, vocab_size=8192)
EVERY, SAVES = 10, 4


def measure(folder: Path) -> dict[str, float]:
    """Seconds: a step, a save in the foreground, what a save in the background stalls and slows; one check."""
    from cluster.engine.deepspeed_engine import DeepSpeedEngine
    from gpt2.model.heads import LanguageModel
    from gpt2.model.transformer import GPT2

    torch.manual_seed(0)
    train = TrainConfig(steps=1000, batch_size=16, micro_batch_size=8, context=256)
    engine = DeepSpeedEngine(LanguageModel(GPT2(MODEL)), train, ClusterConfig())
    generator = torch.Generator().manual_seed(engine.rank)

    def step() -> None:
        ids = torch.randint(0, 8192, (8, 257), generator=generator)
        engine.backward({"ids": ids[:, :-1], "targets": ids[:, 1:]})
        engine.update(1e-4)

    def seconds(saver) -> tuple[float, float]:
        """(of all steps and saves, of the calls that save)."""
        torch.distributed.barrier()
        began, calls = time.perf_counter(), 0.0
        for number in range(1, SAVES * EVERY + 1):
            step()
            if saver and number % EVERY == 0:
                before = time.perf_counter()
                saver.save(engine, number, {}, None)
                calls += time.perf_counter() - before
        if saver:
            saver.wait()
        torch.distributed.barrier()
        return time.perf_counter() - began, calls

    def saver(name: str, background: bool) -> Checkpointer:
        made = Checkpointer(folder / name, 2, None, {}, Events(None), background=background)
        made.load(engine)
        return made

    for _ in range(3):
        step()
    rounds = [(seconds(None), seconds(saver("f", False)), seconds(saver("b", True))) for _ in range(2)]
    bare, front, back = (min(r[i] for r in rounds) for i in range(3))
    checks = []
    assert engine.replicas is not None
    for _ in range(20):
        before = time.perf_counter()
        engine.replicas.verify()
        checks.append(time.perf_counter() - before)
    return {
        "step": bare[0] / (SAVES * EVERY),
        "front": front[1] / SAVES,
        "back": back[1] / SAVES,
        "slowed": max(0.0, back[0] - bare[0]) / SAVES,
        "check": statistics.median(checks),
    }


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        told = run_ranks(2, measure, Path(folder))[0]
    fifty = 50 * told["step"]
    print(f"A step takes {told['step'] * 1000:.0f} ms; a save per 50 steps is a save per {fifty:.0f} s.\n")
    print("| | s | share of 50 steps |")
    print("|---|---|---|")
    for name, key in (
        ("save in the foreground: stall", "front"),
        ("save in the background: stall", "back"),
        ("save in the background: wall time added, stall and slower steps", "slowed"),
    ):
        print(f"| {name} | {told[key]:.3f} | {told[key] / fifty:.2%} |")
    print(f"\nStall, foreground over background: {told['front'] / told['back']:.1f}.")
    print(f"Comparing the replicas: {told['check'] * 1000:.1f} ms, {told['check'] / told['step']:.2%} of a step.")
