"""Reasons written for MovieLens out of the sample reviews: by the champion of gpt2-base in GPT2_HOME (after `make
run`), and by the same tuned as `tasks.reasons` is; one seed. A tenth of the reviews is held out; 100 users, 8 sentences
each."""

import json
import tempfile
from pathlib import Path

import numpy as np

HELD_OUT = 0.1
ROWS = {
    "perplexity": "perplexity of held-out sentences of people",
    "names_item": "begins with what stands for the item",
    "repeats": "repeats itself",
    "longest_copy": "longest run of words out of the training sentences: mean",
    "longest_copy_max": "the same: most",
    "run": "longest run of words out of all the reviews: mean",
    "run_max": "the same: most",
    "copied": "copies more than 8 words in a row",
    "verbatim": "is, however short, a training sentence or a part of one",
    "says_attribute": "says what the item is, as its genre",
    "attribute_right": "of these: right",
    "attribute_right_by_chance": "of these: right on another user's item",
    "passes": "passes all checks",
    "shown": "users who get a written reason",
}


def run() -> None:
    import torch

    import gpt2
    from cluster.home import samples
    from gpt2.analysis.small_runs import tune
    from gpt2.data.samples import resolve
    from gpt2.model.config import AdaptationConfig
    from gpt2.tasks.reasons.checks import KnownTexts
    from gpt2.tasks.reasons.dataset import read
    from gpt2.tasks.reasons.predictor import Reasoner
    from gpt2.tasks.task import task

    torch.set_num_threads(1)
    kind, base = task("reasons"), gpt2.load("models:/gpt2-base@champion").predictor
    source = resolve("sample:reviews", samples())
    settings = kind.Settings(catalogue=resolve("sample:movielens", samples()), source=source, test_share=HELD_OUT)
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder) / "examples"
        examples.mkdir()
        counts = kind.prepare(settings, Path(source), examples)
        texts, _ = read(Path(source), "text", "label", "1")
        everything = KnownTexts(texts["text"].tolist())
        train = settings.train.model_copy(update={"eval_every": 10**6, "checkpoint_every": 10**6})
        found = {"the base as it is": figures(kind, Reasoner(base.model), examples, base.tokenizer, everything)}
        tuned = tune(base.model, base.tokenizer, kind, examples, AdaptationConfig(), train)
        module = tuned.predictor.module
        found["tuned"] = figures(kind, module, examples, base.tokenizer, everything, shown=True)
        found["people, held out"] = people(examples)
    print(f"\n{counts['train']:,} samples, {len(tuned.losses)} steps, {tuned.seconds:.0f} s of processor time\n")
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for key, name in ROWS.items():
        cells = [f"{each[key]:.3g}" if key in each else "" for each in found.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def figures(kind, module, examples: Path, tokenizer, everything, shown: bool = False) -> dict[str, float]:
    """The report's, and the longest run of words that all the reviews have."""
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        model, out = Path(folder) / "model", Path(folder) / "out"
        model.mkdir(), out.mkdir()
        kind.save(module.eval(), examples, tokenizer, kind.Settings().train.context, model)
        report = kind.evaluate(model, examples, out)
        written = pd.read_parquet(out / "written.parquet")
    runs, table = everything.longest(written["text"].tolist()), report["tables"]
    print(table["Outcomes of the written sentences"]["rows"], report["remarks"], sep="\n")
    print(json.dumps(report["samples"] if shown else {}, indent=1, ensure_ascii=False), flush=True)
    passes = float((written["withheld"] == "").mean())
    return {**report["metrics"], "run": runs.mean(), "run_max": runs.max(), "passes": passes}


def people(examples: Path) -> dict[str, float]:
    """What can be said of held-out sentences."""
    import pandas as pd

    from gpt2.data.text import words
    from gpt2.tasks.reasons.checks import KnownTexts, repeats

    texts = pd.read_parquet(examples / "test.parquet")["text"].tolist()
    known = KnownTexts(pd.read_parquet(examples / "train.parquet")["text"].unique().tolist())
    runs = known.longest(texts)
    repeated = float(np.mean([repeats(words(text)) for text in texts]))
    return {
        "names_item": 1.0, "repeats": repeated, "longest_copy": runs.mean(), "longest_copy_max": runs.max(),
        "copied": float(np.mean(runs > 8)), "verbatim": float(np.mean(runs >= [len(words(text)) for text in texts])),
    }  # fmt: skip
