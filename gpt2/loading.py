"""Loads a model that is ready for use, from a directory or an address such as `models:/gpt2-sentiment@champion`.

A URL scheme is resolved by the entry point of the same name in the group `gpt2.addresses`, as `fsspec` resolves file
systems. So `gpt2` needs no registry client.
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
"""Group of entry points by scheme. Each is `resolve(address) -> (directory, exact address)`, and verifies the
directory."""
SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/")


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready for use."""

    predictor: Predictor
    task: str
    """The kind of the model: `base`, or the downstream task."""
    directory: Path
    address: str
    """Exact address of the model: an alias is replaced by its version."""

    def predict(self, inputs: Any, **params: Any) -> pd.DataFrame:
        """Return a row per input; inputs are texts or records, as in `predictor.input_example`.

        `params` are those of the task (for `gpt2-base`: `max_tokens`, `temperature`, …). `ValueError` for unknown
        parameters and for inputs that the task can't use.
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
    """Return the parameters of a task's `predict` with their defaults."""
    from gpt2.tasks.task import kind

    return dict(kind(task_name).params)


def load(address: str | Path) -> LoadedModel:
    """Return the model in a directory, or at `models:/NAME@ALIAS` or `models:/NAME/VERSION` of the registry.

    Only safetensors, JSON and texts are read: no code beside the model is run. Files from a registry are first compared
    with the registered manifest. `ValueError` says what is wrong with the model.
    """
    from safetensors import SafetensorError

    exact, scheme = str(address), SCHEME.match(str(address))
    if scheme:
        directory, exact = resolve(scheme[1], exact)
    else:
        directory = Path(address)
        if not directory.is_dir():
            raise ValueError(f"{directory} is not a directory; give a model's directory, or models:/NAME@ALIAS")
    try:
        name, predictor = read(directory)
    except (LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, SafetensorError) as error:
        # Bad contents may raise any of these; a RuntimeError is PyTorch's, or comes from deep nesting.
        raise ValueError(f"the model at {exact} can't be loaded: {type(error).__name__}: {error}") from error
    return LoadedModel(predictor, name, directory, exact)


def resolve(scheme: str, address: str) -> tuple[Path, str]:
    """Return (directory, exact address) from the scheme's entry point; `ValueError` says what to install."""
    import importlib.metadata

    resolvers = list(importlib.metadata.entry_points(group=GROUP, name=scheme))
    if not resolvers:
        raise ValueError(
            f"{address}: no installed package reads {scheme}:/ addresses; install gpt2-pipeline, or give the "
            f"model's directory"
        )
    try:
        return resolvers[0].load()(address)
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        raise ValueError(
            f"{address}: reading {scheme}:/ addresses needs {missing}, which is not installed; install gpt2-pipeline "
            f"(again, if its code was updated), or give the model's directory"
        ) from error


def read(directory: Path) -> tuple[str, Predictor]:
    """Return (task, predictor) of a directory; one without task.json is a language model, as in `transformers`."""
    from gpt2.store.model_files import NAME, inside, read_task
    from gpt2.tasks.task import kind

    for path in directory.iterdir():
        if NAME.fullmatch(path.name):
            inside(path)
    name = read_task(directory)["task"]
    return name, kind(name).predictor(directory)
