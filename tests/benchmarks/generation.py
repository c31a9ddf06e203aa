"""Generation against `transformers`' `generate` in the same process: the same random weights, 8 prompts of 32 tokens,
128 new tokens each, fp32, key-value caches on both sides; greedy, then drawn from the 50 likeliest; rounds take
turns."""

import tempfile
import time
from pathlib import Path

import numpy as np

BATCH, PROMPT, NEW = 8, 32, 128
SHAPES = {
    "4 x 256, V=8,192": ({"n_layer": 4, "n_head": 4, "n_embd": 256, "vocab_size": 8192, "n_positions": 256}, 5),
    "124M, V=50,257": ({}, 3),
}


CLOCKS = ((2, "wall", time.perf_counter), (1, "CPU", time.process_time))
"""Threads and clocks: what a user waits for, and, where other work shares the machine, what the process used."""


def run() -> None:
    import torch

    print("| model | tokens | threads, time | transformers, tokens/s | ours, tokens/s | ratio |")
    print("|---|---|---|---|---|---|")
    for name, (shape, rounds) in SHAPES.items():
        for way, settings in {"greedy": {"temperature": 0.0}, "top-k 50": {"top_k": 50}}.items():
            sides = both(shape, settings)
            for threads, kind, clock in CLOCKS:
                torch.set_num_threads(threads)
                seconds: dict[str, list[float]] = {side: [] for side in sides}
                for turn in range(rounds + 1):
                    for side, work in sides.items():
                        started = clock()
                        work()
                        if turn:
                            seconds[side].append(clock() - started)
                rates = [BATCH * NEW / float(np.median(s)) for s in seconds.values()]
                ratio = float(np.median(np.array(seconds["theirs"]) / np.array(seconds["ours"])))
                cells = [name, way, f"{threads}, {kind}", f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"**{ratio:.2f}**"]
                print(f"| {' | '.join(cells)} |", flush=True)


def both(shape: dict, settings: dict) -> dict:
    """The two sides' work."""
    import torch
    from transformers import GPT2LMHeadModel

    from gpt2.generation.generate import generate
    from gpt2.model.config import ModelConfig
    from gpt2.model.transformer import GPT2
    from gpt2.weights import huggingface

    model = GPT2(ModelConfig(**shape), seed=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(model, Path(folder))
        peer = GPT2LMHeadModel.from_pretrained(folder).eval()
    end = model.config.vocab_size - 1
    ids = torch.randint(end, (BATCH, PROMPT), generator=torch.Generator().manual_seed(0))
    asked = {"max_new_tokens": NEW, "min_new_tokens": NEW, "pad_token_id": end, "do_sample": "top_k" in settings}

    def theirs():
        peer.generate(ids, attention_mask=torch.ones_like(ids), top_k=settings.get("top_k", 50), **asked)

    def ours():
        generate(model, end, ids.tolist(), NEW, stop_at_eot=False, **settings)

    return {"theirs": theirs, "ours": ours}
