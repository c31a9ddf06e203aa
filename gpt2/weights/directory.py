"""A model's directory: config.json, model.safetensors and task.json, in GPT-2's layout if that can hold the model.

Only `save` and `load` import PyTorch: names and task.json are available without it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.model.config import ModelConfig
from gpt2.store import model_files
from gpt2.weights import huggingface as weights_huggingface

if TYPE_CHECKING:
    import torch

    from gpt2.data.tokenizer import Tokenizer
    from gpt2.model.transformer import GPT2
LAYOUT = "gpt2_pipeline"
"""`model_type` of a model for which `transformers` has no class."""


def save(model: GPT2, directory: Path, dtype: torch.dtype | None = None, tokenizer: Tokenizer | None = None) -> None:
    """Write the model, in fp32 by default; `transformers` reads the directory if the architecture is GPT-2's.

    A tokenizer is written beside it, and config.json records its hash, so that no other one loads with the model. The
    active LoRA is merged into the matrices and also written separately. A prefix does not fit into matrices and is only
    written separately.
    """
    import torch
    from safetensors.torch import save_file

    from gpt2.model import adapters as model_adapters
    from gpt2.weights import adapters as weights_adapters
    from gpt2.weights import huggingface as weights_huggingface

    dtype = dtype or torch.float32
    for name in model.adaptations:
        if any(module.active == name for _, module in model_adapters.carriers(model)):
            weights_adapters.save(model, Path(directory), name)
    if tokenizer is not None:
        tokenizer.check(model.config.vocab_size)
        tokenizer.save(Path(directory))
    model = model_adapters.plain(model)
    if not model.config.beyond_gpt2():
        weights_huggingface.save(model, directory, dtype, tokenizer)
        return
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_type": LAYOUT, "architecture": model.config.model_dump(mode="json")}
    config |= {} if tokenizer is None else tokenizer.record
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: value.detach().cpu().to(dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def load(source: Path | str) -> GPT2:
    """Return the model that `save` or `transformers` wrote, in fp32 on the CPU, with its prefix if it has one.

    A string may be the id of a model in the hub's local cache; `gpt2.weights.huggingface.folder` downloads it. No code
    of the model is executed (`gpt2.weights.tensors`). `ValueError` names the file and what is wrong with it.
    """
    from gpt2.weights import adapters as weights_adapters

    directory = weights_huggingface.folder(source) if isinstance(source, str) else source
    model = _load(directory)
    adapter = weights_adapters.read(directory)
    if adapter and adapter.kind == "prefix":  # a LoRA is already in the matrices
        weights_adapters.load(model, directory)
    return model


def _load(directory: Path) -> GPT2:
    from gpt2.model.transformer import GPT2
    from gpt2.weights import huggingface as weights_huggingface
    from gpt2.weights import tensors as weights_tensors

    path = directory / "config.json"
    values = model_files.read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != LAYOUT:
        return weights_huggingface.load(directory)
    config = model_files.validated(ModelConfig, values.get("architecture"), path)
    path, tensors = weights_tensors.weights(directory)
    with weights_tensors.shapes_only():  # the file's tensors become the parameters
        model = GPT2(config)
    weights_tensors.check(path, tensors, model.state_dict())
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return model
