"""Imports published weights, after checks: a GPT-2 and the tokenizer that it was trained with.

No code that comes with them is executed (`gpt2.weights.tensors`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import weights
from gpt2.data.config import TokenizerConfig
from gpt2.data.tokenizer import ADDED, CONFIG, FILE, MERGES, VOCABULARY, Tokenizer
from gpt2.store import model_files
from gpt2.store.artifact import IS_POINTER, LFS, file_sha256
from gpt2.store.model_files import BASE_NAME, MODEL, validated
from gpt2.weights import adapters, tensors

if TYPE_CHECKING:
    from gpt2.model.transformer import GPT2


def digests(directory: Path) -> dict[str, str]:
    """Return {name: sha256 (hex)} of the files that are read: configuration, weights and tokenizer.

    `ValueError` if one of them is missing.
    """
    whole = (directory / FILE).exists()
    added = [ADDED] if (directory / ADDED).exists() else []
    names = [
        CONFIG,
        *([FILE] if whole else [VOCABULARY, MERGES, *added]),
        *(path.name for path in tensors.places(directory)),
    ]
    for name in names:
        if not (directory / name).is_file():
            wanted = f"{FILE}, or {VOCABULARY} with {MERGES}" if name in (VOCABULARY, MERGES) else name
            raise ValueError(f"{directory / name} is missing; give a directory with {wanted}")
        with open(directory / name, "rb") as file:
            if file.read(len(LFS)) == LFS:
                raise ValueError(f"{directory / name} {IS_POINTER}")
    return {name: file_sha256(directory / name) for name in names}


def read(directory: Path) -> tuple[GPT2, Tokenizer]:
    """Return the language model in a directory and its tokenizer; rows of the embedding that pad it are left out.

    `ValueError` if they are not a GPT-2's, or don't belong together.
    """
    kind = model_files.read_task(directory)["task"]
    if kind != BASE_NAME:
        raise ValueError(f"{directory} holds a model of the task {kind!r:.100}, not a language model; give its base")
    adapter = adapters.read(directory)
    if adapter is not None:
        raise ValueError(
            f"{directory} holds an adapter ({adapter.kind}) beside the weights; give the model that it was learned on"
        )
    model, tokenizer = weights.load(directory), Tokenizer.load(directory)
    if 0 < model.config.vocab_size - tokenizer.vocab_size < PADDED_TO[1] and not model.config.vocab_size % PADDED_TO[0]:
        model = without_padding(model, tokenizer.vocab_size)
    tokenizer.check(model.config.vocab_size, f" in {directory}")
    validated(
        TokenizerConfig, {"vocab_size": tokenizer.vocab_size}, directory / CONFIG
    )  # a size that a pipeline accepts
    return model, tokenizer


PADDED_TO = (8, 128)
"""The number of rows of a padded embedding is a multiple of the first, and less than the second above the tokens'."""


def without_padding(model: GPT2, rows: int) -> GPT2:
    """Return a GPT-2 with the first rows of its embedding. Logits of those tokens are the same."""
    import torch

    from gpt2.model.transformer import GPT2

    state = model.state_dict()
    state |= {name: state[name][:rows].clone() for name in ("wte.weight", "head.weight") if name in state}
    with torch.device("meta"):
        cut = GPT2(model.config.model_copy(update={"vocab_size": rows}))
    cut.load_state_dict(state, assign=True)
    return cut


def write(directory: Path, expected: dict[str, str], out: Path) -> dict[str, Any]:
    """Write the model of a directory in our form to `out/model`; return its number of parameters.

    `ValueError` if its files are not the `expected` ones.
    """
    model, tokenizer = read(directory)
    if digests(directory) != expected:
        raise ValueError(f"the files in {directory} changed while they were read; import them again")
    weights.save(model, out / MODEL, tokenizer=tokenizer)
    model_files.write_task(out / MODEL, BASE_NAME)
    return {"parameters": model.config.n_parameters}
