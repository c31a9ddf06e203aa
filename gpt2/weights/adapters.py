"""An adapter on disk: adapter.safetensors, saved, read, and loaded onto a model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gpt2.model.adapters import NAME, add, carriers, remove, tensors
from gpt2.model.config import AdaptationConfig
from gpt2.model.transformer import GPT2
from gpt2.store.model_files import inside, validated
from gpt2.weights import tensors as weights_tensors

FILE = "adapter.safetensors"


def save(model: GPT2, directory: Path, name: str = NAME) -> None:
    """Write an adapter alone to `adapter.safetensors`; it fits the model that it was made on."""
    if name not in model.adaptations:
        raise ValueError(f"the model has no adapter {name!r}; it has {', '.join(model.adaptations) or 'none'}")
    directory.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(model.adaptations[name].identity())
    save_file(tensors(model, name), directory / FILE, metadata={"format": "pt", "adaptation": settings})


def read(directory: Path) -> AdaptationConfig | None:
    """Return the settings of the adapter in a directory; None if there is none.

    `ValueError` if the file can't be read as an adapter.
    """
    path = Path(directory) / FILE
    if not path.exists() and not path.is_symlink():
        return None
    inside(path)
    try:
        with safe_open(path, framework="pt") as file:
            settings = json.loads((file.metadata() or {})["adaptation"])
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read as an adapter: {error}; was it made by another tool?") from None
    return validated(AdaptationConfig, settings, path)


def load(model: GPT2, directory: Path, name: str = NAME) -> None:
    """Add the adapter that `save` wrote to the model, under a name, and use it.

    `ValueError` names the file and what is wrong with it; the model is then unchanged.
    """
    path, config = Path(directory) / FILE, read(directory)
    if config is None:
        raise ValueError(f"{path} is missing; give a directory with an adapter, made with kind lora or prefix")
    found, generator = weights_tensors.read(path), torch.get_rng_state()
    try:
        add(model, config, name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    finally:
        torch.set_rng_state(generator)
    try:
        weights_tensors.check(path, found, tensors(model, name), "was it made on a model of this shape?")
    except ValueError:
        remove(model, name)
        raise
    for carrier, module in carriers(model):
        if name in module.adapters:
            adapter = module.adapters[name]
            adapter.load_state_dict({key: found[f"{carrier}.{key}"] for key in adapter.state_dict()})
