"""A training job as data, from which a worker builds the module, the datasets and the final save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.data.batches import Dataset, Mixture, TokenDataset
from gpt2.data.shards import TokenStream
from gpt2.data.tokenizer import Tokenizer
from gpt2.model.config import AdaptationConfig, ModelConfig
from gpt2.settings import Settings
from gpt2.store.model_files import BASE_NAME
from gpt2.tasks.task import Task, task
from gpt2.training.config import DistilConfig, TrainConfig

if TYPE_CHECKING:  # a driver describes jobs without loading PyTorch
    from torch import nn

    from gpt2.model.transformer import GPT2


class TokenFiles(Settings):
    """The token shards of a corpus, in order."""

    train: list[str]
    validation: list[str]
    dtype: str
    replayed: int = 0
    """Number of files at the start of each split that hold old text, which the job's `base` has learned."""

    def moved(self, change: Callable[[str], str]) -> TokenFiles:
        """Return the files with `change` applied to each path or name."""
        return self.model_copy(update={s: [change(p) for p in getattr(self, s)] for s in ("train", "validation")})

    def old_and_new(self) -> tuple[TokenFiles, TokenFiles]:
        """Return (files of old text, files of new text)."""
        n = self.replayed
        old = TokenFiles(train=self.train[:n], validation=self.validation[:n], dtype=self.dtype)
        return old, TokenFiles(train=self.train[n:], validation=self.validation[n:], dtype=self.dtype)


INPUTS = ("tokenizer", "base", "examples", "teacher", "earlier")
"""Fields of a job that name a folder to read."""


class TrainingJob(Settings):
    """One training run as data. Inputs are absolute paths, or names in the store while it travels."""

    name: str
    """`base` for pretraining, else the task."""
    train: TrainConfig
    tokenizer: str
    """Directory of the tokenizer."""
    output: str
    """Directory for the journal, the checkpoints and finally `model/`."""
    model: ModelConfig | None = None
    """Pretraining: the model to initialise."""
    tokens: TokenFiles | None = None
    """Pretraining: the data."""
    earlier: str | None = None
    """Address of the checkpoints of the training that this one continues."""
    base: str | None = None
    """Directory of the pretrained model from which fine-tuning or a refresh starts."""
    new_epochs: int = 1
    """Refresh: passes over the new text; the remaining samples are old text."""
    examples: str | None = None
    """Fine-tuning: directory of the task's examples."""
    adaptation: AdaptationConfig = AdaptationConfig()
    """Fine-tuning: the parameters that it changes."""
    distil: DistilConfig | None = None
    """Fine-tuning: the student that learns from the teacher, in place of the base."""
    teacher: str | None = None
    """With `distil`: directory of the teacher."""

    def moved(self, change: Callable[[str], str]) -> TrainingJob:
        """Return the job with `change` applied to the path or name of each input."""
        inputs: dict[str, Any] = {name: change(p) for name in INPUTS if (p := getattr(self, name)) and "://" not in p}
        if self.tokens:
            inputs["tokens"] = self.tokens.moved(change)
        return self.model_copy(update=inputs)

    @property
    def pretrains(self) -> bool:
        """True if the job trains a language model on text; False if it fine-tunes one for a task."""
        return self.name == BASE_NAME


@dataclass(frozen=True)
class Parts:
    """The objects built from a job."""

    module: nn.Module
    gpt2: GPT2
    training: Dataset
    validation: Dataset
    save: Callable[[Path], None]
    """Write the module's model to a directory, in its published form."""


def build(job: TrainingJob) -> Parts:
    """Build the module (on the CPU in fp32, with the same initial weights in every process) and the datasets."""
    import torch

    from gpt2 import weights
    from gpt2.model.adapters import adapt
    from gpt2.model.heads import LanguageModel
    from gpt2.model.transformer import GPT2
    from gpt2.store import model_files

    torch.manual_seed(job.train.seed)
    tokenizer = Tokenizer.load(Path(job.tokenizer))
    if job.pretrains:
        assert job.model is not None and job.tokens is not None
        model = weights.load(Path(job.base)) if job.base else GPT2(job.model)
        if job.base:
            tokenizer.check_model(Path(job.base), f" in {job.tokenizer}")
        module: nn.Module = LanguageModel(model)
        training: Dataset = training_text(job, job.tokens)
        validation: Dataset = token_dataset(job.tokens, "validation", job.train.context)

        def save(out: Path) -> None:
            weights.save(model, out, tokenizer=tokenizer)
            model_files.write_task(out, job.name)
    else:
        assert job.base is not None and job.examples is not None
        kind, examples = task(job.name), Path(job.examples)
        learner: Any
        if job.distil:
            learner, module = distilled(job, kind, examples, tokenizer)
        else:
            model = weights.load(Path(job.base))
            tokenizer.check_model(Path(job.base), f" in {job.tokenizer}")
            learner = module = kind.module(model, examples, tokenizer)
            adapt(model, job.adaptation)
        model = learner.model
        tokenizer.check(model.config.vocab_size, f" in {job.tokenizer}")
        training = kind.dataset(examples, "train", tokenizer, job.train.context)
        validation = kind.dataset(examples, "validation", tokenizer, job.train.context)

        def save(out: Path) -> None:
            kind.save(learner, examples, tokenizer, job.train.context, out)

    model.activation_checkpointing = job.train.activation_checkpointing
    return Parts(module, model, training, validation, save)


def training_text(job: TrainingJob, files: TokenFiles) -> Dataset:
    """Return the samples that pretraining reads."""
    if not files.replayed:
        return token_dataset(files, "train", job.train.context)
    old, new = (token_dataset(half, "train", job.train.context) for half in files.old_and_new())
    assert job.train.steps is not None
    return Mixture(new, old, job.new_epochs, job.train.steps * job.train.batch_size)


def distilled(job: TrainingJob, kind: Task, examples: Path, tokenizer: Tokenizer) -> tuple[Any, nn.Module]:
    """Return (the student, the module that trains it).

    `ValueError` if the teacher has another tokenizer or does not fit the examples.
    """
    from gpt2.training.distillation import Distilled, student

    assert job.distil is not None and job.teacher is not None
    directory = Path(job.teacher)
    teacher: Any = kind.load(directory)
    if Tokenizer.load(directory).record != tokenizer.record:
        raise ValueError(
            f"the teacher in {directory} has another tokenizer than {job.tokenizer}; give a teacher that was "
            f"trained with that tokenizer"
        )
    kind.check_teacher(directory, examples)
    learner: Any = kind.module(student(teacher.model, job.distil), examples, tokenizer)
    return learner, Distilled(learner, teacher, job.distil)


def token_dataset(files: TokenFiles, split: str, context: int) -> TokenDataset:
    """Return the samples of one split of tokenized text."""
    paths = [Path(p) for p in getattr(files, split)]
    return TokenDataset(TokenStream(paths, files.dtype), context)
