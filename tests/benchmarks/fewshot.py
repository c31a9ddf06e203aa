"""Labelling the sample posts with k examples: in the base model's prompt, and by fine-tuning on the same k. A base
model of the laptop's shape, pretrained briefly on the sample reviews; macro-F1 of 500 posts, three choices of
examples."""

import copy
import tempfile
import time
from pathlib import Path

import numpy as np

CONTEXT, STEPS, POSTS, SEEDS, SHOTS = 512, 100, 500, 3, (0, 4, 16)


def run() -> None:
    from gpt2.evaluation.metrics import classification
    from gpt2.fewshot import FewShot, choose
    from tests.benchmarks.base import posts, pretrained

    model, tokenizer, tokens = pretrained(CONTEXT, STEPS, batch_size=8)
    texts, labels, names = posts()
    test, truth = texts[:POSTS], labels[:POSTS]
    pool, pool_labels = texts[POSTS:], labels[POSTS:]

    def f1(probabilities) -> float:
        return classification(truth, probabilities, names)["macro_f1"]

    majority = f1(np.eye(len(names))[np.full(POSTS, np.bincount(pool_labels).argmax())])
    print(f"4 x 256, {tokens / 1e6:.1f} M tokens of pretraining; majority class {majority:.3f}\n")
    print("| k | in the prompt | calibrated | posts/s | fewest shown | fine-tuned on the same k |")
    print("|---|---|---|---|---|---|")
    for k in SHOTS:
        plain, calibrated, tuned, seconds, fewest = [], [], [], [], k
        for seed in range(SEEDS if k else 1):
            chosen = choose(pool_labels, k, seed)
            examples = [(pool[i], int(pool_labels[i])) for i in chosen]
            started = time.perf_counter()
            found = FewShot(model, tokenizer, names, examples).label(test)
            seconds.append(time.perf_counter() - started)
            fewest = min(fewest, int(found.shown.min()))
            plain.append(f1(found.probabilities))
            found = FewShot(model, tokenizer, names, examples, calibrated=True).label(test)
            calibrated.append(f1(found.probabilities))
            if k:
                tuned.append(f1(finetuned(model, tokenizer, examples, test, seed)))
        cells = [spread(plain), spread(calibrated), f"{POSTS / min(seconds):,.0f}", str(fewest), spread(tuned)]
        print(f"| {k} | {' | '.join(cells)} |", flush=True)


def spread(values: list[float]) -> str:
    """Mean, and the range of several."""
    if not values:
        return ""
    return f"{np.mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def finetuned(model, tokenizer, examples, test, seed: int):
    """Probabilities of a classifier trained for 40 steps on all examples at once."""
    import torch

    from gpt2.model.heads import Classifier, pad
    from gpt2.tasks.sentiment.dataset import TextDataset, encode
    from gpt2.training.config import OptimizerConfig, TrainConfig
    from gpt2.training.engine import TorchEngine
    from gpt2.training.loop import fit

    torch.manual_seed(seed)
    module = Classifier(copy.deepcopy(model), 3)
    data = TextDataset(encode(tokenizer, [text for text, _ in examples], 128), np.array([y for _, y in examples]))
    settings = TrainConfig(
        steps=40, epochs=10_000, batch_size=len(examples), micro_batch_size=len(examples), context=128, seed=seed,
        precision="fp32", optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=5, schedule="cosine"),
        eval_samples=1, eval_every=40,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(TorchEngine(module.train(), settings, "cpu"), data, data, settings, Path(folder))
    module.eval()
    rows = encode(tokenizer, test, 128)
    with torch.inference_mode():
        parts = [module.logits(*pad(rows[i : i + 64])).softmax(-1) for i in range(0, len(rows), 64)]
    return torch.cat(parts).numpy()
