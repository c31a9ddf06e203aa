"""A training step of our model in plain PyTorch against `transformers`' GPT-2: same shape, batch and optimizer (fused
AdamW, clipping), bf16, eager. Each side is a process of its own, because how a process has used its memory before
changes a step's time by a fifth; they take turns, one step each. Ours starts with the environment of a worker (`HEAP`),
`transformers` without it and with it. Then both steps' memory."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Shape:
    """A model and a batch."""

    name: str
    n_layer: int
    n_head: int
    n_embd: int
    vocabulary: int
    batch: int
    context: int
    rounds: int


LAPTOP = Shape("4 x 256, V=8,192", 4, 4, 256, 8192, 16, 256, 12)
SMALL = Shape("124M, V=50,257", 12, 12, 768, 50257, 4, 512, 4)
LONG = Shape("124M, V=50,257", 12, 12, 768, 50257, 8, 1024, 1)


def run() -> None:
    import torch

    from gpt2.model.hardware import peak_flops
    from gpt2.training.engine import HEAP

    torch.set_num_threads(2)
    print("| model | B | T | side | tokens/s | ours by | share of the peak |")
    print("|---|---|---|---|---|---|---|")
    sides = {"transformers": {}, "transformers, our environment": HEAP, "ours": HEAP}
    for shape in (LAPTOP, SMALL):
        children = {side: Side(side, shape, environment) for side, environment in sides.items()}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        peak = 0.0
        for _ in range(shape.rounds):
            for side, child in children.items():
                seconds[side].append(child.step())
            peak = max(peak, peak_flops(torch.bfloat16, torch.device("cpu"), seconds=1))
        for child in children.values():
            child.close()
        for side in sides:
            rate = shape.batch * shape.context / float(np.median(seconds[side]))
            ratio = float(np.median(np.array(seconds[side]) / np.array(seconds["ours"])))
            share = rate * config(shape).flops_per_token(shape.context) / peak
            print(
                f"| {shape.name} | {shape.batch} | {shape.context} | {side} | {rate:,.0f} "
                f"| {'' if side == 'ours' else f'{ratio:.2f}'} | {share:.0%} of {peak / 1e9:,.0f} GFLOP/s |"
            )
    print("\n| model | B | T | transformers, GiB at the peak | ours | share |")
    print("|---|---|---|---|---|---|")
    used = []
    for side in ("transformers", "ours"):
        child = Side(side, LONG, sides[side])
        child.step()
        used.append(child.close())
    print(f"| {LONG.name} | {LONG.batch} | {LONG.context} | {used[0]:.1f} | {used[1]:.1f} | {used[1] / used[0]:.0%} |")


class Side:
    """A process that has made one step, the optimizer's state with it, and makes another when asked."""

    def __init__(self, side: str, shape: Shape, environment: dict[str, str]):
        name = next(name for name, value in globals().items() if value is shape)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.step", side, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        self.ask("")

    def ask(self, what: str) -> float:
        assert self.process.stdin and self.process.stdout
        if what:
            print(what, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def step(self) -> float:
        """How long it took (s)."""
        return self.ask("step")

    def close(self) -> float:
        """GiB at its peak, above those of a process that has imported everything."""
        used = self.ask("end")
        self.process.wait()
        return used


def config(shape: Shape):
    from gpt2.model.config import ModelConfig

    return ModelConfig(
        n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd,
        n_positions=shape.context, vocab_size=shape.vocabulary,
    )  # fmt: skip


def tokens(shape: Shape):
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, shape.vocabulary, (shape.batch, shape.context + 1), generator=generator)


def ours(shape: Shape) -> Callable[[], object]:
    from gpt2.model.heads import LanguageModel
    from gpt2.model.transformer import GPT2
    from gpt2.training.config import TrainConfig
    from gpt2.training.engine import TorchEngine

    settings = TrainConfig(steps=1, batch_size=shape.batch, micro_batch_size=shape.batch, context=shape.context)
    engine = TorchEngine(LanguageModel(GPT2(config(shape), seed=0)), settings, "cpu")
    ids = tokens(shape)

    def step() -> None:
        engine.backward({"ids": ids[:, :-1], "targets": ids[:, 1:]})
        engine.update(1e-4)

    return step


def theirs(shape: Shape) -> Callable[[], object]:
    import torch
    import transformers

    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=shape.vocabulary, n_positions=shape.context, n_embd=shape.n_embd, n_layer=shape.n_layer,
            n_head=shape.n_head, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, use_cache=False,
        )
    ).train()  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = tokens(shape)[:, :-1].contiguous()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def answer(side: str, shape: Shape) -> None:
    """What `Side` asks for."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(2)
    before = high_water()
    step = (ours if side == "ours" else theirs)(shape)
    step()
    print(0, flush=True)
    while sys.stdin.readline().strip() == "step":
        started = time.perf_counter()
        step()
        print(time.perf_counter() - started, flush=True)
    print(high_water() - before, flush=True)


def high_water() -> float:
    """GiB of resident memory of this process at its peak; `getrusage` would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


if __name__ == "__main__":
    answer(sys.argv[1], globals()[sys.argv[2]])
