"""What a pipeline costs besides its work: wall time of a run in an empty home, less the time inside the loops."""

import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from gpt2.store.artifact import read_manifest
from gpt2.training.journal import read_journal

WORK = ("documents", "corpus", "tokenizer", "tokens", "base-report", "sentiment-report", "recommendation-report")
EXAMPLES = ("sentiment-examples", "recommendation-examples")


def run(preset: str = "laptop") -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {"GPT2_HOME": str(home)}
        command = [sys.executable, "-m", "flows.cli", "run", "--preset", preset]
        walls = []
        for _ in range(2):
            started = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-2000:]
            walls.append(time.perf_counter() - started)
        manifests = [read_manifest(p.parent) for p in home.glob("store/*/*/manifest.json")]
        spans = [made_span(m) for m in manifests if m and m["kind"] in (*WORK, *EXAMPLES)]
        spans += [loop_span(p) for p in home.glob("store/*/*/journal.jsonl")]
    work = union(spans)
    print("| | s |")
    print("|---|---|")
    print(f"| `gpt2 run --preset {preset}`, empty home | {walls[0]:.0f} |")
    print(f"| inside tokenization, training and evaluation | {work:.0f} |")
    print(f"| overhead | {walls[0] - work:.0f} |")
    print(f"| the same again, nothing to do | {walls[1]:.0f} |")
    tables = re.search(r"Models.*?(?=\ngpt2-base)", done.stdout, re.DOTALL)
    print(tables.group(0) if tables else "")


def made_span(manifest: dict) -> tuple[float, float]:
    """(begin, end) of an artifact's making."""
    end = datetime.strptime(manifest["created"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    return end - manifest["info"]["seconds"], end


def loop_span(journal: Path) -> tuple[float, float]:
    """(begin, end) of a training's loop, by its journal: the first record comes at the end of the first step."""
    records = [r for r in read_journal(journal) if "time" in r]
    first_step = records[0]["seconds_left"] / max(1, records[-1]["step"] - 1)
    return records[0]["time"] - first_step, records[-1]["time"]


def union(spans: list[tuple[float, float]]) -> float:
    """Seconds covered by any of the spans: what happens at the same time counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
