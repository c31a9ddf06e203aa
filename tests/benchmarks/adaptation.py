"""Both tasks learned in four ways from one base model of the laptop's shape, pretrained briefly on the sample reviews:
every parameter, LoRA, a prefix, the head alone. The same examples and steps, a learning rate for each way, one seed."""

import tempfile
from pathlib import Path

import numpy as np

CONTEXT, PRETRAINING = 128, 150
STEPS = {"sentiment": 110, "recommendation": 130}
BATCH = {"sentiment": 64, "recommendation": 32}
WAYS = {
    "full": ({}, 1e-3),
    "LoRA, rank 8": ({"kind": "lora", "rank": 8, "alpha": 16}, 5e-3),
    "prefix of 16": ({"kind": "prefix", "prefix_length": 16}, 1e-2),
    "head only": ({"kind": "head"}, 1e-2),
}


def run() -> None:
    from cluster.home import samples
    from gpt2.analysis.small_runs import tune
    from gpt2.data.samples import resolve
    from gpt2.model.config import AdaptationConfig
    from gpt2.tasks.task import tasks
    from gpt2.training.config import OptimizerConfig, TrainConfig
    from tests.benchmarks.base import pretrained

    model, tokenizer, tokens = pretrained(CONTEXT, PRETRAINING, batch_size=32)
    print(f"4 x 256, {tokens / 1e6:.1f} M tokens of pretraining\n")
    print("| task | way | metric | parameters that learn | processor time, s | MB to keep |")
    print("|---|---|---|---|---|---|")
    for name, metric in {"sentiment": macro_f1, "recommendation": ndcg}.items():
        task = tasks()[name]
        with tempfile.TemporaryDirectory() as folder:
            examples = Path(folder)
            settings = task.Settings(**({"ngrams": False} if name == "sentiment" else {}))  # the network alone
            task.prepare(settings, Path(resolve(settings.source, samples())), examples)
            for way, (adaptation, rate) in WAYS.items():
                train = TrainConfig(
                    steps=STEPS[name], epochs=100, batch_size=BATCH[name], micro_batch_size=BATCH[name],
                    context=CONTEXT, eval_samples=1, eval_every=STEPS[name],
                    optimizer=OptimizerConfig(learning_rate=rate, warmup_steps=10, final_ratio=0.0),
                )  # fmt: skip
                tuned = tune(model, tokenizer, task, examples, AdaptationConfig(**adaptation), train)
                cells = [
                    name, way, metric(tuned.predictor, examples), f"{tuned.trained:,}", f"{tuned.seconds:.0f}",
                    f"{tuned.bytes / 1e6:.2f}",
                ]  # fmt: skip
                print(f"| {' | '.join(cells)} |", flush=True)


def macro_f1(predictor, examples: Path) -> str:
    import pandas as pd

    from gpt2.evaluation.metrics import classification

    test = pd.read_parquet(examples / "test.parquet")
    probabilities = predictor.probabilities(test["text"].tolist())
    return f"macro-F1 {classification(test['label'].to_numpy(), probabilities, predictor.labels)['macro_f1']:.3f}"


def ndcg(predictor, examples: Path) -> str:
    from gpt2.evaluation.metrics import rank_of, ranking
    from gpt2.tasks.recommendation.dataset import load_examples

    histories, _ = load_examples(examples)
    scores = predictor.by_text([h[:-1] for h in histories])
    ranks = np.array([rank_of(s, h[-1], h[:-1]) for s, h in zip(scores, histories, strict=True)])
    return f"NDCG@10 {ranking(ranks)['ndcg_at_10']:.3f}"
