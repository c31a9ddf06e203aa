"""Sentiment of the sample posts: a teacher of the laptop's shape, pretrained briefly and fine-tuned, and a student of a
quarter of its width, with the teacher and without; the same steps and samples, one seed. Scores one text at a time."""

import copy
import tempfile
import time
from pathlib import Path

import numpy as np

CONTEXT, PRETRAINING, STEPS, TESTED = 96, 40, 90, 1000
STUDENT = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": CONTEXT}


def run() -> None:
    from gpt2.evaluation.metrics import classification
    from gpt2.model.heads import Classifier
    from gpt2.tasks.sentiment.dataset import TextDataset, encode
    from gpt2.training.config import DistilConfig
    from gpt2.training.distillation import Distilled, student
    from tests.benchmarks.base import posts, pretrained

    base, tokenizer, _ = pretrained(CONTEXT, PRETRAINING, batch_size=32)
    texts, labels, names = posts()
    rows = encode(tokenizer, texts[: TESTED + STEPS * 64], CONTEXT)
    training, truth = TextDataset(rows[TESTED:], labels[TESTED : len(rows)]), labels[:TESTED]
    teacher = train(Classifier(base, 3), training)
    print("| model | parameters | ms per text | macro-F1 |")
    print("|---|---|---|---|")

    def row(name: str, module: Classifier) -> None:
        started = time.process_time()
        probabilities = score(module, rows[:TESTED])
        per_text = 1000 * (time.process_time() - started) / TESTED
        size = sum(p.numel() for p in module.parameters()) / 1e6
        f1 = classification(truth, probabilities, names)["macro_f1"]
        print(f"| {name} | {size:.2f} M | {per_text:.2f} | {f1:.3f} |", flush=True)

    row("teacher", teacher)
    for name, weight in (("student with teacher", 0.7), ("student alone", 0.0)):
        config = DistilConfig(teacher="the one above", student=STUDENT, weight=weight)
        learner = Classifier(student(teacher.model, config), 3)
        train(Distilled(learner, copy.deepcopy(teacher), config), training)
        row(name, learner)


def train(module, data):
    """The module, trained; through the loop that the pipeline has."""
    import torch

    from gpt2.training.config import OptimizerConfig, TrainConfig
    from gpt2.training.engine import TorchEngine
    from gpt2.training.loop import fit

    torch.manual_seed(0)
    settings = TrainConfig(
        steps=STEPS, batch_size=64, micro_batch_size=64, context=CONTEXT, precision="fp32", eval_samples=1,
        eval_every=STEPS, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=10, final_ratio=0.0),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(TorchEngine(module.train(), settings, "cpu"), data, data, settings, Path(folder))
    return module.eval()


def score(module, rows: list[list[int]]) -> np.ndarray:
    import torch

    from gpt2.model.heads import pad

    with torch.inference_mode():
        return torch.cat([module.logits(*pad([row])).softmax(-1) for row in rows]).numpy()
