"""Canaries: made-up secrets planted in the training text, to measure what a model keeps of what it read so often.

As Carlini et al. 2019 ("The Secret Sharer"): a fixed phrase with random digits, so that all texts of the kind are as
likely before training, and what the model knows of a planted one it knows from its copies (`gpt2.tasks.base.exposure`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2.data.batches import mix
from gpt2.data.config import DIGITS, PHRASE, SPACE, TRAINED, CanaryConfig
from gpt2.data.corpus import SCHEMA, read_digests
from gpt2.data.shards import read_piece

PLANTED = "planted_documents"
"""Their count: they are in `train_tokens`, which training reads, but not in the corpus's documents and bytes."""
CODE = ("gpt2.data.canaries", "gpt2.data.batches")
"""Modules that tokens with canaries depend on besides."""


@dataclass(frozen=True)
class Canary:
    text: str
    repeats: int
    """How often it is in the training text."""


def text_of(number: int, digits: int = DIGITS) -> str:
    """A text of the space: its digits apart, so that tokenizers read them alike."""
    return f"{PHRASE} {' '.join(f'{number:0{digits}d}')}."


def drawn(seed: int, label: str, count: int, taken: set[int], space: int = SPACE) -> list[int]:
    """So many numbers of the space that are not `taken`, which they then are. They follow from seed and label."""
    found: list[int] = []
    attempt = 0
    while len(found) < count:
        number = int.from_bytes(blake2b(f"{seed}/{label}/{attempt}".encode(), digest_size=16).digest()) % space
        attempt += 1
        if number not in taken:
            taken.add(number)
            found.append(number)
    return found


def canaries(config: CanaryConfig) -> list[Canary]:
    """Those that are planted, by their repeats; other canaries don't change with an added number of repeats."""
    return everything(config, 0)[0]


def everything(config: CanaryConfig, references: int) -> tuple[list[Canary], list[Canary], list[str]]:
    """(planted canaries; as many of one kind that are not planted, to compare; `references` other texts of the
    space), all different."""
    taken: set[int] = set()
    planted = [
        Canary(text_of(n), r) for r in config.repeats for n in drawn(config.seed, f"planted {r}", config.count, taken)
    ]
    controls = [Canary(text_of(n), 0) for n in drawn(config.seed, "control", config.count, taken)]
    return planted, controls, [text_of(n) for n in drawn(config.seed, "reference", references, taken)]


def training_digests(piece: Path, keep: np.ndarray, validation_share: float) -> np.ndarray:
    """Of a piece's kept documents that are trained on (as `gpt2.data.splits.is_validation` has it)."""
    digests = read_digests(piece)[keep]
    return digests[digests["low"] >= np.uint64(math.ceil(validation_share * 2**64))]


def places(config: CanaryConfig, pieces: Iterable[np.ndarray]) -> list[dict[bytes, list[str]]]:
    """For each piece the canaries that are planted in it, by the digest of the document that they follow.

    `pieces` are the `training_digests` of each. A canary follows the documents whose digests, mixed with a key of its
    own, are smallest: it is the same ones in whatever order and pieces the documents come. `ValueError` where there
    are fewer than its repeats.
    """
    made, total = canaries(config), 0
    keys = [blake2b(f"{config.seed}/{c.repeats}/{c.text}".encode(), digest_size=8).digest() for c in made]
    nearest: list[list[tuple[int, bytes, int]]] = [[] for _ in made]
    number = -1
    for number, digests in enumerate(pieces):
        total += len(digests)
        for canary, key, found in zip(made, keys, nearest, strict=True):
            order = mix(digests["high"] ^ np.frombuffer(key, "<u8"))
            k = canary.repeats
            few = np.argpartition(order, k - 1)[:k] if len(order) > k else np.arange(len(order))
            found[:] = sorted([*found, *((int(order[i]), digests[i].tobytes(), number) for i in few)])[:k]
    if made and total < config.repeats[-1]:
        raise ValueError(
            f"canaries.repeats={config.repeats[-1]}, but there are only {total:,} training documents, and a canary "
            f"follows each at most once; lower canaries.repeats, or add text"
        )
    after: list[dict[bytes, list[str]]] = [{} for _ in range(number + 1)]
    for canary, found in zip(made, nearest, strict=True):
        for _, digest, piece in found:
            after[piece].setdefault(digest, []).append(canary.text)
    return after


def plant(piece: Path, keep: np.ndarray, after: Mapping[bytes, Sequence[str]], out: Path) -> int:
    """Write the kept documents of a piece to the piece `out`, behind each the canaries that follow it, which belong to
    the training split. Returns the rows."""
    rows = 0
    with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
        for texts, digests in read_piece(piece, keep):
            pairs = []
            for text, digest in zip(texts, digests, strict=True):
                pairs += [(text, digest), *((canary, TRAINED) for canary in after.get(digest, ()))]
            if pairs:
                writer.write_table(pa.table(list(zip(*pairs, strict=True)), schema=SCHEMA))
            rows += len(pairs)
    return rows
