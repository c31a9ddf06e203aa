"""Texts that a registered model writes, shown as they come."""

from __future__ import annotations

import warnings
from typing import Any

from rich.console import Console

from gpt2.loading import LoadedModel


def show(model: LoadedModel, prompt: str, params: dict[str, Any], out: Console, err: Console) -> None:
    """Print the prompt and its continuation, piece by piece where `out` is a terminal; notes go to `err`."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        stream = getattr(model.predictor, "stream", None)
        if stream and out.is_terminal and params["samples"] == 1:
            out.file.write(prompt)
            for piece in stream(prompt, params):
                out.file.write(piece)
                out.file.flush()
            out.file.write("\n")
        else:
            for text in model.predict([prompt], **params)["text"]:
                out.print(prompt + text, highlight=False, markup=False, soft_wrap=True)
    for note in told:
        if note.category is UserWarning and "tokens are read" in str(note.message):
            err.print(f"note: {note.message}", highlight=False, markup=False, soft_wrap=True)
