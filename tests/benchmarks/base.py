"""What benchmarks of adaptation start from: a model of the laptop's shape, pretrained briefly on the sample reviews."""

import tempfile
from pathlib import Path

import numpy as np

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 256}
VOCABULARY = 8192


def pretrained(context: int, steps: int, batch_size: int = 16):
    """(model, tokenizer, tokens read), fp32; the same each time."""
    import pandas as pd
    import torch

    from cluster.home import samples
    from gpt2.data.batches import TokenDataset
    from gpt2.data.samples import resolve
    from gpt2.data.shards import TokenStream
    from gpt2.data.tokenizer import Tokenizer
    from gpt2.model.config import ModelConfig
    from gpt2.model.heads import LanguageModel
    from gpt2.model.transformer import GPT2
    from gpt2.training.config import OptimizerConfig, TrainConfig
    from gpt2.training.engine import TorchEngine
    from gpt2.training.loop import fit

    torch.set_num_threads(2)
    texts = pd.read_csv(resolve("sample:reviews", samples()))["text"].tolist()
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:12_000]]
    tokenizer = Tokenizer.train(texts, VOCABULARY)
    model = GPT2(ModelConfig(**SHAPE, n_positions=context, vocab_size=VOCABULARY), seed=0)
    rate = OptimizerConfig(learning_rate=2e-3, warmup_steps=20, schedule="cosine", final_ratio=0.05)
    settings = TrainConfig(
        steps=steps, batch_size=batch_size, micro_batch_size=8, context=context, precision="fp32", optimizer=rate,
        eval_samples=1, eval_every=steps,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "train.bin"
        with open(shard, "wb") as file:
            for text in texts:
                file.write(np.append(tokenizer.encode_array(text), tokenizer.end_of_text).astype("<u2").tobytes())
        data = TokenDataset(TokenStream([shard], "uint16"), context)
        fit(TorchEngine(LanguageModel(model), settings, "cpu"), data, data, settings, Path(folder))
    return model.eval(), tokenizer, steps * batch_size * context


def posts():
    """(texts, labels, names of the labels) of the sample posts, in an order of their own."""
    from cluster.home import samples
    from gpt2.data.samples import resolve
    from gpt2.tasks.sentiment.config import SentimentSettings
    from gpt2.tasks.sentiment.dataset import read_labelled, without_duplicates

    table, _ = read_labelled(Path(resolve("sample:posts", samples())), SentimentSettings())
    table, _ = without_duplicates(table)
    column = table["label"].astype("category")
    order = np.random.default_rng(0).permutation(len(table))
    texts = table["text"].to_numpy()[order].tolist()
    return texts, column.cat.codes.to_numpy(np.int64)[order], column.cat.categories.tolist()
