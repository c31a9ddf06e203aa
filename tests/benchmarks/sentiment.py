"""Labels of the sample posts: the network with its linear model, that model alone, and TF-IDF with logistic regression,
on splits of their own. The shipped split was in sight when constants were chosen; on these nothing was."""

import tempfile
from hashlib import blake2b
from pathlib import Path

import numpy as np

CONTEXT, BATCH, PRETRAINING, STEPS = 128, 64, 64, 110
SPLITS = (1, 2, 3, 4, 5)
LINEAR, PEER = "its linear model alone", "TF-IDF + logistic regression"


def run() -> None:
    from tests.benchmarks.base import pretrained

    model, tokenizer, tokens = pretrained(256, PRETRAINING)
    print(f"4 x 256, {tokens / 1e6:.1f} M tokens of pretraining\n")
    compare(model, tokenizer, STEPS)


def compare(model, tokenizer, steps: int, warmup: int = 10, splits: tuple[int, ...] = SPLITS) -> None:
    """A row for each split, whose number is also the seed of the training; the mean of their differences."""
    from gpt2.evaluation.unit_results import MODEL

    found = []
    print(f"| split | {MODEL}, {steps} steps | {LINEAR} | {PEER} | {MODEL} less this | {LINEAR} less this |")
    print("|---|---|---|---|---|---|")
    for number in splits:
        results = measured(model, tokenizer, steps, warmup, number)
        values = [results.value("macro_f1", name) for name in (MODEL, LINEAR, PEER)]
        told = []
        for name in (MODEL, LINEAR):
            gain = both(results, name, PEER)
            told.append("{:+.4f} [{:+.4f}, {:+.4f}]".format(results.drawn.value(gain), *results.drawn.interval(gain)))
        print(f"| {number} | {' | '.join(f'{v:.4f}' for v in values)} | {' | '.join(told)} |", flush=True)
        found.append(values)
    mean, low, high = np.mean(found, 0), np.min(found, 0), np.max(found, 0)
    each = [f"{m:.4f} ({a:.4f} to {b:.4f})" for m, a, b in zip(mean, low, high, strict=True)]
    print(f"| mean (lowest to highest) | {' | '.join(each)} | {mean[0] - mean[2]:+.4f} | {mean[1] - mean[2]:+.4f} |")


def both(results, first: str, second: str):
    """By how much one system's macro-F1 is above another's, of sums of all their columns."""
    from gpt2.evaluation.significance import beside

    return beside(results.metrics["macro_f1"], results.place(first), results.place(second))


def measured(model, tokenizer, steps: int, warmup: int, number: int):
    """The `UnitResults` of all three on one split."""
    import pandas as pd

    from gpt2.analysis.small_runs import tune
    from gpt2.evaluation import unit_results
    from gpt2.model.config import AdaptationConfig
    from gpt2.tasks.sentiment import report
    from gpt2.tasks.sentiment.dataset import NGRAMS
    from gpt2.tasks.task import tasks
    from gpt2.training.config import OptimizerConfig, TrainConfig

    task = tasks()["sentiment"]
    # As the preset `laptop-long` has it.
    rate = OptimizerConfig(
        learning_rate=1e-3, embedding_rate=3.0, warmup_steps=warmup, schedule="cosine", final_ratio=0.0
    )
    train = TrainConfig(
        steps=steps, epochs=100, batch_size=BATCH, micro_batch_size=32, context=CONTEXT, optimizer=rate,
        eval_samples=1, eval_every=steps, seed=number,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        examples = Path(folder)
        labels = prepare(task, examples, number)
        predictor = tune(model, tokenizer, task, examples, AdaptationConfig(), train).predictor
        learned, test = (pd.read_parquet(examples / f"{split}.parquet") for split in ("train", "test"))
    texts, truth = test["text"].tolist(), test["label"].to_numpy()
    tfidf = report.tfidf_logistic_regression(learned["text"].tolist(), learned["label"].to_numpy(), texts, labels)
    systems = {unit_results.MODEL: predictor.logits(texts), LINEAR: np.stack(test[NGRAMS]), PEER: tfidf}
    answers = {name: (scores.argmax(1), np.ones(len(test))) for name, scores in systems.items()}
    return unit_results.classification(truth, answers, [str(i) for i in range(labels)], "", {})


def prepare(task, out: Path, number: int) -> int:
    """What `task.prepare` writes of the sample posts, with the splits of this number; how many labels there are."""
    from cluster.home import samples
    from gpt2.data.near_duplicates import groups
    from gpt2.data.samples import resolve
    from gpt2.data.splits import SPLITS
    from gpt2.tasks.sentiment import dataset
    from gpt2.tasks.sentiment.task import add_ngrams

    settings = task.Settings()
    table, labels, counts = dataset.usable(Path(resolve("sample:posts", samples())), settings)
    table = table.drop(columns="weight", errors="ignore")
    texts, group = table["text"].tolist(), groups(table["text"].tolist())
    marks = [blake2b(texts[first].encode(), digest_size=8, salt=bytes([number])).digest() for first in group]
    share = np.array([int.from_bytes(mark, "little") for mark in marks]) / 2.0**64
    bounds = np.array([settings.test_share, settings.test_share + settings.validation_share])
    place = np.array(["test", "validation", "train"])[np.searchsorted(bounds, share, side="right")]
    tables = {split: table[place == split].reset_index(drop=True) for split in SPLITS}
    add_ngrams(tables, len(labels)).save(out)
    dataset.write(tables, labels, counts, out)
    return len(labels)
