"""GPT-2 computed: model, tokenizer, data, training loop, tasks, metrics. Needs PyTorch, not a cluster."""

import importlib
import sys
from types import ModuleType
from typing import Any

from gpt2.loading import load as load

__version__ = "0.1.0"


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
