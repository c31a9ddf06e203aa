"""Processor time of whole `gpt2` commands, this checkout and an earlier commit in turn, over one registry."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.cluster.small import TEXTS, model_folder, register

EARLIER = "003bc37"
"""The last commit before commands imported only what they use."""
ROOT = Path(__file__).parents[2]
REPEATS = 9
MODEL = "models:/gpt2-commands/1"


def run() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["GPT2_HOME"] = str(folder / "home")
        model(folder)
        (folder / "posts.txt").write_text("The crew was lovely\nMy bag is lost again\nWhen do we land?\n")
        earlier = folder / "earlier"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", earlier, EARLIER], cwd=ROOT, check=True)
        try:
            measure(folder)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", earlier], cwd=ROOT, check=True)


def measure(folder: Path) -> None:
    """Print the table of medians: one run of each tree in turn, the first of which warms the caches."""
    scoring = ["predict", MODEL, "--input", str(folder / "posts.txt"), "--output", str(folder / "out.jsonl")]
    print(f"| command | {EARLIER}, s | now, s | ratio [quartiles] |")
    print("|---|---|---|---|")
    for name, command in {"--help": ["--help"], "models": ["models"], "predict, three texts": scoring}.items():
        pairs = [[seconds(tree, command) for tree in (folder / "earlier", ROOT)] for _ in range(REPEATS + 1)][1:]
        before, now = zip(*pairs, strict=True)
        ratios = [b / a for a, b in pairs]
        low, middle, high = statistics.quantiles(ratios, n=4)
        medians = f"{statistics.median(before):.2f} | {statistics.median(now):.2f}"
        print(f"| `gpt2 {name}` | {medians} | {middle:.2f} [{low:.2f}, {high:.2f}] |")


def seconds(tree: Path, command: list[str]) -> float:
    """Return the processor time (user and system) of a command, with its children."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *command], cwd=tree, env=environment, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0
    return used.ru_utime + used.ru_stime


def model(folder: Path) -> None:
    """Register a small classifier with its linear part, as every classifier has it."""
    from safetensors.torch import save_file

    from gpt2 import weights
    from gpt2.model.heads import Classifier
    from gpt2.tasks.sentiment.ngrams import fit

    out = model_folder(folder / "made")
    linear, _ = fit(TEXTS * 20, np.array([1, 0] * 20), 2)
    linear.save(out)
    head = Classifier(weights.load(out), 2, ngrams=True).head
    save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, out / "head.safetensors")
    register("gpt2-commands", folder / "made")
