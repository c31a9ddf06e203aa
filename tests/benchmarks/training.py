"""A training step of the laptop model through the whole stack (Ray, DeepSpeed, one worker, two threads) against
`transformers`' GPT-2 in a bare loop (bf16 autocast, fused AdamW): same shape, same batch, same tokens."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

STEPS, BATCH, CONTEXT, VOCABULARY = 16, 16, 256, 8192


def run() -> None:
    rounds = [(peer(), stack()) for _ in range(2)]
    theirs, ours = (max(r[i] for r in rounds) for i in (0, 1))
    print(f"4 layers x 256, T={CONTEXT}, B={BATCH}, V={VOCABULARY}, bf16, 2 threads; best of 2 interleaved rounds\n")
    print("| | tokens/s |")
    print("|---|---|")
    print(f"| transformers, bare loop, bf16 autocast | {theirs:,.0f} |")
    print(f"| ours, Ray Train + DeepSpeed ZeRO-2, 1 worker | {ours:,.0f} |")
    print(f"| ratio | {ours / theirs:.2f} |")


def peer() -> float:
    """Tokens/s, the median step."""
    import torch
    import transformers

    torch.set_num_threads(2)
    torch.manual_seed(0)
    shape = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=256, n_layer=4, n_head=4,
        embd_pdrop=0, attn_pdrop=0, resid_pdrop=0,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    seconds = []
    for _ in range(STEPS):
        ids = torch.randint(0, VOCABULARY, (BATCH, CONTEXT))
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
    return BATCH * CONTEXT / float(np.median(seconds[2:]))


def stack() -> float:
    """Tokens/s, the median of the journal's steps."""
    from cluster.config import ClusterConfig
    from cluster.connect import disconnect
    from cluster.training.launch import train
    from gpt2.data.tokenizer import Tokenizer
    from gpt2.model.config import ModelConfig
    from gpt2.training.config import TrainConfig
    from gpt2.training_job import TokenFiles, TrainingJob

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generator = np.random.default_rng(0)
        words = " ".join("".join(generator.choice(list("abcdefghij"), 6)) for _ in range(30_000))
        Tokenizer.train([words], 300).save(root)
        for split in ("train", "validation"):
            generator.integers(0, VOCABULARY, 200_000).astype("<u2").tofile(root / f"{split}.bin")
        settings = TrainConfig(
            steps=STEPS, epochs=100, batch_size=BATCH, micro_batch_size=BATCH, context=CONTEXT,
            log_every=1, eval_every=1000, eval_samples=1, checkpoint_every=1000,
        )  # fmt: skip
        model = ModelConfig(n_layer=4, n_head=4, n_embd=256, n_positions=CONTEXT, vocab_size=VOCABULARY)
        files = {s: [str(root / f"{s}.bin")] for s in ("train", "validation")}
        job = TrainingJob(
            name="base", train=settings, tokenizer=str(root), output=str(root / "out"), model=model,
            tokens=TokenFiles(dtype="uint16", **files),
        )  # fmt: skip
        (root / "out").mkdir()
        cluster = ClusterConfig(num_workers=1, cpus_per_worker=min(2, os.cpu_count() or 1))
        try:
            journal = train(job, cluster, lambda record: None, print)
        finally:
            disconnect()
    return float(np.median([r["tokens_per_second"] for r in journal if "tokens_per_second" in r][2:]))
