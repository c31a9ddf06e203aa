"""The kinds of models: the pretrained one, and the downstream tasks. A new task is one file in `gpt2/tasks/`."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from gpt2.data.batches import Dataset
from gpt2.store.model_files import BASE_NAME
from gpt2.tasks.config import TaskSettings

if TYPE_CHECKING:  # tasks are listed and validated without loading PyTorch
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import Evidence
    from gpt2.model.transformer import GPT2


class ModelKind(ABC):
    """What can be registered: how the model is described, used and judged."""

    name: ClassVar[str]
    """Identifier, as in `gpt2-NAME`, the registered model."""
    title: ClassVar[str]
    """For people."""
    primary: ClassVar[str]
    """The metric that the gate compares."""
    higher_is_better: ClassVar[bool] = True
    floor: ClassVar[str]
    """The simple baseline, one of `baselines`, that a model must beat to be promoted."""
    baselines: ClassVar[tuple[str, ...]]
    """All that its report sets the model beside, by the names that `gate.must_beat` knows."""
    params: ClassVar[Mapping[str, Any]] = {}
    """Optional parameters of `predict` and their defaults."""
    use: ClassVar[str] = "Not stated by the task."
    """What the model is for, and what not, for its card."""
    limits: ClassVar[tuple[str, ...]] = ("Not stated by the task.",)
    """What to know before relying on it, for its card."""
    example: ClassVar[Any] = "a text"
    """An input of `predict`, for its card."""
    independent_rows: ClassVar[bool] = True
    """Whether a row of `predict` depends on its own input alone, so that requests can be computed as one batch."""

    def limits_of(self, report: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the `limits`, with those that the model's report adds."""
        return self.limits

    @abstractmethod
    def predictor(self, directory: Path) -> Predictor:
        """Return the model in a directory, ready for use."""

    def evidence(self, predictions: pd.DataFrame) -> Evidence | None:
        """What the `predictions.parquet` of an evaluation tells of each unit, for intervals and the gate; without it
        the gate compares the metrics as they are."""
        return None


class Task(ModelKind):
    """A downstream task: what is fine-tuned, from which data, and how it is evaluated."""

    Settings: ClassVar[type[TaskSettings]]

    @abstractmethod
    def prepare(self, settings: Any, source: Path, out: Path) -> dict[str, Any]:
        """Read `source`, write the examples, split into train, validation and test, to `out`; return counts.

        Raises `ValueError` naming file, value and remedy where the data can't be used.
        """

    @abstractmethod
    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> Dataset:
        """Training samples of a split (`train` or `validation`)."""

    def samples(self, examples: Path, info: Mapping[str, Any], context: int) -> int:
        """How many training samples there are, by the examples and what `prepare` returned of them."""
        return int(info["train"])

    @abstractmethod
    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        """The model with the task's head: `forward(**batch)` returns the mean loss of a batch's samples, a scalar."""

    def load(self, directory: Path) -> nn.Module:
        """The module in a directory that `save` wrote, to teach; `ValueError` for a task that can't be distilled."""
        raise ValueError(f"{self.name} can't be distilled; leave distil out")

    def check_teacher(self, directory: Path, examples: Path) -> None:
        """Raise `ValueError` where the model in a directory can't teach one that learns from these examples."""

    @abstractmethod
    def save(self, module: nn.Module, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        """Write what `predictor` needs: config.json, *.safetensors, tokenizer.json, task.json. No pickle."""

    def texts(self, examples: Path, split: str) -> list[str]:
        """The texts of a split, in the order in which the report has them, to be looked for in training text; none
        where what is held out is no text. Here: the column `text` of SPLIT.parquet."""
        import pandas as pd

        path = examples / f"{split}.parquet"
        return pd.read_parquet(path, columns=["text"])["text"].tolist() if path.exists() else []

    @abstractmethod
    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        """Evaluate the saved model on the test split; see `gpt2.evaluation.report.write` for the report's form."""


class Predictor(Protocol):
    """A model ready for use."""

    input_example: Any
    """What one passes to `predict`: a list of texts, or of records."""

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame: ...


def checked_texts(inputs: Any) -> list[str]:
    """The inputs as texts; `ValueError` names the first that is none."""
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"input {i} is {text!r}; give a text that is not empty")
    return texts


def registered_name(name: str) -> str:
    """Return the registry's name for a model of the kind `name`, or of a name of its own (`register_as`)."""
    return f"gpt2-{name}"


@cache
def tasks() -> dict[str, Task]:
    """The downstream tasks by name: the `TASK` of every module and package of `gpt2.tasks` that has one."""
    import gpt2.tasks

    found = {}
    for module in pkgutil.iter_modules(gpt2.tasks.__path__):
        task: Task | None = getattr(importlib.import_module(f"gpt2.tasks.{module.name}"), "TASK", None)
        if task is not None:
            found[task.name] = task
    return dict(sorted(found.items()))


def task(name: str) -> Task:
    """The task of that name; `ValueError` lists those that exist."""
    try:
        return tasks()[name]
    except KeyError:
        raise ValueError(f"there is no task {name!r}; the tasks are: {', '.join(tasks())}") from None


def kind(name: str) -> ModelKind:
    """Return the kind of that name, `base` or a task's; `ValueError` lists the tasks."""
    base: ModelKind
    if name == BASE_NAME:
        base = importlib.import_module(
            "gpt2.tasks.base.kind"
        ).BASE  # by its name, as the tasks: it is made of this module
        return base
    return task(name)
