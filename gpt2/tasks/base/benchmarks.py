"""Language-model benchmarks from local files: LAMBADA and HellaSwag, and any task of lm-evaluation-harness.

For LAMBADA and HellaSwag, texts are made, encoded, cut and scored as in lm-evaluation-harness 0.4.13 (Gao et al. 2024),
tasks `lambada_openai` and `hellaswag`, so figures can be put beside published ones. Other tasks are run by the harness
itself (`measure_by_harness`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2.data.tokenizer import Tokenizer
from gpt2.evaluation.significance import Bootstrap, Metric
from gpt2.model.hardware import at_once, device_for_use
from gpt2.model.heads import pack, pad
from gpt2.model.transformer import GPT2

INSTALL = "lm-eval is not installed; pip install 'gpt2-pipeline[lm-eval]'"


def measure_by_harness(
    name: str, model: Path, folder: Path, limit: int | None = None, batch_size: int = 16
) -> dict[str, Any] | str:
    """Run a task of lm-evaluation-harness; return its results, or the reason why there are none as a text.

    Results are `task`, `file`, `documents`, `metrics` and 95 % `intervals` (normal, from the harness's standard
    errors). The task is `folder/NAME.yaml` in the harness's form, with data paths relative to the folder. Without that
    file it is a task of the harness, whose data must be in the cache of `datasets`: nothing is fetched. `transformers`
    reads the model, so its architecture must be GPT-2's.
    """
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ[variable] = "1"
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        return INSTALL
    own, loaded = folder / f"{name}.yaml", {"pretrained": str(model.resolve()), "dtype": "float32"}
    device = str(device_for_use())
    try:
        with contextlib.chdir(folder):
            manager = TaskManager(include_path=str(folder.resolve()), include_defaults=not own.exists())
            outcome = lm_eval.simple_evaluate(
                model="hf", model_args=loaded, tasks=[name], task_manager=manager, limit=limit, device=device,
                batch_size=batch_size, bootstrap_iters=100, log_samples=False,
            )  # fmt: skip
    except Exception as error:  # the harness, datasets and transformers raise whatever comes up
        return f"the harness says: {type(error).__name__}: {(str(error).strip() or 'nothing more').splitlines()[0]}"
    values = outcome["results"][name]
    metrics = {k.removesuffix(",none"): float(v) for k, v in values.items() if is_metric(k, v)}
    intervals = {}
    for metric, value in metrics.items():
        deviation = values.get(f"{metric}_stderr,none")
        if isinstance(deviation, float):
            intervals[metric] = [value - 1.96 * deviation, value + 1.96 * deviation]
    documents = int(outcome["n-samples"][name]["effective"])
    source = str(own) if own.exists() else "the harness's own"
    return {"task": name, "file": source, "documents": documents, "metrics": metrics, "intervals": intervals}


def is_metric(name: str, value: Any) -> bool:
    """Return whether a result of the harness is a metric and not a standard error."""
    return "," in name and "_stderr" not in name and isinstance(value, (int, float))


Pair = tuple[str, str]
"""A context and its continuation."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: documents with one or more pairs of context and continuation each."""

    files: str
    """Pattern of its file's name."""
    pairs: Callable[[Mapping[str, Any]], list[Pair]]
    """Returns the pairs of a row of the file. Raises `KeyError` for a missing field."""
    columns: Callable[[Mapping[str, Any], list[Pair], np.ndarray, np.ndarray], list[float]]
    """Returns a document's sums from its row, its pairs, their log-likelihoods and their greedy matches."""
    metrics: Mapping[str, Metric]
    """Functions of the sums over documents; the last column counts them."""


def lambada_pairs(row: Mapping[str, Any]) -> list[Pair]:
    """Return a passage and its last word (Paperno et al. 2016)."""
    *before, last = row["text"].split(" ")
    return [(" ".join(before), " " + last)]


def hellaswag_pairs(row: Mapping[str, Any]) -> list[Pair]:
    """Return a description with each of its four endings (Zellers et al. 2019)."""
    context = plain(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    return [(context, " " + plain(ending)) for ending in row["endings"]]


def plain(text: str) -> str:
    """Return the text without the markup left over from WikiHow's pages."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def chosen(row: Mapping[str, Any], pairs: list[Pair], likelihoods: np.ndarray, greedy: np.ndarray) -> list[float]:
    """Return [right ending is the likeliest, right ending is the likeliest per character, 1], each 0 or 1."""
    size = np.array([len(ending) - 1 for _, ending in pairs])
    right = int(row["label"])
    return [float(likelihoods.argmax() == right), float((likelihoods / size).argmax() == right), 1.0]


BENCHMARKS: dict[str, Benchmark] = {
    "lambada": Benchmark(
        "lambada*.jsonl",
        lambada_pairs,
        lambda row, pairs, likelihoods, greedy: [float(greedy[0]), float(likelihoods[0]), 1.0],
        {"acc": lambda s: s[..., 0] / s[..., 2], "perplexity": lambda s: np.exp(-s[..., 1] / s[..., 2])},
    ),
    "hellaswag": Benchmark(
        "hellaswag*.jsonl",
        hellaswag_pairs,
        chosen,
        {"acc": lambda s: s[..., 0] / s[..., 2], "acc_norm": lambda s: s[..., 1] / s[..., 2]},
    ),
}


def measure(
    name: str, model: GPT2, tokenizer: Tokenizer, folder: Path, limit: int | None = None, batch_size: int = 16
) -> dict[str, Any] | str:
    """Run a benchmark; return its results, or the reason why there are none as a text.

    Results are `task`, `file`, `documents`, `metrics` and 95 % `intervals` over documents. `limit` is the number of
    documents to read, from the first. Raises `ValueError` for a row that can't be read.
    """
    benchmark = BENCHMARKS[name]
    files = sorted(folder.glob(benchmark.files))
    if not files:
        return f"there is no {benchmark.files} in {folder}"
    rows: list[dict[str, Any]] = []
    pairs_of_rows: list[list[Pair]] = []
    with open(files[0], encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and len(rows) == limit:
                break
            try:
                row = json.loads(line)
                pairs_of_rows.append(benchmark.pairs(row))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise ValueError(f"{files[0]}, line {number}: no document of {name} ({error!r}); mend it") from None
            rows.append(row)
    if not rows:
        return f"{files[0]} is empty"
    likelihoods, greedy = score(model, tokenizer, [pair for pairs in pairs_of_rows for pair in pairs], batch_size)
    columns, start = [], 0
    for row, pairs in zip(rows, pairs_of_rows, strict=True):
        part = slice(start, start + len(pairs))
        columns.append(benchmark.columns(row, pairs, likelihoods[part], greedy[part]))
        start = part.stop
    drawn = Bootstrap(np.array(columns))
    return {
        "task": name, "file": str(files[0]), "documents": len(rows),
        "metrics": {metric: drawn.value(function) for metric, function in benchmark.metrics.items()},
        "intervals": {metric: list(drawn.interval(function)) for metric, function in benchmark.metrics.items()},
    }  # fmt: skip


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Return the ids of a context and of its continuation.

    Spaces at the context's end move to the continuation. Its ids are those of the whole text after the context's. An
    empty context is replaced by end-of-text.
    """
    stripped = context.rstrip()
    continuation, context = context[len(stripped) :] + continuation, stripped
    if not context:
        ids = tokenizer.encode(continuation)
        return [tokenizer.end_of_text], ids
    before = tokenizer.encode(context)
    return before, tokenizer.encode(context + continuation)[len(before) :]


@torch.inference_mode()
def score(
    model: GPT2, tokenizer: Tokenizer, pairs: Sequence[Pair], batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """Return (n,) log-likelihoods (nats) of the continuations, and (n,) whether greedy decoding would write each.

    Texts longer than the model's positions lose their beginning. Raises `ValueError` for a continuation without tokens
    or longer than the model's positions.
    """
    room, device = model.config.n_positions, model.wte.weight.device
    rows = [encode_pair(tokenizer, *pair) for pair in pairs]
    for (_, ids), (context, continuation) in zip(rows, pairs, strict=True):
        if not 0 < len(ids) <= room:
            raise ValueError(
                f"{continuation[:80]!r} after {context[-80:]!r} has {len(ids)} tokens; 1 to {room} can be scored"
            )
    whole = [[*before, *ids][-(room + 1) :] for before, ids in rows]
    order = sorted(
        range(len(rows)), key=lambda i: -len(whole[i])
    )  # longest first: if the first batch fits in memory, all do
    likelihoods, greedy = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    model.eval()
    batch_size = at_once(model, batch_size)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        padded, lengths = pad([whole[i][:-1] for i in batch], device=device)
        tokens, packed = pack(padded, lengths)
        counts = torch.tensor([len(rows[i][1]) for i in batch], device=device)
        predicting = packed.positions >= (lengths - counts)[packed.text]  # positions before the continuation's tokens
        logits = model.logits(model.hidden(tokens, packed=packed)[predicting]).float()
        goal = torch.tensor([token for i in batch for token in rows[i][1]], device=device)
        each = logits.log_softmax(-1).gather(1, goal[:, None])[:, 0].double()
        owner, zeros = packed.text[predicting], torch.zeros(len(batch), dtype=torch.float64, device=device)
        likelihoods[batch] = zeros.index_add(0, owner, each).cpu().numpy()
        wrong = (logits.argmax(-1) != goal).double()
        greedy[batch] = (zeros.index_add(0, owner, wrong) == 0).cpu().numpy()
    return likelihoods, greedy
