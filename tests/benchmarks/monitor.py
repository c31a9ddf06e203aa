"""The monitor after a long history and a short one: 1,000 new posts, without their scoring, which is the same for both.

Posts over 60 days about 20 topics lie in files of 10,000. They are read, compared with what is counted, counted, and
judged; the page is drawn and the history kept. Scores are drawn at random: what counts here is the bookkeeping.
On a shared machine: CPU seconds, pairs in turn, and the median of their ratios.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

SHORT, LONG = 10_000, int(os.environ.get("LONG", 1_000_000))
NEW, PAIRS, FILE, BATCH = 1_000, 3, 10_000, 2000
START = pd.Timestamp("2026-01-01", tz="UTC")


def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
        homes = {posts: Path(folder) / str(posts) for posts in (SHORT, LONG)}
        for posts, home in homes.items():
            call(home, f"prepare({posts})")
        found: dict[int, list[dict]] = {posts: [] for posts in homes}
        for number in range(PAIRS):
            for posts, home in homes.items():
                found[posts].append(call(home, f"again({posts}, {number})"))
    print(f"| {NEW:,} new posts after a history of | CPU s | peak memory, MB |\n|---|---|---|")
    for posts, rows in found.items():
        print(f"| {posts:,} | {middle(rows, 'seconds'):.2f} | {middle(rows, 'memory'):.0f} |")
    pairs = list(zip(*found.values(), strict=True))
    ratios = {name: [long[name] / short[name] for short, long in pairs] for name in ("seconds", "memory")}
    print("| ratio, median of pairs | " + " | ".join(f"{median(r):.2f}" for r in ratios.values()) + " |")
    print("\n" + "; ".join(f"{name}: {', '.join(f'{r:.2f}' for r in each)}" for name, each in ratios.items()))


def middle(rows: list[dict], name: str) -> float:
    return median(row[name] for row in rows)


def call(home: Path, what: str) -> dict:
    """Run a function of this file in a process of its own; return what it prints."""
    environment = {**os.environ, "GPT2_HOME": str(home)}
    command = [sys.executable, "-c", f"from {__name__} import *; print({what})"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def parts():
    """The monitor's settings, the model that it watches with, and its store."""
    from cluster.home import home, store
    from cluster.registry.resolve import ResolvedModel
    from gpt2.monitoring.config import MonitorConfig

    inbox = home() / "inbox"
    inbox.mkdir(parents=True, exist_ok=True)
    config = MonitorConfig(name="bench", sources=[str(inbox)], time_field="at", compact_above=10_000)
    return config, ResolvedModel("m", "models:/m/1", "1" * 16, "", ""), store(), inbox


def arrive(inbox: Path, first: int, count: int) -> None:
    """Write a file of posts, spread over 60 days."""
    numbers = np.arange(first, first + count)
    times = START + pd.to_timedelta(np.random.default_rng(first).integers(0, 60 * 86_400, count), unit="s")
    texts = [f"@topic{n % 20} this is post number {n}" for n in numbers]
    pd.DataFrame({"text": texts, "at": times}).to_parquet(inbox / f"{first:09d}.parquet", index=False)


def scored(store, config, model, posts: pd.DataFrame) -> None:
    """Write batches as `cluster.batch.scoring` does, with random scores."""
    from gpt2.monitoring.index import topic_lists
    from gpt2.monitoring.scored import SCORED, kind
    from gpt2.store.artifact import Key, digest

    for start in range(0, len(posts), BATCH):
        part = posts.iloc[start : start + BATCH].reset_index(drop=True)
        draw = np.random.default_rng(start)
        score = draw.random(len(part))
        table = part.assign(topics=topic_lists(part, config), label=np.where(score > 0.75, "negative", "positive"))
        table = table.assign(version=model.address, cut=False, score=score, confidence=np.maximum(score, 1 - score))
        table = table.assign(tokens=draw.integers(5, 40, len(part)).astype(float), surprise=draw.random(len(part)))
        spec = {"monitor": config.name, "model": model.identity, "version": model.address}

        def build(out: Path, table: pd.DataFrame = table) -> dict:
            table.to_parquet(out / SCORED, index=False)
            return {"posts": len(table)}

        store.make(Key(kind(config), spec, {"posts": digest(sorted(part["post"]))}), build)


def watch() -> int:
    """A run of the monitor but for its events and its scoring; return the number of new posts."""
    from flows.jobs.monitor import build_index
    from gpt2.monitoring import history, posts
    from gpt2.monitoring import scored as monitoring_scored

    config, model, store, _ = parts()
    made = monitoring_scored.batches(store, config)
    past = history.load(store, config, model.identity, model.address, made)
    arrived, troubles, whole = posts.read_files(store, config, lambda text: None, counted=past.files)
    new, count = history.to_score(arrived, made, past, model.identity, model.address, config)
    scored(store, config, model, new)
    build_index.fn(config, model, None, troubles, "", past, frozenset(whole))
    return count


def prepare(count: int) -> str:
    *_, inbox = parts()
    for first in range(0, count, FILE):
        arrive(inbox, first, FILE)
    assert watch() == count
    return json.dumps({})


def again(count: int, number: int) -> str:
    """CPU seconds and peak memory (MB) of a run after new posts."""
    from flows.jobs.monitor import build_index  # noqa: F401 - the imports are not counted

    *_, inbox = parts()
    arrive(inbox, count + NEW * number, NEW)
    began = time.process_time()
    assert watch() == NEW
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return json.dumps({"seconds": time.process_time() - began, "memory": memory})
