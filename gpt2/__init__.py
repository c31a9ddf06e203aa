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
from types import ModuleType

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
