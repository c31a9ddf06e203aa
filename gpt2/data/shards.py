"""Token shards: flat files of token ids, with an end-of-text after every document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from gpt2.data.splits import is_validation
from gpt2.data.tokenizer import Tokenizer

ROWS = 256  # documents encoded at a time: memory does not grow with the piece


def read_piece(piece: Path, keep: np.ndarray) -> Iterator[tuple[list[str], list[bytes]]]:
    """Yield the kept (texts, digests) of a piece of cleaned documents, at most `ROWS` rows at a time.

    `keep` is (rows,) bool. `ValueError` if its length differs, which would lose documents silently.
    """
    file, start = pq.ParquetFile(piece), 0
    if len(keep) != file.metadata.num_rows:
        raise ValueError(f"{piece} has {file.metadata.num_rows} documents, not {len(keep)}; drop duplicates again")
    for batch in file.iter_batches(ROWS, columns=["text", "digest"]):
        kept = np.flatnonzero(keep[start : start + batch.num_rows])
        start += batch.num_rows
        chosen = batch.take(kept)
        yield chosen.column("text").to_pylist(), chosen.column("digest").to_pylist()


def training_texts(piece: Path, keep: np.ndarray, validation_share: float) -> Iterator[str]:
    """Yield the kept texts of a piece that are in the training split."""
    for texts, digests in read_piece(piece, keep):
        for text, mark in zip(texts, digests, strict=True):
            if not is_validation(mark, validation_share):
                yield text


def encode_piece(
    piece: Path, keep: np.ndarray, tokenizer: Tokenizer, dtype: str, validation_share: float, out: Path
) -> dict[str, Any]:
    """Write `train.bin` and `validation.bin`, little-endian tokens; return tokens, documents and UTF-8 bytes of each.

    `ValueError` if `dtype` is too narrow for the vocabulary.
    """
    width = np.dtype(dtype).newbyteorder("<")
    if tokenizer.vocab_size - 1 > np.iinfo(width).max:
        raise ValueError(f"a vocabulary of {tokenizer.vocab_size} does not fit token_dtype={dtype}; use uint32")
    counts = {f"{s}_{u}": 0 for s in ("train", "validation") for u in ("tokens", "documents", "bytes")}
    with open(out / "train.bin", "wb") as train, open(out / "validation.bin", "wb") as validation:
        for texts, digests in read_piece(piece, keep):
            for text, mark in zip(texts, digests, strict=True):
                ids = tokenizer.encode_array(text)
                split, stream = (
                    ("validation", validation) if is_validation(mark, validation_share) else ("train", train)
                )
                stream.write(np.append(ids, np.uint32(tokenizer.end_of_text)).astype(width).tobytes())
                counts[f"{split}_tokens"] += len(ids) + 1
                counts[f"{split}_documents"] += 1
                counts[f"{split}_bytes"] += len(text.encode())
    return counts


class TokenStream:
    """Several shards, memory-mapped and read as one array of token ids."""

    def __init__(self, paths: Sequence[Path], dtype: str):
        """Raise `ValueError` if a file's size is not a whole number of tokens."""
        self.paths, self.dtype = paths, dtype
        width = np.dtype(dtype).newbyteorder("<")
        self.parts: list[np.ndarray] = []
        for path in paths:
            size = path.stat().st_size
            if size % width.itemsize:
                raise ValueError(
                    f"{path} has {size} bytes, not a multiple of {width.itemsize}: it is cut; tokenize again"
                )
            if size:
                self.parts.append(np.memmap(path, dtype=width, mode="r"))
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.parts else 0

    def read(self, start: int, count: int) -> np.ndarray:
        """Return `count` tokens from `start`, int64; `IndexError` beyond the end."""
        if start < 0 or start + count > len(self):
            raise IndexError(f"tokens {start} to {start + count} of a stream of {len(self)}")
        out = np.empty(count, dtype=np.int64)
        filled, part = 0, int(np.searchsorted(self.ends, start, side="right"))
        while filled < count:
            offset = start + filled - (int(self.ends[part - 1]) if part else 0)
            piece = self.parts[part][offset : offset + count - filled]
            out[filled : filled + len(piece)] = piece
            filled, part = filled + len(piece), part + 1
        return out
