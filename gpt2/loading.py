"""A model, ready for use, from a directory or from an address such as `models:/gpt2-sentiment@champion`.

What addresses of a scheme mean is told by whoever installs an entry point of its name in the group `gpt2.addresses`, as
`fsspec` finds its file systems: this package stays free of registries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing `gpt2` is cheap
    import pandas as pd

    from gpt2.tasks.task import Predictor

GROUP = "gpt2.addresses"
"""Entry points: scheme → `resolve(address) -> (directory, exact address)`, which has verified the directory."""
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use."""

    predictor: Predictor
    task: str
    """`base`, or the downstream task."""
    directory: Path
    address: str
    """Where it came from, exactly: of an alias, the version that it pointed at."""

    def predict(self, inputs: Any, **params: Any) -> pd.DataFrame:
        """A row per input; the inputs are texts or records, as in `predictor.input_example`.

        `params` are the task's (`gpt2-base`: `max_tokens`, `temperature`, …). `ValueError` for others and for inputs
        that the task has no use for.
        """
        known = default_params(self.task)
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"{self.task} has no parameter {name!r}; it has {', '.join(known) or 'none'}")
            default = known[name]
            kind = (int, float) if isinstance(default, float) else object if default is None else type(default)
            if not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(default, bool)):
                raise ValueError(f"{name}={value!r:.200}; give a value such as {default!r}")
        return self.predictor.predict(inputs, params)


def default_params(task_name: str) -> dict[str, Any]:
    """The parameters of a task's `predict` and their defaults."""
    from gpt2.tasks.task import kind

    return dict(kind(task_name).params)


def load(address: str | Path) -> LoadedModel:
    """The model in a directory, or at `models:/NAME@ALIAS` or `models:/NAME/VERSION` of the registry.

    Only safetensors, JSON and texts are read: no code that lies with a model is run. At an address of a registry each
    file is first compared with the manifest that was registered. `ValueError` tells what is wrong with the model.
    """
    from safetensors import SafetensorError

    exact, scheme = str(address), SCHEME.match(str(address))
    if scheme:
        directory, exact = resolve(scheme[1], exact)
    else:
        directory = Path(address)
        if not directory.is_dir():
            raise ValueError(f"{directory} is no directory; give a model's, or models:/NAME@ALIAS")
    try:
        name, predictor = read(directory)
    except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, SafetensorError) as error:
        # The files' contents decide what the readers stumble on; a RuntimeError is PyTorch's, or too deep a nesting.
        raise ValueError(f"the model at {exact} can't be loaded: {type(error).__name__}: {error}") from error
    return LoadedModel(predictor, name, directory, exact)


def resolve(scheme: str, address: str) -> tuple[Path, str]:
    """(directory, exact address) as the scheme's entry point tells; `ValueError` says what to install."""
    import importlib.metadata

    found = list(importlib.metadata.entry_points(group=GROUP, name=scheme))
    if not found:
        raise ValueError(
            f"{address}: nothing that is installed reads {scheme}:/ addresses; install gpt2-pipeline, or give the "
            f"model's directory"
        )
    try:
        return found[0].load()(address)
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise ValueError(
            f"{address}: reading {scheme}:/ addresses needs {missing}, which is not installed; install gpt2-pipeline "
            f"(again, if its code was updated), or give the model's directory"
        ) from error


def read(directory: Path) -> tuple[str, Predictor]:
    """(task, predictor) of a directory; one without task.json is a language model, as `transformers` writes it."""
    from gpt2.store.model_files import NAME, inside, read_task
    from gpt2.tasks.task import kind

    for path in directory.iterdir():
        if NAME.fullmatch(path.name):
            inside(path)
    name = read_task(directory)["task"]
    return name, kind(name).predictor(directory)
