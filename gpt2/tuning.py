"""Fine-tuning in this process, by any adaptation, and what it costs: a comparison needs no cluster."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt2.adapters import adapt, trained_parameters
from gpt2.config import AdaptationConfig, TrainConfig
from gpt2.model import GPT2
from gpt2.task import Predictor, Task
from gpt2.tokenizer import Tokenizer
from gpt2.train import fit
from gpt2.trials import Watched


@dataclass(frozen=True)
class Tuned:
    """What came out, and what it cost."""

    predictor: Predictor
    """Of the saved model."""
    losses: list[float]
    """Training loss of each step (nats)."""
    trained: int
    """Parameters that training changed, the task's head among them."""
    seconds: float
    """Processor time of all steps, over all threads."""
    bytes: int
    """Of the files that must be kept beside the base model."""


def tune(
    base: GPT2, tokenizer: Tokenizer, task: Task, examples: Path, adaptation: AdaptationConfig, train: TrainConfig
) -> Tuned:
    """Fine-tune a copy of `base` on the CPU on what `task.prepare` wrote to `examples`; the seed is `train.seed`."""
    torch.manual_seed(train.seed)
    model = copy.deepcopy(base)
    module = task.module(model, examples, tokenizer)
    adapt(model, adaptation)
    training, validation = (task.dataset(examples, s, tokenizer, train.context) for s in ("train", "validation"))
    engine = Watched(module.train(), train)
    with tempfile.TemporaryDirectory() as folder:
        fit(engine, training, validation, train, Path(folder))
        saved = Path(folder) / "model"
        task.save(module, examples, tokenizer, train.context, saved)
        changed = [p for p in saved.glob("*.safetensors") if adaptation.kind == "full" or p.stem != "model"]
        size = sum(p.stat().st_size for p in changed)
        return Tuned(task.predictor(saved), engine.losses, trained_parameters(module), sum(engine.seconds), size)
