"""Small trainings on the sample reviews, looked at step by step: what a change of the model or its training does."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from gpt2 import samples
from gpt2.batches import TokenDataset
from gpt2.config import CorpusConfig, ModelConfig, TrainConfig
from gpt2.corpus import normalise
from gpt2.engine import TorchEngine
from gpt2.heads import LanguageModel
from gpt2.inspect import gradient_norms
from gpt2.journal import JOURNAL, read_journal
from gpt2.model import GPT2
from gpt2.readers import documents
from gpt2.shards import TokenStream
from gpt2.splits import content_digest, is_validation
from gpt2.tokenizer import Tokenizer
from gpt2.train import fit


@dataclass(frozen=True)
class Text:
    """A tokenizer, and what it made of a corpus."""

    tokenizer: Tokenizer
    training: TokenDataset
    validation: TokenDataset


def reviews(directory: Path, vocab_size: int, context: int, count: int = 6000) -> Text:
    """The first `count` sample reviews (about 1.3 kB each) from `directory`, fetched there if need be, as tokens of a
    vocabulary learned from them. 2 % of the reviews, chosen by content, are for validation."""
    config = CorpusConfig()
    source = samples.resolve(config.sources[0], directory)
    splits: dict[bool, dict[str, None]] = {False: {}, True: {}}  # texts in order, each once
    for document in islice(documents(source, config.text_field, config.max_chars), count):
        if document.reason is None:
            text = normalise(document.text)
            splits[is_validation(content_digest(text), config.validation_share)][text] = None
    tokenizer = Tokenizer.train(splits[False], vocab_size)
    training, validation = (TokenDataset(in_memory(texts, tokenizer), context) for texts in splits.values())
    return Text(tokenizer, training, validation)


def in_memory(texts: Iterable[str], tokenizer: Tokenizer) -> TokenStream:
    """The stream that shards of these texts would give, an end-of-text after each."""
    stream = TokenStream([], "uint32")
    stream.parts = [np.append(tokenizer.encode_array(text), np.uint32(tokenizer.end_of_text)) for text in texts]
    stream.ends = np.cumsum([len(part) for part in stream.parts], dtype=np.int64)
    return stream


@dataclass(frozen=True)
class Trial:
    """A training, and the model that came out."""

    model: GPT2
    losses: list[float]
    """Training loss of each step (nats per token)."""
    norms: list[dict[str, float]]
    """Norms of each step's gradients before clipping, by part of the model (`gpt2.inspect.gradient_norms`)."""
    validation: list[tuple[int, float]]
    """(step, validation loss in nats per token) of each evaluation; the last is that of the whole training."""
    seconds: list[float]
    """Of processor time, over all threads, of each step: forward, backward and update. Other work on the machine hardly
    changes it."""

    @property
    def validation_loss(self) -> float:
        """At the end (nats per token)."""
        return self.validation[-1][1]


def trial(model: ModelConfig, text: Text, train: TrainConfig) -> Trial:
    """Train a new model on the CPU by the loop that pretraining runs; the seed is `train.seed`."""
    gpt2 = GPT2(model, seed=train.seed)
    engine = Watched(LanguageModel(gpt2), train, by_part=True)
    with tempfile.TemporaryDirectory() as folder:
        last = fit(engine, text.training, text.validation, train, Path(folder))["validation_loss"]
        records = read_journal(Path(folder) / JOURNAL)  # without what is not finite
    steps = len(engine.losses)
    validation = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r and r["step"] < steps]
    return Trial(gpt2, engine.losses, engine.norms, [*validation, (steps, last)], engine.seconds)


class Watched(TorchEngine):
    """The plain engine on the CPU, and what it saw, a value per step as in `Trial`."""

    def __init__(self, module: nn.Module, config: TrainConfig, by_part: bool = False):
        """`by_part` fills `norms`, which takes gradients in the language model itself."""
        super().__init__(module, config, "cpu")
        self.by_part = by_part
        self.losses: list[float] = []
        self.norms: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.so_far = [0.0, 0.0]
        """This step's loss and seconds."""

    def backward(self, batch: dict[str, Tensor]) -> Tensor:
        started = time.process_time()
        loss = super().backward(batch)
        self.so_far[0] += float(loss) / self.accumulation
        self.so_far[1] += time.process_time() - started
        return loss

    def update(self, learning_rate: float, limit: float = math.inf) -> float:
        if self.by_part:
            self.norms.append(gradient_norms(self.module))
        started = time.process_time()
        norm = super().update(learning_rate, limit)
        loss, seconds = self.so_far
        self.losses.append(loss)
        self.seconds.append(seconds + time.process_time() - started)
        self.so_far = [0.0, 0.0]
        return norm
