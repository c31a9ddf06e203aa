"""Small trainings on the CPU, for notebooks: fine-tunings with their cost, and trainings watched step by step."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from gpt2.analysis.interpret import gradient_norms
from gpt2.data import samples
from gpt2.data.batches import TokenDataset
from gpt2.data.config import CorpusConfig
from gpt2.data.corpus import normalise
from gpt2.data.readers import documents
from gpt2.data.shards import TokenStream
from gpt2.data.splits import content_digest, is_validation
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.adapters import adapt, trained_parameters
from gpt2.model.config import AdaptationConfig, ModelConfig
from gpt2.model.hardware import CPU
from gpt2.model.heads import LanguageModel
from gpt2.model.transformer import GPT2
from gpt2.tasks.task import Predictor, Task
from gpt2.training.config import TrainConfig
from gpt2.training.engine import TorchEngine
from gpt2.training.journal import JOURNAL, read_journal
from gpt2.training.loop import fit


@dataclass(frozen=True)
class Tuned:
    """Result and cost of a fine-tuning."""

    predictor: Predictor
    """Predictor of the saved model."""
    losses: list[float]
    """Training loss of each step (nats)."""
    trained: int
    """Number of parameters that training changed, including the task's head."""
    seconds: float
    """Processor time of all steps, over all threads."""
    bytes: int
    """Size of the files that must be kept besides the base model (bytes)."""


def tune(
    base: GPT2, tokenizer: Tokenizer, task: Task, examples: Path, adaptation: AdaptationConfig, train: TrainConfig
) -> Tuned:
    """Fine-tune a copy of `base` on the CPU on the `examples` of `task.prepare`; the seed is `train.seed`."""
    torch.manual_seed(train.seed)
    model = copy.deepcopy(base)
    module = task.module(model, examples, tokenizer)
    adapt(model, adaptation)
    training, validation = (task.dataset(examples, s, tokenizer, train.context) for s in ("train", "validation"))
    engine = RecordingEngine(module.train(), train)
    with tempfile.TemporaryDirectory() as folder:
        fit(engine, training, validation, train, Path(folder))
        saved = Path(folder) / "model"
        task.save(module, examples, tokenizer, train.context, saved)
        changed = [p for p in saved.glob("*.safetensors") if adaptation.kind == "full" or p.stem != "model"]
        size = sum(p.stat().st_size for p in changed)
        return Tuned(task.predictor(saved), engine.losses, trained_parameters(module), sum(engine.seconds), size)


@dataclass(frozen=True)
class Text:
    """A tokenizer and a corpus encoded by it."""

    tokenizer: Tokenizer
    training: TokenDataset
    validation: TokenDataset


def reviews(directory: Path, vocab_size: int, context: int, count: int = 6000) -> Text:
    """Return the first `count` sample reviews (about 1.3 kB each) as tokens of a vocabulary learned from them.

    The reviews are read from `directory`, and fetched there if they are missing. 2 % of them, chosen by content, are
    for validation.
    """
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
    """Return the token stream of these texts, with an end-of-text token after each, as shards would give it."""
    stream = TokenStream([], "uint32")
    stream.parts = [np.append(tokenizer.encode_array(text), np.uint32(tokenizer.end_of_text)) for text in texts]
    stream.ends = np.cumsum([len(part) for part in stream.parts], dtype=np.int64)
    return stream


@dataclass(frozen=True)
class Trial:
    """A training's record and its model."""

    model: GPT2
    losses: list[float]
    """Training loss of each step (nats per token)."""
    norms: list[dict[str, float]]
    """Gradient norms of each step before clipping, by part of the model (`gpt2.analysis.interpret.gradient_norms`)."""
    validation: list[tuple[int, float]]
    """(step, validation loss in nats per token) of each evaluation; the last one is after the whole training."""
    seconds: list[float]
    """Processor time of each step (seconds, all threads): forward, backward and update. Other load on the machine
    hardly affects it."""

    @property
    def validation_loss(self) -> float:
        """Return the validation loss at the end (nats per token)."""
        return self.validation[-1][1]


def trial(model: ModelConfig, text: Text, train: TrainConfig) -> Trial:
    """Train a new model on the CPU with the loop of pretraining; the seed is `train.seed`."""
    gpt2 = GPT2(model, seed=train.seed)
    engine = RecordingEngine(LanguageModel(gpt2), train, by_part=True)
    with tempfile.TemporaryDirectory() as folder:
        last = fit(engine, text.training, text.validation, train, Path(folder))["validation_loss"]
        records = read_journal(Path(folder) / JOURNAL)  # without non-finite values
    steps = len(engine.losses)
    validation = [(r["step"], r["validation_loss"]) for r in records if "validation_loss" in r and r["step"] < steps]
    return Trial(gpt2, engine.losses, engine.norms, [*validation, (steps, last)], engine.seconds)


class RecordingEngine(TorchEngine):
    """The plain engine on the CPU, with a record of each step as in `Trial`."""

    def __init__(self, module: nn.Module, config: TrainConfig, by_part: bool = False):
        """`by_part` fills `norms`, which needs gradients in the language model itself."""
        super().__init__(module, config, CPU)
        self.by_part = by_part
        self.losses: list[float] = []
        self.norms: list[dict[str, float]] = []
        self.seconds: list[float] = []
        self.current = [0.0, 0.0]
        """Loss and seconds of the current step."""

    def backward(self, batch: dict[str, Tensor]) -> Tensor:
        started = time.process_time()
        loss = super().backward(batch)
        self.current[0] += float(loss) / self.accumulation
        self.current[1] += time.process_time() - started
        return loss

    def update(self, learning_rate: float, limit: float = math.inf) -> float:
        if self.by_part:
            self.norms.append(gradient_norms(self.module))
        started = time.process_time()
        norm = super().update(learning_rate, limit)
        loss, seconds = self.current
        self.losses.append(loss)
        self.seconds.append(seconds + time.process_time() - started)
        self.current = [0.0, 0.0]
        return norm
