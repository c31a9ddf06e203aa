"""A made-up catalogue of 20,000 items and as many users: time and memory of making a recommender and its report, each
in a process of its own. Choices by chance, few items chosen often; 1 layer x 64, not trained."""

import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

ITEMS, EACH = 20_000, 30
USERS = (5_000, 20_000)
STAGES = ("save", "evaluate")


def run() -> None:
    print("| users x items | stage | processor time, s | memory at the peak above that of the imports, MB |")
    print("|---|---|---|---|")
    for users in USERS:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), users)
            for stage in STAGES:
                with multiprocessing.get_context("spawn").Pool(1) as own:
                    seconds, before, after = own.apply(measured, (Path(folder), stage))
                print(f"| {users:,} x {ITEMS:,} | {stage} | {seconds:.0f} | {after - before:,.0f} |", flush=True)


def write(folder: Path, users: int) -> None:
    """Examples as `tasks.recommendation` prepares them."""
    import pandas as pd

    drawn, chances = np.random.default_rng(0), 1 / np.arange(10, ITEMS + 10)
    places = np.searchsorted(np.cumsum(chances / chances.sum()), drawn.random((users, 3 * EACH)))
    histories = [list(dict.fromkeys(row.tolist()))[:EACH] for row in places.clip(max=ITEMS - 1)]
    counts = np.bincount(np.concatenate([h[:-2] for h in histories]), minlength=ITEMS)
    names = [f"item {i}" for i in range(ITEMS)]
    table = pd.DataFrame({"item": names, "title": names, "text": [f"kind {i % 50}" for i in range(ITEMS)]})
    table.assign(popularity=counts, recent=counts / 2).to_parquet(folder / "items.parquet", index=False)
    pd.DataFrame({"user": range(users), "items": histories}).to_parquet(folder / "histories.parquet", index=False)
    (folder / "catalogue.json").write_text(json.dumps({"item_tokens": 8}))


def measured(folder: Path, stage: str) -> tuple[float, float, float]:
    """(seconds of the processor, MB at the peak before the stage, and with it)."""
    import sklearn.linear_model  # noqa: F401 - what reports import

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.model.config import ModelConfig
    from gpt2.model.transformer import GPT2
    from gpt2.tasks.recommendation import report as recommendation_report  # noqa: F401
    from gpt2.tasks.recommendation.task import TASK

    tokenizer, out = Tokenizer.train(["item kind"] * 20, 264), folder / "model"
    out.mkdir(exist_ok=True)
    began, before = time.process_time(), peak()
    if stage == "save":
        shape = ModelConfig(n_layer=1, n_head=2, n_embd=64, n_positions=64, vocab_size=264)
        TASK.save(TASK.module(GPT2(shape), folder, tokenizer), folder, tokenizer, 50, out)
    else:
        TASK.evaluate(out, folder, out)
    return time.process_time() - began, before, peak()


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
