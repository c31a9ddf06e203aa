"""A model's directory: config.json and model.safetensors, in GPT-2's layout where it can hold the model, and task.json.

PyTorch is loaded by `save` and `load` alone: whoever needs names or task.json does without.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import hub, modelfiles
from gpt2.config import ModelConfig

if TYPE_CHECKING:
    import torch

    from gpt2.model import GPT2
    from gpt2.tokenizer import Tokenizer

MODEL = "model"
"""The folder of a training's output, or of an artifact, that is the model's directory."""
TASK_FILE = "task.json"
"""The file that names the kind of the model, with what its predictor needs to know besides."""
BASE_NAME = "base"
"""The kind of a pretrained model, and of a directory without `TASK_FILE`, as `transformers` writes it."""
LAYOUT = "gpt2_pipeline"
"""`model_type` of a model that `transformers` has no class for."""


def write_task(out: Path, kind: str, /, **facts: Any) -> None:
    """Write task.json: the model's kind, and the facts that its predictor reads."""
    told = {"task": kind, **facts}
    (out / TASK_FILE).write_text(json.dumps(told, indent=1 if facts else None))


def read_task(directory: Path) -> dict[str, Any]:
    """Return the facts of task.json, the kind as `task`; without the file they are a pretrained model's.

    `ValueError` for a file that is no JSON object, is not safe to read, or names no kind.
    """
    path = directory / TASK_FILE
    if not path.exists():
        return {"task": BASE_NAME}
    facts = modelfiles.read_json(path)
    if not isinstance(facts, dict) or not isinstance(facts.get("task"), str):
        raise ValueError(f"{path} does not name a task; give the directory that a training wrote")
    return facts


def save(model: GPT2, directory: Path, dtype: torch.dtype | None = None, tokenizer: Tokenizer | None = None) -> None:
    """Write the model, in fp32 by default; `transformers` reads the directory where the architecture is GPT-2's.

    With its tokenizer, that is written beside it, and config.json tells which it is: no other loads with the model.
    The LoRA in use is merged into it and written beside it, too; a prefix, which no matrix can hold, only beside it.
    """
    import torch
    from safetensors.torch import save_file

    from gpt2 import adapters, huggingface

    dtype = dtype or torch.float32
    for name in model.adaptations:
        if any(module.active == name for _, module in adapters.carriers(model)):
            adapters.save(model, Path(directory), name)
    if tokenizer is not None:
        tokenizer.check(model.config.vocab_size)
        tokenizer.save(Path(directory))
    model = adapters.plain(model)
    if not model.config.beyond_gpt2():
        huggingface.save(model, directory, dtype, tokenizer)
        return
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"model_type": LAYOUT, "architecture": model.config.model_dump(mode="json")}
    config |= {} if tokenizer is None else tokenizer.record
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: value.detach().to("cpu", dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def load(source: Path | str) -> GPT2:
    """The model in a directory that `save` or `transformers` wrote, in fp32 on the CPU, with its prefix if it has one.

    A string may be the id of a model on the hub, whose local cache has it (`gpt2.hub.folder` fetches). No code of the
    model's is executed (`gpt2.files`). Raises `ValueError` naming the file and what is wrong with it.
    """
    from gpt2 import adapters

    directory = hub.folder(source) if isinstance(source, str) else source
    model = _load(directory)
    adapter = adapters.read(directory)
    if adapter and adapter.kind == "prefix":  # LoRA is in the matrices
        adapters.load(model, directory)
    return model


def _load(directory: Path) -> GPT2:
    import torch

    from gpt2 import files, huggingface
    from gpt2.model import GPT2

    path = directory / "config.json"
    values = modelfiles.read_json(path)
    if not isinstance(values, dict) or values.get("model_type") != LAYOUT:
        return huggingface.load(directory)
    config = modelfiles.validated(ModelConfig, values.get("architecture"), path)
    path, found = files.weights(directory)
    with torch.device("meta"):  # shapes only: the file's tensors become the parameters
        model = GPT2(config)
    files.check(path, found, model.state_dict())
    model.load_state_dict({name: value.float() for name, value in found.items()}, assign=True)
    return model
