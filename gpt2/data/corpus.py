"""Cleaning of documents: normalisation, quarantine and removal of exact duplicates."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2.data.config import CorpusConfig
from gpt2.data.readers import EXCERPT, Document, stream
from gpt2.data.sources import left_out
from gpt2.data.splits import content_digest

QUARANTINE = "quarantine.jsonl"
SCHEMA = pa.schema([("text", pa.string()), ("digest", pa.binary(16))])
BUCKET_ROWS = 2_000_000  # digests compared at a time: 32 MB
MARKS = ("<|startoftext|>", "<|endoftext|>")
"""Marks that tools for GPT-2 put around documents."""
LINE_BYTES = 4_000_000  # room in a line or record for other keys and columns


class TooManyBadDocuments(ValueError):
    """More documents were quarantined than `corpus.max_bad_share` allows."""


def normalise(text: str) -> str:
    """Return the text in Unicode NFC, with line feeds as line ends and no white space at its end."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).rstrip()


def clean(path: str, config: CorpusConfig, out: Path) -> dict[str, Any]:
    """Clean one file: write pieces `documents-NNNNN.parquet` (text, digest) and `quarantine.jsonl` to `out`.

    Return the counts `documents`, `bytes` (UTF-8), `marked` (those that hold one of the `MARKS`), `bad`, `reasons` and
    `pieces`. Memory holds one piece, whatever the file's size. Raise `UnreadableFile`.
    """
    for leftover in out.glob("documents-*.parquet"):
        leftover.unlink()
    reasons: Counter[str] = Counter()
    total, size, written, number, marked = 0, 0, 0, 0, 0
    texts: list[str] = []
    with open(out / QUARANTINE, "w", encoding="utf-8") as quarantine:
        for document in read(path, config):
            if document.reason is not None:
                kind = document.reason.split(" at byte")[0].split(":")[0]
                reasons[kind] += 1
                entry = {"source": path, **document._asdict(), "text": document.text[:EXCERPT]}
                quarantine.write(json.dumps(entry, ensure_ascii=True) + "\n")
                continue
            texts.append(document.text)
            total += 1
            marked += any(mark in document.text for mark in MARKS)
            length = len(document.text.encode())
            size, written = size + length, written + length
            if written >= config.piece_bytes:
                write_piece(texts, out / f"documents-{number:05d}.parquet")
                texts, written, number = [], 0, number + 1
        if texts:
            write_piece(texts, out / f"documents-{number:05d}.parquet")
            number += 1
    bad = sum(reasons.values())
    counts = {"documents": total, "bytes": size, "marked": marked, "bad": bad, "pieces": number}
    return {**counts, "reasons": dict(reasons)}


def notes(sources: Sequence[str], counts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what to say once of the sources: the files that are left out, and marks that are ordinary text."""
    if others := left_out(sources):
        yield others
    if marked := sum(c.get("marked", 0) for c in counts):
        yield (
            f"{marked:,} documents hold {' or '.join(MARKS)}, which is ordinary text; to split there, set "
            f"corpus.split_at={json.dumps(MARKS)}"
        )


def read(path: str, config: CorpusConfig) -> Iterator[Document]:
    """Yield the file's documents, normalised and checked for length."""
    longest = LINE_BYTES + 12 * config.max_chars  # JSON may escape a character in 12 bytes: \ud83c\udfac
    for block in stream(path, config, longest):
        for row in zip(*(block[name] for name in Document._fields), strict=True):
            document = Document(*row)
            if document.reason is None:
                text = normalise(document.text)
                document = document._replace(text=text, reason=length_fault(text, config))
            yield document


def length_fault(text: str, config: CorpusConfig) -> str | None:
    """Return the fault in a text's length, or None."""
    if not text.strip():
        return "empty"
    if len(text) < config.min_chars:
        return f"too short: {len(text)} characters"
    return f"too long: {len(text)} characters" if len(text) > config.max_chars else None


def write_piece(texts: Sequence[str], path: Path) -> None:
    """Write one piece of cleaned documents as Parquet."""
    table = pa.table([texts, [content_digest(t) for t in texts]], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd")


def check_bad_share(counts: Sequence[Mapping[str, Any]], config: CorpusConfig) -> None:
    """Raise `TooManyBadDocuments` if too many are bad. A count has `documents`, `bad`, `reasons`, `quarantine`."""
    bad = sum(c["bad"] for c in counts)
    total = bad + sum(c["documents"] for c in counts)
    if total == 0 or bad == total:
        raise TooManyBadDocuments(
            f"the sources hold no usable document ({bad} bad); look at "
            f"{', '.join(str(Path(c['quarantine']) / QUARANTINE) for c in counts[:3])}"
        )
    if bad > config.max_bad_share * total:
        reasons: Counter[str] = Counter()
        for c in counts:
            reasons.update(c["reasons"])
        listed = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        worst = max(counts, key=lambda c: c["bad"])
        raise TooManyBadDocuments(
            f"{bad:,} of {total:,} documents are bad ({bad / total:.2%}; corpus.max_bad_share allows "
            f"{config.max_bad_share:.2%}): {listed}. They are listed in {Path(worst['quarantine']) / QUARANTINE}; fix "
            f"the source, or raise corpus.max_bad_share"
        )


def deduplicate(pieces: Sequence[Path]) -> list[np.ndarray]:
    """Return a boolean array per piece: True for documents to keep, the first of equal ones.

    Digests are compared bucket by bucket, so memory is bounded whatever their number.
    """
    rows = [pq.ParquetFile(piece).metadata.num_rows for piece in pieces]
    starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
    keep = np.zeros(int(starts[-1]), dtype=bool)
    buckets = max(1, -(-int(starts[-1]) // BUCKET_ROWS))
    for bucket in range(buckets):
        digests, places = [], []
        for piece, start in zip(pieces, starts, strict=False):
            piece_digests = read_digests(piece)
            here = np.flatnonzero(piece_digests["low"] % np.uint64(buckets) == bucket)
            digests.append(piece_digests[here])
            places.append(here + start)
        if digests:
            marks = np.concatenate(digests)
            order = np.lexsort((marks["high"], marks["low"]))  # stable: the first of equal ones stays first
            marks, new = marks[order], np.ones(len(order), dtype=bool)
            new[1:] = marks[1:] != marks[:-1]
            keep[np.concatenate(places)[order[new]]] = True
    return [keep[start : start + count] for start, count in zip(starts, rows, strict=False)]


def read_digests(piece: Path) -> np.ndarray:
    """Return a piece's digests, (rows,), as pairs of uint64."""
    column = pq.read_table(piece, columns=["digest"]).column("digest")
    joined = b"".join(column.to_pylist())
    return np.frombuffer(joined, dtype=[("low", "<u8"), ("high", "<u8")])
