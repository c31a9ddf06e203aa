"""The pretrained model itself: how well it predicts held-out text, and the texts that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import metrics
from gpt2.base_kind import BASE, PROMPTS
from gpt2.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from gpt2.batches import TokenDataset
    from gpt2.model import GPT2

SAMPLE_TOKENS = 60
FEW = 20
"""Of fewer documents than this nothing can be said by drawing some."""
ROWS = 1024
"""Positions whose logits are held at once."""


def evaluate(
    directory: Path, validation: Mapping[str, tuple[TokenDataset, float]], training: TokenDataset, out: Path
) -> dict[str, Any]:
    """The report of a pretrained model on the whole validation split, beside a unigram model of the training split.

    `validation` has the split's parts, {name: (samples, UTF-8 bytes per token)}; of several, each has its bits per
    byte as well.
    """
    from gpt2 import weights

    model, tokenizer = weights.load(directory), Tokenizer.load(directory)
    model.eval()
    parts = {name: part for name, part in validation.items() if len(part[0])}
    return reported(model, tokenizer, measured(model, parts, training, tokenizer.end_of_text), out)


def reported(model: GPT2, tokenizer: Tokenizer, predictions: pd.DataFrame, out: Path) -> dict[str, Any]:
    """The report that follows from the rows of `rows_of`, which are written beside it, and what the model writes."""
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
        **BASE.evidence(predictions).summary(),
    }


def written(model: GPT2, tokenizer: Tokenizer, prompts: list[list[int]]) -> tuple[list[str], float]:
    """Continuations of `PROMPTS`, and the seconds that a token took."""
    import time

    from gpt2.generate import generate

    room = min(SAMPLE_TOKENS, model.config.n_positions - max(map(len, prompts)))
    began = time.perf_counter()
    found = generate(model, tokenizer.end_of_text, prompts, room, temperature=0.8, top_k=50)
    seconds = (time.perf_counter() - began) / max(1, sum(map(len, found)))
    return [f"{p}{tokenizer.decode(ids)}" for p, ids in zip(PROMPTS, found, strict=True)], seconds


def measured(
    model: GPT2, parts: Mapping[str, tuple[TokenDataset, float]], training: TokenDataset, end_of_text: int
) -> pd.DataFrame:
    """A row per document of the validation split: `part`, `tokens`, `bytes`, `nll` (nats) of the model and of the
    unigrams. Of fewer than `FEW` documents, a row per sample instead. A document's bytes are its tokens' share of the
    split's."""
    import pandas as pd

    unigram = unigram_nll(training, model.config.vocab_size)
    found = [
        rows_of(name, data, ratio, token_losses(model, data), unigram, end_of_text)
        for name, (data, ratio) in parts.items()
    ]
    return pd.concat(found, ignore_index=True)


def rows_of(
    part: str, data: TokenDataset, ratio: float, losses: np.ndarray, unigram: np.ndarray, end_of_text: int
) -> pd.DataFrame:
    """The rows of `measured` for one part, from the model's (targets,) losses and the unigrams' (vocabulary,), in nats;
    `ratio` is the UTF-8 bytes per token."""
    import numpy as np
    import pandas as pd

    from gpt2.significance import by_unit

    targets = data.stream.read(1, len(losses))
    document = np.cumsum(targets == end_of_text) - (targets == end_of_text)  # its end belongs to it
    unit, of = (document, "document") if document[-1] + 1 >= FEW else (np.arange(len(losses)) // data.context, "sample")
    rows = by_unit(np.stack([np.ones(len(losses)), losses, unigram[targets]], axis=1), unit)
    facts = {"unit": of, "part": part, "tokens": rows[:, 0].astype(int), "bytes": rows[:, 0] * ratio}
    return pd.DataFrame({**facts, "nll": rows[:, 1], f"nll of {BASE.floor}": rows[:, 2]})


def token_losses(model: GPT2, samples: TokenDataset) -> np.ndarray:
    """(tokens,) negative log-likelihoods (nats) of all samples' targets, in order."""
    import numpy as np
    import torch

    found = []
    with torch.inference_mode():
        for start in range(0, len(samples), 16):
            batch = samples.batch(range(start, min(start + 16, len(samples))), 0)
            hidden = model.hidden(batch["ids"]).flatten(0, 1)
            for part, goal in zip(hidden.split(ROWS), batch["targets"].flatten().split(ROWS), strict=True):
                loss = torch.nn.functional.cross_entropy(model.logits(part).float(), goal, reduction="none")
                found.append(loss.double().numpy())
    return np.concatenate(found)


def unigram_nll(training: TokenDataset, vocab_size: int) -> np.ndarray:
    """(vocabulary,) negative log-likelihood (nats) of each token by the training split's counts, one added to each."""
    import numpy as np

    counts = np.ones(vocab_size)
    for part in training.stream.parts:
        counts += np.bincount(part, minlength=vocab_size)
    return -np.log(counts / counts.sum())
