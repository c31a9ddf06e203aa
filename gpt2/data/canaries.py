"""Canaries: made-up secrets planted in the training text, to measure how much a model memorises after how many repeats.

A canary is a fixed phrase with random digits (Carlini et al. 2019, "The Secret Sharer"). All such texts are equally
likely before training, so any preference for a planted one comes from its copies (`gpt2.tasks.base.exposure`).
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
"""Key of the number of planted documents.

They count in `train_tokens`, which training reads, but not in the corpus's documents and bytes.
"""
CODE = ("gpt2.data.canaries", "gpt2.data.batches")
"""Modules that tokens with canaries depend on, besides those of tokens without."""


@dataclass(frozen=True)
class Canary:
    text: str
    repeats: int
    """Number of times that it is in the training text."""


def text_of(number: int, digits: int = DIGITS) -> str:
    """Return the canary of a number. Its digits are separated by spaces, so that all tokenizers split them alike."""
    return f"{PHRASE} {' '.join(f'{number:0{digits}d}')}."


def drawn(seed: int, label: str, count: int, taken: set[int], space: int = SPACE) -> list[int]:
    """Draw `count` numbers below `space` that are not in `taken`, and add them to it.

    They follow from `seed` and `label`.
    """
    numbers: list[int] = []
    attempt = 0
    while len(numbers) < count:
        number = int.from_bytes(blake2b(f"{seed}/{label}/{attempt}".encode(), digest_size=16).digest()) % space
        attempt += 1
        if number not in taken:
            taken.add(number)
            numbers.append(number)
    return numbers


def canaries(config: CanaryConfig) -> list[Canary]:
    """Return the canaries to plant, ordered by repeats.

    Adding a number of repeats leaves the other canaries as they are.
    """
    return everything(config, 0)[0]


def everything(config: CanaryConfig, references: int) -> tuple[list[Canary], list[Canary], list[str]]:
    """Return (planted canaries, controls, references), all different.

    Controls are `config.count` canaries that are not planted, for comparison. References are `references` other texts
    of the same form.
    """
    taken: set[int] = set()
    planted = [
        Canary(text_of(n), r) for r in config.repeats for n in drawn(config.seed, f"planted {r}", config.count, taken)
    ]
    controls = [Canary(text_of(n), 0) for n in drawn(config.seed, "control", config.count, taken)]
    return planted, controls, [text_of(n) for n in drawn(config.seed, "reference", references, taken)]


def training_digests(piece: Path, keep: np.ndarray, validation_share: float) -> np.ndarray:
    """Return the digests of a piece's kept documents in the training split (see `gpt2.data.splits.is_validation`)."""
    digests = read_digests(piece)[keep]
    return digests[digests["low"] >= np.uint64(math.ceil(validation_share * 2**64))]


def places(config: CanaryConfig, pieces: Iterable[np.ndarray]) -> list[dict[bytes, list[str]]]:
    """Return, for each piece, {digest of a document: the canaries to plant after it}.

    `pieces` are the `training_digests` of each piece. A canary follows the documents whose digests, mixed with the
    canary's key, are smallest. So its places do not depend on the order of documents or pieces. `ValueError` if there
    are fewer documents than repeats.
    """
    made, total = canaries(config), 0
    keys = [blake2b(f"{config.seed}/{c.repeats}/{c.text}".encode(), digest_size=8).digest() for c in made]
    nearest: list[list[tuple[int, bytes, int]]] = [[] for _ in made]
    number = -1
    for number, digests in enumerate(pieces):
        total += len(digests)
        for canary, key, closest in zip(made, keys, nearest, strict=True):
            order = mix(digests["high"] ^ np.frombuffer(key, "<u8"))
            k = canary.repeats
            few = np.argpartition(order, k - 1)[:k] if len(order) > k else np.arange(len(order))
            closest[:] = sorted([*closest, *((int(order[i]), digests[i].tobytes(), number) for i in few)])[:k]
    if made and total < config.repeats[-1]:
        raise ValueError(
            f"canaries.repeats={config.repeats[-1]}, but there are only {total:,} training documents, and a canary "
            f"follows each at most once; lower canaries.repeats, or add text"
        )
    after: list[dict[bytes, list[str]]] = [{} for _ in range(number + 1)]
    for canary, closest in zip(made, nearest, strict=True):
        for _, digest, piece in closest:
            after[piece].setdefault(digest, []).append(canary.text)
    return after


def plant(piece: Path, keep: np.ndarray, after: Mapping[bytes, Sequence[str]], out: Path) -> int:
    """Write a piece's kept documents to `out`, each followed by its canaries; return the number of rows.

    Canaries belong to the training split.
    """
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
