"""What `balance` does on an uneven file: the sample posts with one positive in eight kept, learned with each setting
from one base model of the laptop's shape. `auto` is `sqrt` here."""

import tempfile
from pathlib import Path

CONTEXT, PRETRAINING, STEPS, BATCH, KEPT, SEEDS = 64, 80, 100, 32, 8, (0,)


def run() -> None:
    import numpy as np
    import pandas as pd

    from gpt2.analysis.small_runs import tune
    from gpt2.evaluation.metrics import classification
    from gpt2.model.config import AdaptationConfig
    from gpt2.tasks.task import tasks
    from gpt2.training.config import OptimizerConfig, TrainConfig
    from tests.benchmarks.base import posts, pretrained

    model, tokenizer, tokens = pretrained(CONTEXT, PRETRAINING)
    print(f"4 x 256, {tokens / 1e6:.1f} M tokens of pretraining, {STEPS} steps of {BATCH}, seeds {SEEDS}\n")
    texts, labels, names = posts()
    rare = names.index("positive")
    kept = np.flatnonzero((labels != rare) | (np.cumsum(labels == rare) % KEPT == 0))
    task = tasks()["sentiment"]
    print("| balance | macro-F1 | accuracy | F1 of each label | positives found | calibration error |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "posts.csv"
        pd.DataFrame({"text": [texts[i] for i in kept], "label": [names[labels[i]] for i in kept]}).to_csv(file)
        for balance in ("none", "auto", "inverse"):
            examples, found = Path(folder) / balance, []
            examples.mkdir()
            task.prepare(task.Settings(label_field="label", balance=balance), file, examples)
            test = pd.read_parquet(examples / "test.parquet")
            for seed in SEEDS:
                train = TrainConfig(
                    steps=STEPS, epochs=100, batch_size=BATCH, micro_batch_size=BATCH, context=CONTEXT, seed=seed,
                    eval_samples=1, eval_every=STEPS,
                    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, final_ratio=0.0),
                )  # fmt: skip
                predictor = tune(model, tokenizer, task, examples, AdaptationConfig(), train).predictor
                probabilities = predictor.probabilities(test["text"].tolist())
                found.append(classification(test["label"].to_numpy(), probabilities, predictor.labels))
            sizes = ", ".join(f"{name} {int((test['label'] == i).sum()):,}" for i, name in enumerate(predictor.labels))
            means = {name: np.mean([f[name] for f in found]) for name in found[0] if np.isscalar(found[0][name])}
            each = ", ".join(f"{name} {means[f'f1_{name}']:.2f}" for name in predictor.labels)
            print(
                f"| {balance} | {means['macro_f1']:.3f} | {means['accuracy']:.3f} | {each} | "
                f"{means['recall_positive']:.0%} | {means['calibration_error']:.3f} |",
                flush=True,
            )
    print(f"\ntested on: {sizes}")
