"""Reading 1,000,000 interactions for `train-recommender`, beside the build 7960ad8: CPU seconds, and the same examples.

`OLD` names a work tree of that build: git worktree add FOLDER 7960ad8. On a shared machine: CPU seconds, pairs in turn,
and the median of their ratios.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

ROWS, USERS, ITEMS, PAIRS = int(os.environ.get("ROWS", 1_000_000)), 6_000, 3_700, 3
PREPARE = """
import sys, time
from pathlib import Path
import pandas, scipy.sparse
from gpt2.tasks.recommendation import TASK
source, out = map(Path, sys.argv[1:])
out.mkdir(exist_ok=True)
began = time.process_time()
TASK.prepare(TASK.Settings(source=str(source), min_weight=4), source, out)
print(time.process_time() - began)
"""


def run() -> None:
    trees = {"7960ad8": os.environ.get("OLD"), "now": str(Path(__file__).parents[2])}
    if not trees["7960ad8"]:
        print("OLD is not set: git worktree add FOLDER 7960ad8, and OLD=FOLDER")
        return
    with tempfile.TemporaryDirectory() as place:
        source = Path(place)
        draw = np.random.default_rng(0)
        table = {"user": draw.integers(0, USERS, ROWS), "item": draw.zipf(1.3, ROWS) % ITEMS}
        table |= {"time": draw.integers(1_500_000_000, 1_600_000_000, ROWS), "weight": draw.integers(1, 6, ROWS)}
        pd.DataFrame(table).to_csv(source / "interactions.csv", index=False)
        names = {"id": range(ITEMS), "title": [f"Film {i}" for i in range(ITEMS)]}
        pd.DataFrame(names).assign(genre="drama").to_csv(source / "items.csv", index=False)
        seconds: dict[str, list[float]] = {name: [] for name in trees}
        for _ in range(PAIRS):
            for name, tree in trees.items():
                command = [sys.executable, "-c", PREPARE, place, str(source / name)]
                environment = {**os.environ, "PYTHONPATH": str(tree)}
                done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=True)
                seconds[name].append(float(done.stdout))
        for file in ("items.parquet", "histories.parquet"):
            old, now = (pd.read_parquet(source / name / file) for name in trees)
            pd.testing.assert_frame_equal(old, now)
    ratios = [old / new for old, new in zip(*seconds.values(), strict=True)]
    print("| interactions | 7960ad8, CPU s | now, CPU s | ratio |\n|---|---|---|---|")
    print(f"| {ROWS:,} | {' | '.join(f'{median(s):.1f}' for s in seconds.values())} | {median(ratios):.2f} |")
    print(f"\nratios: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
