"""The pretrained model's report: perplexity and bits per byte on held-out text, beside unigrams; sample texts.

A model may also be measured on another run's held-out text, with a tokenizer or at a context of its own. Ids of one
tokenizer mean nothing to a model of another, nor do positions beyond its training. The text, its parts and its units
stay the run's, so that both models are measured on the same bytes, in pairs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2.data.batches import TokenDataset
from gpt2.data.shards import TokenStream
from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation import metrics
from gpt2.store.artifact import write_atomically
from gpt2.tasks.base.kind import BASE, PROMPTS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from gpt2.data.batches import TokenDataset
    from gpt2.model.transformer import GPT2


def evaluate_by_own_tokens(
    directory: Path,
    tokenizer: Path,
    context: int,
    validation: Mapping[str, tuple[TokenDataset, float]],
    training: TokenDataset,
    out: Path,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Return the report of `evaluate` for a model that reads with its own tokenizer and `context`.

    `tokenizer` is the directory of the run's tokenizer, which encoded `validation` and `training`. Units, bytes, loss
    and perplexity refer to the run's tokens. `kept` is as in `evaluate`. Raises `ValueError` if the context exceeds the
    model's positions.
    """
    import pandas as pd

    from gpt2 import weights
    from gpt2.model.hardware import ready

    model, own, theirs = ready(weights.load(directory)), Tokenizer.load(directory), Tokenizer.load(tokenizer)
    other = own.record != theirs.record
    parts = {name: part for name, part in validation.items() if len(part[0])}
    unigram = unigram_nll(training, theirs.vocab_size)
    tables = []
    for name, (data, ratio) in parts.items():
        samples = own_samples(own, theirs, context, data, out / f"_read{name}.bin")
        read = token_losses(model, samples, kept and kept / f"losses{name}")
        losses = losses_of_targets(own, theirs, data, samples, read)
        tables.append(rows_of(name, data, ratio, losses, unigram, theirs.end_of_text))
    content = reported(model, own, pd.concat(tables, ignore_index=True), out)
    return {
        **content,
        "counts": {**content["counts"], "context": context},
        "remarks": [reading_sentence(context, own if other else None, theirs)],
    }


def reading_sentence(context: int, own: Tokenizer | None, theirs: Tokenizer) -> str:
    """Return sentences on the tokenizer and context with which the model read another run's text."""
    how = f"a tokenizer of its own, of {own.vocab_size:,} ids," if own else "the same tokenizer"
    return (
        f"Measured on the held-out text of another run, whose tokenizer has {theirs.vocab_size:,} ids. The model read "
        f"it with {how} and {context:,} tokens at once. Bytes are the same for both; loss and perplexity are per token "
        f"of that run."
    )


def own_samples(own: Tokenizer, theirs: Tokenizer, context: int, data: TokenDataset, scratch: Path) -> TokenDataset:
    """Return the documents of `data` as samples of another tokenizer and context, which are written to `scratch`."""
    ids = data.stream.read(0, len(data.stream))
    documents = np.split(ids, np.flatnonzero(ids == theirs.end_of_text) + 1)[:-1]
    with open(scratch, "wb") as file:
        for document in documents:
            text = theirs.decode(document[:-1].tolist())
            file.write(np.append(own.encode_array(text), np.uint32(own.end_of_text)).astype("<u4").tobytes())
        file.write(np.full(context, own.end_of_text, "<u4").tobytes())  # fills the last sample
    return TokenDataset(TokenStream([scratch], "uint32"), context)


def losses_of_targets(
    own: Tokenizer, theirs: Tokenizer, data: TokenDataset, samples: TokenDataset, losses: np.ndarray
) -> np.ndarray:
    """Return the (targets,) negative log-likelihoods (nats) of the text of each target of `data`.

    `losses` are those of the tokens of `samples`, the same text as `own_samples` encoded it. The loss of each token is
    spread evenly over its bytes, with one byte for the end of a document. It is then summed over the bytes of each
    target, which is exact for whole documents. The very first token is never predicted.
    """
    ids = data.stream.read(0, len(data.stream))
    read = np.cumsum(sizes(own)[samples.stream.read(0, len(losses) + 1)])
    spread = np.interp(np.cumsum(sizes(theirs)[ids]), read, np.append(0.0, np.cumsum(losses)))
    return np.diff(spread)[: len(data) * data.context]


def sizes(tokenizer: Tokenizer) -> np.ndarray:
    """Return the (ids,) number of bytes of each token; 1 for end-of-text."""
    sizes = np.array([len(token) for token in tokenizer.token_bytes])
    sizes[tokenizer.end_of_text] = 1
    return sizes


SAMPLE_TOKENS = 60
FEW = 20
"""Fewest documents that can be resampled; with fewer, the units are samples."""
ROWS = 1024
"""Number of positions whose logits are held at once."""


def evaluate(
    directory: Path,
    validation: Mapping[str, tuple[TokenDataset, float]],
    training: TokenDataset,
    out: Path,
    kept: Path | None = None,
) -> dict[str, Any]:
    """Return the report of a pretrained model on the validation split, beside a unigram model of the training split.

    `validation` holds the split's parts, {name: (samples, UTF-8 bytes per token)}. If there are several, each part's
    bits per byte are reported as well. `kept` is a folder with the losses that were computed before (`piece_losses`).
    """
    from gpt2 import weights
    from gpt2.model.hardware import ready

    model, tokenizer = ready(weights.load(directory)), Tokenizer.load(directory)
    parts = {name: part for name, part in validation.items() if len(part[0])}
    return reported(model, tokenizer, measured(model, parts, training, tokenizer.end_of_text, kept), out)


def reported(model: GPT2, tokenizer: Tokenizer, predictions: pd.DataFrame, out: Path) -> dict[str, Any]:
    """Return the report of the rows of `rows_of`, with samples of the model's texts; write the rows to `out`."""
    predictions.to_parquet(out / "predictions.parquet", index=False)
    tokens, size = int(predictions["tokens"].sum()), float(predictions["bytes"].sum())
    each = {}
    if any(predictions["part"] != ""):  # old and new text
        for name, part in predictions.groupby("part", sort=False):
            figures = metrics.language_model(part["nll"].sum(), part["tokens"].sum(), part["bytes"].sum())
            each[f"{BASE.primary}_{name}"] = figures[BASE.primary]
    prompts = [tokenizer.encode(p) for p in PROMPTS]
    samples, seconds = written(model, tokenizer, prompts)
    latency = round(1000 * seconds, 3)
    return {
        "task": BASE.name,
        "title": BASE.title,
        "primary": {"name": BASE.primary, "higher_is_better": BASE.higher_is_better},
        "floor": BASE.floor,
        "metrics": metrics.language_model(predictions["nll"].sum(), tokens, size) | each,
        "baselines": {BASE.floor: metrics.language_model(predictions[f"nll of {BASE.floor}"].sum(), tokens, size)},
        "counts": {"parameters": model.config.n_parameters, "validation_tokens": tokens},
        "samples": {"Texts that the model writes": samples},
        "figures": [],
        "cost": {"parameters": model.config.n_parameters, "latency_ms": latency, "of": "a token"},
        **BASE.unit_results(predictions).summary(),
    }


def written(model: GPT2, tokenizer: Tokenizer, prompts: list[list[int]]) -> tuple[list[str], float]:
    """Return continuations of `PROMPTS`, and the time per token (seconds)."""
    import time

    from gpt2.generation.generate import generate

    room = min(SAMPLE_TOKENS, model.config.n_positions - max(map(len, prompts)))
    began = time.perf_counter()
    continuations = generate(model, tokenizer.end_of_text, prompts, room, temperature=0.8, top_k=50)
    seconds = (time.perf_counter() - began) / max(1, sum(map(len, continuations)))
    return [f"{p}{tokenizer.decode(ids)}" for p, ids in zip(PROMPTS, continuations, strict=True)], seconds


def measured(
    model: GPT2,
    parts: Mapping[str, tuple[TokenDataset, float]],
    training: TokenDataset,
    end_of_text: int,
    kept: Path | None = None,
) -> pd.DataFrame:
    """Return a row per document of the validation split: `part`, `tokens`, `bytes`, and `nll` (nats) of both models.

    With fewer than `FEW` documents there is a row per sample instead. A document's bytes are its tokens times the
    split's bytes per token.
    """
    import pandas as pd

    unigram = unigram_nll(training, model.config.vocab_size)
    tables = [
        rows_of(name, data, ratio, token_losses(model, data, kept and kept / f"losses{name}"), unigram, end_of_text)
        for name, (data, ratio) in parts.items()
    ]
    return pd.concat(tables, ignore_index=True)


def rows_of(
    part: str, data: TokenDataset, ratio: float, losses: np.ndarray, unigram: np.ndarray, end_of_text: int
) -> pd.DataFrame:
    """Return the rows of `measured` for one part.

    `losses` are the model's (targets,) and `unigram` the baseline's (vocabulary,) negative log-likelihoods (nats).
    `ratio` is the UTF-8 bytes per token.
    """
    import numpy as np
    import pandas as pd

    from gpt2.evaluation.significance import by_unit

    targets = data.stream.read(1, len(losses))
    document = np.cumsum(targets == end_of_text) - (targets == end_of_text)  # its end belongs to it
    enough = document[-1] + 1 >= FEW
    unit, name = (document, "document") if enough else (np.arange(len(losses)) // data.context, "sample")
    rows = by_unit(np.stack([np.ones(len(losses)), losses, unigram[targets]], axis=1), unit)
    facts = {"unit": name, "part": part, "tokens": rows[:, 0].astype(int), "bytes": rows[:, 0] * ratio}
    return pd.DataFrame({**facts, "nll": rows[:, 1], f"nll of {BASE.floor}": rows[:, 2]})


def bounded(data: TokenDataset, most: int, end_of_text: int, scratch: Path) -> TokenDataset:
    """Return samples of at most `most` tokens: whole documents, evenly drawn, which are written to `scratch`.

    All samples are returned if they are no more. If so few tokens are fewer than `FEW` documents, they are the first
    ones.
    """
    if len(data.stream) <= most:
        return data
    shards = list(zip(data.stream.ends - [len(part) for part in data.stream.parts], data.stream.parts, strict=True))
    places = np.concatenate([[0], *(first + np.flatnonzero(part == end_of_text) + 1 for first, part in shards)])
    share, chosen = most / len(data.stream), np.arange(len(places) - 1)
    while np.diff(places)[chosen].sum() > most:
        chosen = np.flatnonzero(np.diff(np.floor(np.arange(len(places)) * share)) > 0)
        share *= 0.99
    pairs = zip(places[chosen], places[chosen + 1], strict=True) if len(chosen) >= FEW else [(0, most)]
    with open(scratch, "wb") as file:
        for start, end in pairs:
            file.write(
                data.stream.read(int(start), int(end - start))
                .astype(np.dtype(data.stream.dtype).newbyteorder("<"))
                .tobytes()
            )
    return TokenDataset(TokenStream([scratch], data.stream.dtype), data.context)


def bounded_sentence(read: int, total: int) -> str:
    """Return the report's sentence on the held-out tokens that were left out."""
    return (
        f"Measured on {read:,} of {total:,} held-out tokens, in whole documents that were evenly drawn "
        f"(evaluate.max_tokens). The intervals say what that leaves open."
    )


AT_ONCE = 16
"""Number of samples that the model reads at once on a CPU."""
PIECE = 8192
"""Least number of tokens of a piece: the work that a worker does in one call, and that a kill can lose."""


def pieces(samples: TokenDataset) -> list[range]:
    """Return the samples in pieces, each of whole batches: so the losses are the same to the bit for any workers."""
    size = AT_ONCE * -(-PIECE // (AT_ONCE * samples.context))
    return [range(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]


def piece_file(kept: Path, piece: range) -> Path:
    """Return the file of a piece's losses in the folder `kept`."""
    return kept / f"{piece.start:09d}.npy"


def token_losses(model: GPT2, samples: TokenDataset, kept: Path | None = None) -> np.ndarray:
    """Return (tokens,) negative log-likelihoods (nats) of all samples' targets, in order.

    Pieces in the folder `kept` are not computed again.
    """
    return np.concatenate([piece_losses(model, samples, piece, kept) for piece in pieces(samples)])


def piece_losses(model: GPT2, samples: TokenDataset, piece: range, kept: Path | None = None) -> np.ndarray:
    """Return (tokens,) negative log-likelihoods (nats) of a piece's targets, and keep them in the folder `kept`."""
    import torch

    from gpt2.model.hardware import at_once, device_of, to_device

    file = kept and piece_file(kept, piece)
    if file and file.exists():
        return np.load(file, allow_pickle=False)
    losses, step = [], at_once(model, AT_ONCE)
    with torch.inference_mode():
        for start in range(piece.start, piece.stop, step):
            batch = samples.batch(range(start, min(start + step, piece.stop)), 0)
            batch = to_device(batch, device_of(model))
            hidden = model.hidden(batch["ids"]).flatten(0, 1)
            for part, goal in zip(hidden.split(ROWS), batch["targets"].flatten().split(ROWS), strict=True):
                loss = torch.nn.functional.cross_entropy(model.logits(part).float(), goal, reduction="none")
                losses.append(loss.double().cpu().numpy())
    found = np.concatenate(losses)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole = io.BytesIO()
        np.save(whole, found, allow_pickle=False)
        write_atomically(file, whole.getvalue())
    return found


def unigram_nll(training: TokenDataset, vocab_size: int) -> np.ndarray:
    """Return (vocabulary,) negative log-likelihoods (nats) of tokens by the training split's counts, each plus one."""
    import numpy as np

    counts = np.ones(vocab_size)
    for part in training.stream.parts:
        counts += np.bincount(part, minlength=vocab_size)
    return -np.log(counts / counts.sum())
