"""A language model on another run's held-out text: read with a tokenizer, or at a context, of its own.

Ids of one tokenizer say nothing to a model of another, and positions beyond those that it was trained at nothing to any
model. The text, its parts and its units stay the run's, so that both models are measured on the same bytes, in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2 import language_model
from gpt2.batches import TokenDataset
from gpt2.shards import TokenStream
from gpt2.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2.model import GPT2


def evaluate_by_own_tokens(
    directory: Path,
    tokenizer: Path,
    context: int,
    validation: Mapping[str, tuple[TokenDataset, float]],
    training: TokenDataset,
    out: Path,
) -> dict[str, Any]:
    """The report of `gpt2.language_model.evaluate`, of a model that reads `context` tokens of its own at once.

    `tokenizer` is where that of the tokens in `validation` and `training` lies. Units and their bytes are those of
    the run's own model; loss and perplexity are per token of the run. `ValueError` where the context is longer than the
    model's positions.
    """
    import pandas as pd

    from gpt2 import weights

    model, own, theirs = weights.load(directory), Tokenizer.load(directory), Tokenizer.load(tokenizer)
    model.eval()
    other = own.record != theirs.record
    parts = {name: part for name, part in validation.items() if len(part[0])}
    unigram = language_model.unigram_nll(training, theirs.vocab_size)
    found = []
    for name, (data, ratio) in parts.items():
        losses = losses_of_targets(model, own, theirs, context, data, out / f"_read{name}.bin")
        found.append(language_model.rows_of(name, data, ratio, losses, unigram, theirs.end_of_text))
    content = language_model.reported(model, own, pd.concat(found, ignore_index=True), out)
    return {
        **content,
        "counts": {**content["counts"], "context": context},
        "remarks": [told(context, own if other else None, theirs)],
    }


def told(context: int, own: Tokenizer | None, theirs: Tokenizer) -> str:
    """How the model read, as a sentence."""
    how = f"a tokenizer of its own, of {own.vocab_size:,} ids," if own else "the same tokenizer"
    return (
        f"Measured on the held-out text of another run, whose tokenizer has {theirs.vocab_size:,} ids: read with {how} "
        f"and {context:,} tokens at once. Bytes are the same for both; loss and perplexity are per token of that run."
    )


def losses_of_targets(
    model: GPT2, own: Tokenizer, theirs: Tokenizer, context: int, data: TokenDataset, scratch: Path
) -> np.ndarray:
    """(targets,) negative log-likelihoods (nats), by the model, of the text of each target of `data`.

    The documents are encoded with the model's tokenizer, into the file `scratch`. What the model says of a token is
    spread evenly over its bytes, the end of a document counting as one, and added up over the bytes of each target: of
    whole documents that is exact. The first token of all is not predicted, whoever reads.
    """
    ids = data.stream.read(0, len(data.stream))
    documents = np.split(ids, np.flatnonzero(ids == theirs.end_of_text) + 1)[:-1]
    with open(scratch, "wb") as file:
        for document in documents:
            text = theirs.decode(document[:-1].tolist())
            file.write(np.append(own.encode_array(text), np.uint32(own.end_of_text)).astype("<u4").tobytes())
        file.write(np.full(context, own.end_of_text, "<u4").tobytes())  # samples are whole: this fills the last
    samples = TokenDataset(TokenStream([scratch], "uint32"), context)
    losses = language_model.token_losses(model, samples)
    read = np.cumsum(sizes(own)[samples.stream.read(0, len(losses) + 1)])
    spread = np.interp(np.cumsum(sizes(theirs)[ids]), read, np.append(0.0, np.cumsum(losses)))
    return np.diff(spread)[: len(data) * data.context]


def sizes(tokenizer: Tokenizer) -> np.ndarray:
    """(ids,) bytes that each stands for; 1 of the end-of-text."""
    found = np.array([len(token) for token in tokenizer.token_bytes])
    found[tokenizer.end_of_text] = 1
    return found
