"""Evaluation on the cluster's workers: a model's directory and its held-out examples in, a report's directory out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.batch.tokenization import kept_masks, pieces_of
from cluster.connect import spread
from cluster.registry.lineage import PARENT, ancestors, canaries_in, published, wanted
from gpt2.data.config import CanaryConfig
from gpt2.data.shards import read_piece
from gpt2.data.splits import is_validation
from gpt2.evaluation import contamination
from gpt2.evaluation.contamination import Hit, Index
from gpt2.store.artifact import Artifact, DamagedArtifact, Store, read_manifest
from gpt2.store.model_files import MODEL
from gpt2.tasks.task import task
from gpt2.training.journal import JOURNAL
from gpt2.training_job import TokenFiles

UNITS, OTHERS = "_units.parquet", "_others.parquet"
MAX_DOCUMENTS = 20_000
"""Held-out documents that are looked for, at most: a share can't be told much better from more."""
PIECES = 16
"""Pieces of documents that a worker searches at a time."""
BATCH = 1024
Piece = tuple[str, np.ndarray | None]
"""A file of texts, and which of them are kept; all, where they are no documents."""


def document_contamination(tokens: Artifact, out: Path) -> dict[str, Any]:
    """Of the held-out documents of the text that the tokens were made from."""
    pieces, total = documents(tokens), tokens.info["validation_documents"]
    share = tokens.manifest["spec"]["validation_share"]
    chosen = share * min(1.0, MAX_DOCUMENTS / max(1, total))
    rows = [
        (mark.hex(), text)
        for path, keep in pieces
        for texts, marks in read_piece(path, keep)
        for text, mark in zip(texts, marks, strict=True)
        if is_validation(mark, chosen)
    ]
    ids, texts = [id for id, _ in rows], [text for _, text in rows]
    return search(tokens, pieces, ids, texts, [], "document", total, out)


def task_contamination(name: str, tokens: Artifact, examples: Artifact, out: Path) -> dict[str, Any]:
    """Of the task's test split, in the text that the tokens were made from and in the task's other examples."""
    kind = task(name)
    train, validation, test = (kind.texts(examples.path, split) for split in ("train", "validation", "test"))
    pieces, ids = documents(tokens) if test else [], range(len(test))
    return search(tokens, pieces, ids, test, [*train, *validation], "text", len(test), out)


def documents(tokens: Artifact) -> list[tuple[Path, np.ndarray]]:
    """(piece, which of its documents are kept) of all text that the tokens hold; `DamagedArtifact` where some is
    gone."""
    root = Store(tokens.path.parent.parent)
    masked: list[tuple[Path, np.ndarray]] = []
    for part in ancestors(root, tokens):
        corpus = wanted(root, "corpus", part.manifest["inputs"]["corpus"], part)
        ids = [id for name, id in sorted(corpus.manifest["inputs"].items()) if name != PARENT]
        pieces = [piece for id in ids for piece in pieces_of(wanted(root, "documents", id, corpus))]
        masked += zip(pieces, kept_masks(corpus), strict=True)
    return masked


def search(
    tokens: Artifact,
    pieces: Sequence[tuple[Path, np.ndarray]],
    ids: Sequence[str | int],
    texts: Sequence[str],
    others: Sequence[str],
    unit: str,
    total: int,
    out: Path,
) -> dict[str, Any]:
    """Look for the texts, spread over the workers; write what was found to `out`."""
    share, path = tokens.manifest["spec"]["validation_share"], str(out / UNITS)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
    files: list[Piece] = [(str(piece), keep) for piece, keep in pieces]
    calls = [
        (path, contamination.CORPUS, files[start : start + PIECES], share) for start in range(0, len(files), PIECES)
    ]
    if others:
        pq.write_table(pa.table({"text": pa.array(others, pa.string())}), out / OTHERS)
        calls.append((path, contamination.OTHERS, [(str(out / OTHERS), None)], share))
    hits = [hit for batch in spread(search_one, calls) for hit in batch] if texts else []
    facts = contamination.summary(ids, texts, hits, unit, total)
    contamination.write(facts, out)
    return {"units": facts["units"], "contaminated": len(facts["contaminated"]), contamination.METRIC: facts["share"]}


def search_one(units: str, source: str, pieces: Sequence[Piece], share: float) -> list[tuple[str, Hit]]:
    """On a worker: what these pieces' training texts have."""
    index = Index(pq.read_table(units).column("text").to_pylist())
    hits: dict[tuple[int, str], Hit] = {}
    for path, keep in pieces:
        for texts in training_texts(Path(path), keep, share):
            for hit in index.search(texts):
                hits.setdefault(hit[:2], hit)
    return [(source, hit) for hit in hits.values()]


def training_texts(path: Path, keep: np.ndarray | None, share: float) -> Iterator[list[str]]:
    """A piece's texts that are trained on, some at a time."""
    if keep is None:
        yield from (b.column("text").to_pylist() for b in pq.ParquetFile(path).iter_batches(BATCH, columns=["text"]))
        return
    for texts, marks in read_piece(path, keep):
        yield [text for text, mark in zip(texts, marks, strict=True) if not is_validation(mark, share)]


def token_files(tokens: Artifact) -> TokenFiles:
    """The shards of a tokens artifact, as absolute paths: first those of the artifacts that it goes on from.

    `DamagedArtifact` where one of these, or a shard, is gone.
    """
    root = Store(tokens.path.parent.parent)
    listings = [json.loads(t.file("tokens.json").read_text()) for t in ancestors(root, tokens)]
    splits = {s: [str(root.root / p) for listing in listings for p in listing[s]] for s in ("train", "validation")}
    for path in (p for paths in splits.values() for p in paths):
        if not Path(path).is_file():
            raise DamagedArtifact(
                f"{path}, a shard of tokens/{tokens.id}, is missing; bring it back, or tokenize again"
            )
    replayed = sum(len(listing["train"]) for listing in listings[:-1])
    return TokenFiles(dtype=listings[-1]["dtype"], replayed=replayed, **splits)


def evaluate_base(
    model: Path,
    tokens: Artifact,
    searched: Artifact,
    context: int,
    out: Path,
    beside: Mapping[str, Mapping[str, float]] | None = None,
    reads: int | None = None,
) -> dict[str, Any]:
    """Evaluate a pretrained model on the validation split, of which `searched` tells what the training text has;
    `beside` has other models' metrics on it, by their name. Of canaries in the text, what it knows of them.

    With `reads`, a model of another run: it reads so many tokens at once, of its own tokenizer.
    """
    root = Store(tokens.path.parent.parent)
    planted = canaries_in(ancestors(root, tokens)[0])
    files, info, read = token_files(tokens), dict(tokens.info), passes(model, tokens)
    tokenizer = tokens.manifest["inputs"]["tokenizer"]
    own = (wanted(root, "tokenizer", tokenizer, tokens).path, reads) if reads else None
    remarks = unsearched(root, (read_manifest(model) or {}).get("id"))
    arguments = (model, files, info, searched.path, context, out, dict(beside or {}), planted, read, own, remarks)
    return next(iter(spread(_evaluate_base, [arguments])))


def evaluate_task(name: str, model: Path, examples: Artifact, searched: Artifact, out: Path) -> dict[str, Any]:
    """Evaluate a task's model on the test split, of which `searched` tells what the training text has."""
    base = (read_manifest(model) or {}).get("inputs", {}).get("base")
    remarks = unsearched(Store(examples.path.parent.parent), base)
    return next(iter(spread(_evaluate_task, [(name, model, examples.path, searched.path, out, remarks)])))


def unsearched(root: Store, base: str | None) -> list[str]:
    """What a report says of an imported base model; nothing of one that was trained here."""
    source = published(root, root.get("base", base)) if base else None
    if source is None:
        return []
    return [
        f"The base model was imported from {source}: what it learned from there is not known here and was not searched "
        f"for what is held out."
    ]


def passes(model: Path, tokens: Artifact) -> float | None:
    """How often the model's training read these tokens; None where its records don't say so simply: it read others,
    or went on from another model."""
    manifest = read_manifest(model) or {}
    steps, spec = manifest.get("info", {}).get("steps"), manifest.get("spec", {})
    if manifest.get("inputs", {}).get("tokens") != tokens.id or "refresh" in spec or steps is None:
        return None
    train = spec["train"]
    return steps * train["batch_size"] * train["context"] / max(1, tokens.info["train_tokens"])


def _evaluate_base(
    path: Path,
    files: TokenFiles,
    info: dict[str, Any],
    searched: Path,
    context: int,
    out: Path,
    beside: dict[str, Any],
    planted: CanaryConfig,
    read: float | None,
    own: tuple[Path, int] | None = None,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    from gpt2.evaluation import contamination, report
    from gpt2.tasks.base import exposure
    from gpt2.tasks.base import report as base_report
    from gpt2.training.journal import read_journal
    from gpt2.training_job import token_dataset

    parts = {"": (token_dataset(files, "validation", context), bytes_per_token(info))}
    if files.replayed:  # forgetting shows in the old text
        new = {name: info[f"new_{name}"] for name in VALIDATION}
        old = {name: info[name] - new[name] for name in VALIDATION}
        halves = zip(("old", "new"), files.old_and_new(), (old, new), strict=True)
        parts = {name: (token_dataset(half, "validation", context), bytes_per_token(c)) for name, half, c in halves}
    training = token_dataset(files, "train", context)
    if own is None:
        content = base_report.evaluate(path / MODEL, parts, training, out)
    else:
        content = base_report.evaluate_by_own_tokens(path / MODEL, *own, parts, training, out)
    content["baselines"] |= beside
    content = contamination.attached(content, contamination.read(searched))
    content["remarks"] += remarks
    if planted.count and own is None:
        content = exposure.attached(content, exposure.measured(path / MODEL, planted, read))
    return report.write({**content, "curve": read_journal(path / JOURNAL)}, out)


VALIDATION = ("validation_bytes", "validation_tokens")


def bytes_per_token(counts: Mapping[str, int]) -> float:
    """Of the validation split."""
    size, tokens = (counts[name] for name in VALIDATION)
    return size / max(1, tokens)


def _evaluate_task(
    name: str, path: Path, examples: Path, searched: Path, out: Path, remarks: Sequence[str] = ()
) -> dict[str, Any]:
    from gpt2.evaluation import contamination, report
    from gpt2.tasks.task import task
    from gpt2.training.journal import read_journal

    content = contamination.attached(task(name).evaluate(path / MODEL, examples, out), contamination.read(searched))
    content["remarks"] += remarks
    return report.write({**content, "curve": read_journal(path / JOURNAL)}, out)
