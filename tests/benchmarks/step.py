"""A training step of our model in one process of plain PyTorch against `transformers`' GPT-2 in the same process: same
shape, batch and optimizer (fused AdamW, clipping), bf16, eager; rounds take turns. Then both steps' memory, each in a
process of its own."""

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

    from gpt2.peak import peak_flops

    torch.set_num_threads(2)
    print("| model | B | T | transformers, tokens/s | ours, tokens/s | ratio | ours, share of peak |")
    print("|---|---|---|---|---|---|---|")
    for shape in (LAPTOP, SMALL):
        peak = peak_flops(torch.bfloat16, torch.device("cpu"), seconds=2)
        steps = {"theirs": theirs(shape), "ours": ours(shape)}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(shape.rounds + 1):
            for name, step in steps.items():
                started = time.perf_counter()
                step()
                if turn:  # the first makes the optimizer's state
                    seconds[name].append(time.perf_counter() - started)
        tokens = shape.batch * shape.context
        peak = max(peak, peak_flops(torch.bfloat16, torch.device("cpu"), seconds=2))
        rates = {name: tokens / float(np.median(s)) for name, s in seconds.items()}
        ratio = float(np.median(np.array(seconds["theirs"]) / np.array(seconds["ours"])))
        share = rates["ours"] * config(shape).flops_per_token(shape.context) / peak
        print(
            f"| {shape.name} | {shape.batch} | {shape.context} | {rates['theirs']:,.0f} | {rates['ours']:,.0f} "
            f"| {ratio:.2f} | {share:.0%} of {peak / 1e9:,.0f} GFLOP/s |"
        )
        del steps
    print("\n| model | B | T | transformers, GiB at the peak | ours | share |")
    print("|---|---|---|---|---|---|")
    used = [memory(name) for name in ("theirs", "ours")]
    print(f"| {LONG.name} | {LONG.batch} | {LONG.context} | {used[0]:.1f} | {used[1]:.1f} | {used[1] / used[0]:.0%} |")


def config(shape: Shape):
    from gpt2.config import ModelConfig

    return ModelConfig(
        n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd,
        n_positions=shape.context, vocab_size=shape.vocabulary,
    )  # fmt: skip


def tokens(shape: Shape):
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, shape.vocabulary, (shape.batch, shape.context + 1), generator=generator)


def ours(shape: Shape) -> Callable[[], object]:
    from gpt2.config import TrainConfig
    from gpt2.engine import TorchEngine
    from gpt2.heads import LanguageModel
    from gpt2.model import GPT2

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


def memory(side: str) -> float:
    """GiB that two steps at the long shape take at the peak, above those of a process that has imported everything."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.step", side], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def measure(side: str) -> None:
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(2)
    before = high_water()
    step = {"ours": ours, "theirs": theirs}[side](LONG)
    step()
    step()
    print(high_water() - before)


def high_water() -> float:
    """GiB of resident memory of this process at its peak; `getrusage` would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


if __name__ == "__main__":
    measure(sys.argv[1])
