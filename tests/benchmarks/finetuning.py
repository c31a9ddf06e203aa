"""Fine-tuning and scoring the sample posts: our loop, which reads texts packed, against `transformers`' `Trainer` with
GPT-2 for sequence classification, padding each batch to its longest. Same shape, ids, batches of 64, bf16 in training,
fused AdamW; rounds take turns."""

import copy
import tempfile
import time
from pathlib import Path

import numpy as np

STEPS, BATCH, CONTEXT, VOCABULARY = 30, 64, 128, 8192
SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 256}


def run() -> None:
    import torch

    from cluster.home import samples
    from gpt2.data.samples import resolve
    from gpt2.data.tokenizer import Tokenizer
    from gpt2.tasks.sentiment.config import SentimentSettings
    from gpt2.tasks.sentiment.dataset import TextDataset, encode, read_labelled, without_duplicates

    torch.set_num_threads(2)
    table, _ = read_labelled(Path(resolve("sample:posts", samples())), SentimentSettings())
    table, _ = without_duplicates(table)
    texts, labels = table["text"].tolist(), table["label"].astype("category").cat.codes.to_numpy(np.int64)
    tokenizer = Tokenizer.train(texts, VOCABULARY)
    chosen = np.random.default_rng(0).permutation(len(texts))[: STEPS * BATCH]  # each is read once by each side
    data = TextDataset(encode(tokenizer, [texts[i] for i in chosen], CONTEXT), labels[chosen])
    sides = {
        "transformers.Trainer": Theirs(data, by_length=False),
        "transformers.Trainer, grouped by length": Theirs(data, by_length=True),
        "ours": Ours(data),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(2):
        for name, side in sides.items():
            seconds[name].append((timed(side.train), timed(side.score)))
    best = {name: [min(column) for column in zip(*rows, strict=True)] for name, rows in seconds.items()}
    lengths = data.lengths
    print(f"{len(data):,} posts of {lengths.mean():.0f} tokens on average, {lengths.max()} at most\n")
    print("| | trained posts/s | ratio | scored posts/s | ratio |")
    print("|---|---|---|---|---|")
    for name, (trained, scored) in best.items():
        ratios = [theirs / ours for theirs, ours in zip(best[name], best["ours"], strict=True)]
        ratio = [f"{r:.2f}" if name != "ours" else "" for r in ratios]
        print(f"| {name} | {STEPS * BATCH / trained:,.0f} | {ratio[0]} | {STEPS * BATCH / scored:,.0f} | {ratio[1]} |")


def timed(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


class Ours:
    """`gpt2.training.loop.fit` on the plain engine."""

    def __init__(self, data):
        import torch

        from gpt2.model.config import ModelConfig
        from gpt2.model.heads import Classifier
        from gpt2.model.transformer import GPT2

        torch.manual_seed(0)
        self.data = data
        self.model = Classifier(
            GPT2(ModelConfig(**SHAPE, n_positions=CONTEXT, vocab_size=VOCABULARY)), len(set(data.labels))
        )

    def train(self) -> None:
        from gpt2.training.config import TrainConfig
        from gpt2.training.engine import TorchEngine
        from gpt2.training.loop import fit

        settings = TrainConfig(
            steps=STEPS, batch_size=BATCH, micro_batch_size=BATCH, context=CONTEXT, eval_samples=1, eval_every=STEPS
        )
        with tempfile.TemporaryDirectory() as folder:
            fit(TorchEngine(self.model, settings, "cpu"), self.data, self.data, settings, Path(folder))

    def score(self) -> None:
        import torch

        from gpt2.model.hardware import quickest
        from gpt2.model.heads import pad

        model = copy.deepcopy(self.model).to(quickest()).eval()  # as a pulled model scores
        order = np.argsort(self.data.lengths, kind="stable")
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                model.logits(*pad([self.data.rows[i] for i in order[start : start + BATCH]]))


class Theirs:
    """`Trainer`, on the same ids."""

    def __init__(self, data, by_length: bool):
        import torch
        import transformers

        torch.manual_seed(0)
        self.rows = [
            {"input_ids": row, "labels": int(label)} for row, label in zip(data.rows, data.labels, strict=True)
        ]
        self.by_length = by_length
        self.model = transformers.GPT2ForSequenceClassification(
            transformers.GPT2Config(
                **SHAPE, n_positions=CONTEXT, vocab_size=VOCABULARY, num_labels=len(set(data.labels)),
                embd_pdrop=0, attn_pdrop=0, resid_pdrop=0, pad_token_id=VOCABULARY - 1, use_cache=False,
            )
        )  # fmt: skip

    def collate(self, rows):
        import torch

        from gpt2.model.heads import pad

        ids, lengths = pad([row["input_ids"] for row in rows], VOCABULARY - 1)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": torch.tensor([r["labels"] for r in rows])}

    def trainer(self, folder: str):
        import transformers

        strategy = {"train_sampling_strategy": "group_by_length"} if self.by_length else {}
        arguments = transformers.TrainingArguments(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
            bf16=True, use_cpu=True, optim="adamw_torch_fused", learning_rate=6e-4, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, seed=0, **strategy,
        )  # fmt: skip
        return transformers.Trainer(
            model=self.model, args=arguments, train_dataset=self.rows, data_collator=self.collate
        )

    def train(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.trainer(folder).train()

    def score(self) -> None:
        rows = self.rows
        if self.by_length:
            rows = sorted(rows, key=lambda row: len(row["input_ids"]))
        with tempfile.TemporaryDirectory() as folder:
            self.trainer(folder).predict(rows)
