"""A base model's evaluation on two cores against one: seconds, and the same losses to the bit.

On a shared machine: pairs in turn, and the median of their ratios.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

TOKENS, CONTEXT, VOCABULARY, PAIRS = 400_000, 256, 8192, 3


def run() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        found = []
        for _ in range(PAIRS):
            for cores in seconds:
                asked = [sys.executable, "-c", f"from {__name__} import timed; timed({place!r}, {cores})"]
                done = subprocess.run(asked, capture_output=True, text=True, check=True)
                seconds[cores].append(float(done.stdout.split()[-1]))
                found.append(np.concatenate([np.load(f) for f in sorted((folder / "_losses/losses").iterdir())]))
        assert all((other == found[0]).all() for other in found)
    ratios = [one / two for one, two in zip(*seconds.values(), strict=True)]
    print(f"{len(found[0]):,} losses, the same to the bit in all {len(found)} runs\n")
    print("| | one core, s | two cores, s | ratio |\n|---|---|---|---|")
    print(f"| median of {PAIRS} pairs | {median(seconds[1]):.1f} | {median(seconds[2]):.1f} | {median(ratios):.2f} |")
    print(f"\nratios: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")


def prepare(folder: Path) -> None:
    """Write random tokens and a random model of 4 x 256: speed does not depend on what was learned."""
    from gpt2 import weights
    from gpt2.data.tokenizer import Tokenizer
    from gpt2.model.config import ModelConfig
    from gpt2.model.transformer import GPT2

    tokenizer = Tokenizer.train(["no words are needed"], 257)
    model = GPT2(ModelConfig(n_layer=4, n_head=4, n_embd=256, n_positions=CONTEXT, vocab_size=VOCABULARY))
    weights.save(model, folder / "base" / "model")
    tokenizer.save(folder / "base" / "model")
    tokens = np.random.default_rng(0).integers(300, VOCABULARY, TOKENS)
    tokens[::400] = tokenizer.end_of_text
    tokens.astype("<u2").tofile(folder / "validation.bin")


def timed(place: str, cores: int) -> None:
    """Print the seconds of reading the held-out text with that many cores, without the start of Ray's workers."""
    import shutil

    import ray

    from cluster.batch.evaluation import HeldOut, _losses, _reader
    from cluster.connect import QUIETLY, spread
    from gpt2.training_job import TokenFiles

    folder, files = Path(place), [str(Path(place) / "validation.bin")]
    shutil.rmtree(folder / "_losses", ignore_errors=True)
    ray.init(address="local", num_cpus=cores, include_dashboard=False, **QUIETLY)
    info = {"validation_tokens": TOKENS, "validation_bytes": 4 * TOKENS}
    text = TokenFiles(train=files, validation=files, dtype="uint16")
    held_out = HeldOut(text, info, CONTEXT, str(folder / "base" / "model"), TOKENS)
    list(spread(warm, [(folder / "base" / "model",)] * cores))
    began = time.perf_counter()
    list(spread(_losses, held_out.calls(folder / "base", folder), model=folder / "base"))
    print(time.perf_counter() - began)
    assert _reader.cache_info().currsize == 0  # the work was the workers'


def warm(model: Path) -> None:
    """Load PyTorch and the model, on each worker."""
    from cluster.batch.evaluation import _reader

    _reader(model)
    time.sleep(1)
