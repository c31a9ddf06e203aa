"""The kinds of models: the pretrained one, and the downstream tasks; their look-up by name.

A new task is one file, or one folder, in `gpt2/tasks/` with a `TASK`.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from gpt2.data.batches import Dataset
from gpt2.tasks.config import TaskSettings

if TYPE_CHECKING:  # tasks are listed and validated without loading PyTorch
    import pandas as pd
    from torch import nn

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.evaluation.unit_results import UnitResults
    from gpt2.model.transformer import GPT2


class ModelKind(ABC):
    """A kind of model that can be registered: how it is described, used and evaluated."""

    name: ClassVar[str]
    """Identifier; the registered model is `gpt2-NAME`."""
    title: ClassVar[str]
    """Title for people."""
    primary: ClassVar[str]
    """The metric that the gate compares."""
    higher_is_better: ClassVar[bool] = True
    floor: ClassVar[str]
    """The simple baseline, one of `baselines`, that a model must beat to be promoted."""
    baselines: ClassVar[tuple[str, ...]]
    """All baselines in its report, by the names that `gate.must_beat` accepts."""
    params: ClassVar[Mapping[str, Any]] = {}
    """Optional parameters of `predict` and their defaults."""
    use: ClassVar[str] = "Not stated by the task."
    """Intended use, and misuse, for the model card."""
    limits: ClassVar[tuple[str, ...]] = ("Not stated by the task.",)
    """Limitations to know before relying on it, for the model card."""
    example: ClassVar[Any] = "a text"
    """An example input of `predict`, for the model card."""
    independent_rows: ClassVar[bool] = True
    """True if a row of `predict` depends on its own input alone: then requests can be computed as one batch."""

    def limits_of(self, report: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the `limits`, and those that follow from the model's report."""
        return self.limits

    @abstractmethod
    def predictor(self, directory: Path) -> Predictor:
        """Return the model in a directory, ready for use."""

    def unit_results(self, predictions: pd.DataFrame) -> UnitResults | None:
        """Return the per-unit results in an evaluation's `predictions.parquet`, for intervals and the gate.

        If it returns None, the gate compares the metrics alone.
        """
        return None


class Task(ModelKind):
    """A downstream task: the module that is fine-tuned, its data and its evaluation."""

    Settings: ClassVar[type[TaskSettings]]

    @abstractmethod
    def prepare(self, settings: Any, source: str | Path, out: Path) -> dict[str, Any]:
        """Write the examples of `source` to `out`, split into train, validation and test; return counts.

        `ValueError` names file, value and remedy if the data can't be used.
        """

    @abstractmethod
    def dataset(self, examples: Path, split: str, tokenizer: Tokenizer, context: int) -> Dataset:
        """Return the training samples of a split (`train` or `validation`)."""

    def samples(self, examples: Path, info: Mapping[str, Any], context: int) -> int:
        """Return the number of training samples, from the examples and the counts that `prepare` returned."""
        return int(info["train"])

    @abstractmethod
    def module(self, model: GPT2, examples: Path, tokenizer: Tokenizer) -> nn.Module:
        """Return the model with the task's head: `forward(**batch)` returns the mean loss of a batch's samples, a
        scalar."""

    def load(self, directory: Path) -> nn.Module:
        """Return the module that `save` wrote, as a teacher; `ValueError` for a task that can't be distilled."""
        raise ValueError(f"{self.name} can't be distilled; leave distil out")

    def check_teacher(self, directory: Path, examples: Path) -> None:
        """Raise `ValueError` if the model in a directory can't teach a student of these examples."""

    @abstractmethod
    def save(self, module: nn.Module, examples: Path, tokenizer: Tokenizer, context: int, out: Path) -> None:
        """Write the predictor's files: config.json, *.safetensors, tokenizer.json, task.json. No pickle is allowed."""

    def texts(self, examples: Path, split: str) -> list[str]:
        """Return a split's texts, in the report's order, to be searched for in the training text.

        [] if the held-out data are not texts. By default they are the column `text` of SPLIT.parquet.
        """
        import pandas as pd

        path = examples / f"{split}.parquet"
        return pd.read_parquet(path, columns=["text"])["text"].tolist() if path.exists() else []

    @abstractmethod
    def evaluate(self, directory: Path, examples: Path, out: Path) -> dict[str, Any]:
        """Evaluate the saved model on the test split and return its report (`gpt2.evaluation.report.write` has the
        format)."""


class Predictor(Protocol):
    """A model that is ready for use."""

    input_example: Any
    """An example argument of `predict`: a list of texts, or of records."""

    def predict(self, inputs: Any, params: Mapping[str, Any]) -> pd.DataFrame: ...


def checked_texts(inputs: Any) -> list[str]:
    """Return the inputs as a list of texts; `ValueError` names the first input that is not a text, or is empty."""
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"input {i} is {text!r}; give a text that is not empty")
    return texts


def registered_name(name: str) -> str:
    """Return the registry's name for a model of the kind `name`, or for a chosen name (`register_as`)."""
    return f"gpt2-{name}"


@cache
def kinds() -> dict[str, ModelKind]:
    """Return the kinds by name: the `TASK` of each module and folder of `gpt2.tasks`, and the `BASE` of its own."""
    import gpt2.tasks

    modules = [
        importlib.import_module(f"gpt2.tasks.{found.name}") for found in pkgutil.iter_modules(gpt2.tasks.__path__)
    ]
    named = [getattr(module, name) for module in modules for name in ("TASK", "BASE") if hasattr(module, name)]
    return {kind.name: kind for kind in sorted(named, key=lambda kind: kind.name)}


def tasks() -> dict[str, Task]:
    """Return the downstream tasks by name."""
    return {name: kind for name, kind in kinds().items() if isinstance(kind, Task)}


def task(name: str) -> Task:
    """Return the task of that name; raise `ValueError` with the list of tasks for an unknown one."""
    try:
        return tasks()[name]
    except KeyError:
        raise ValueError(f"there is no task {name!r}; the tasks are: {', '.join(tasks())}") from None


def kind(name: str) -> ModelKind:
    """Return the kind of that name, `base` or a task's; raise `ValueError` with the list of tasks for others."""
    return kinds().get(name) or task(name)
