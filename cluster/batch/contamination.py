"""Contamination search on the cluster's workers: which held-out texts the training text gives away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.batch.tokenization import kept_masks, pieces_of
from cluster.connect import spread
from cluster.home import store
from cluster.registry.lineage import PARENT, ancestors, wanted
from gpt2.data.shards import read_piece
from gpt2.data.splits import is_validation
from gpt2.evaluation import contamination
from gpt2.evaluation.contamination import Hit, Index
from gpt2.store.artifact import Artifact, Store
from gpt2.tasks.task import task

UNITS, OTHERS = "_units.parquet", "_others.parquet"
MAX_DOCUMENTS = 20_000
"""Most held-out documents that are searched for. More would hardly make the contaminated share more precise."""
PIECES = 16
"""Pieces of documents that a worker searches in one call."""
BATCH = 1024
Piece = tuple[str, np.ndarray | None]
"""A file of texts, and which of them are kept; None for all, in files that are not documents."""


def search_documents(tokens: Artifact, out: Path) -> dict[str, Any]:
    """Search the training text of the tokens for its held-out documents; write the result to `out` and return its
    counts."""
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
    return search_texts(tokens, pieces, ids, texts, [], "document", total, out)


def search_examples(name: str, tokens: Artifact, examples: Artifact, out: Path) -> dict[str, Any]:
    """Search the training text of the tokens, and the task's other examples, for the task's test split.

    Writes the result to `out` and returns its counts.
    """
    kind = task(name)
    train, validation, test = (kind.texts(examples.path, split) for split in ("train", "validation", "test"))
    pieces, ids = documents(tokens) if test else [], range(len(test))
    return search_texts(tokens, pieces, ids, test, [*train, *validation], "text", len(test), out)


def documents(tokens: Artifact) -> list[tuple[Path, np.ndarray]]:
    """Return (piece, which of its documents are kept) of all text in the tokens; raises `DamagedArtifact` if some is
    missing."""
    root = tokens.store or store()
    masked: list[tuple[Path, np.ndarray]] = []
    for part in ancestors(root, tokens):
        corpus = wanted(root, "corpus", part.manifest["inputs"]["corpus"], part)
        ids = [id for name, id in sorted(corpus.manifest["inputs"].items()) if name != PARENT]
        pieces = [piece for id in ids for piece in pieces_of(wanted(root, "documents", id, corpus))]
        masked += zip(pieces, kept_masks(corpus), strict=True)
    return masked


def search_texts(
    tokens: Artifact,
    pieces: Sequence[tuple[Path, np.ndarray]],
    ids: Sequence[str | int],
    texts: Sequence[str],
    others: Sequence[str],
    unit: str,
    total: int,
    out: Path,
) -> dict[str, Any]:
    """Search the pieces and `others` for the texts, on the workers; write the result to `out` and return its counts."""
    root, share = tokens.store or store(), tokens.manifest["spec"]["validation_share"]
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), out / UNITS)
    units_of, files = root.hand(out / UNITS), [(root.name(piece), keep) for piece, keep in pieces]
    calls: list[tuple[Any, ...]] = [
        (root, units_of, contamination.CORPUS, files[start : start + PIECES], share)
        for start in range(0, len(files), PIECES)
    ]
    if others:
        pq.write_table(pa.table({"text": pa.array(others, pa.string())}), out / OTHERS)
        calls.append((root, units_of, contamination.OTHERS, [(root.hand(out / OTHERS), None)], share))
    hits = [hit for batch in spread(search_one, calls) for hit in batch] if texts else []
    for name in {units_of, *(piece for call in calls for piece, _ in call[3])}:
        root.forget(name)
    facts = contamination.summary(ids, texts, hits, unit, total)
    contamination.write(facts, out)
    return {"units": facts["units"], "contaminated": len(facts["contaminated"]), contamination.METRIC: facts["share"]}


def search_one(root: Store, units: str, source: str, pieces: Sequence[Piece], share: float) -> list[tuple[str, Hit]]:
    """Return (source, hit) of each text found in the training texts of these pieces. Runs on a worker."""
    index = Index(pq.read_table(root.locate(units)).column("text").to_pylist())
    hits: dict[tuple[int, str], Hit] = {}
    for path, keep in pieces:
        for texts in training_texts(root.locate(path), keep, share):
            for hit in index.search(texts):
                hits.setdefault(hit[:2], hit)
    return [(source, hit) for hit in hits.values()]


def training_texts(path: Path, keep: np.ndarray | None, share: float) -> Iterator[list[str]]:
    """Yield batches of a piece's training texts."""
    if keep is None:
        yield from (b.column("text").to_pylist() for b in pq.ParquetFile(path).iter_batches(BATCH, columns=["text"]))
        return
    for texts, marks in read_piece(path, keep):
        yield [text for text, mark in zip(texts, marks, strict=True) if not is_validation(mark, share)]
