"""The library: everything that is computed. It needs PyTorch and no cluster.

analysis/        looking inside a model, for notebooks
data/            text in, batches of tokens out
evaluation/      metrics, statistics, the report
fewshot.py       labels from a few examples in the prompt, nothing trained (public)
gate/            whether a version may become the champion
generation/      writing text
loading.py       `gpt2.load`: a model ready for use, from a directory or an address
model/           the Transformer, its heads, adapters and loss
monitoring/      sentiment over time: index, alerts, drift
pages/           HTML and Markdown for people
search.py        hyperparameter search: the space, and one trial
settings.py      `Settings`, the base of every settings class
store/           artifacts: whole or absent
tasks/           what can be fine-tuned and registered
training/        the training loop and everything it needs
training_job.py  one training as data: builds the module and the datasets
weights/         a model on disk: `load` and `save` (public)
"""

import importlib
import sys
from types import ModuleType
from typing import Any

from gpt2.loading import load as load

__version__ = "0.1.0"
LAZY = ("fewshot", "weights")
"""Public modules that load PyTorch: imported on first use."""


def __getattr__(name: str) -> ModuleType:
    if name in LAZY:
        return importlib.import_module(f"gpt2.{name}")
    raise AttributeError(f"module 'gpt2' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})


def _keep_name(module: str, name: str, place: str) -> None:
    """Keep `from gpt2.MODULE import NAME` working after a move; `place` is imported only when the name is used."""
    alias = ModuleType(f"gpt2.{module}", f"An alias: `{name}` is in `{place}`.")

    def __getattr__(wanted: str) -> Any:  # of other names nothing is known here: whoever walks `sys.modules` asks many
        if wanted != name:
            raise AttributeError(f"module {alias.__name__!r} has no attribute {wanted!r}")
        return getattr(importlib.import_module(place), name)

    alias.__getattr__ = __getattr__  # type: ignore[method-assign]
    sys.modules[alias.__name__] = alias


# The code inside versions registered before the rooms imports these two. MLflow puts a version's own `gpt2` first on
# `sys.path`, but a process that has imported this one keeps it. Remove them when no such version is left to load.
_keep_name("task", "task", "gpt2.tasks.task")
_keep_name("language_model", "GeneratorPredictor", "gpt2.tasks.base.kind")
