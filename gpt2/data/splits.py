"""Which split a text belongs to: decided by its content or by its time, so that no copy of it is in another one."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")


def content_digest(text: str) -> bytes:
    """Return 16 bytes that identify a normalised text: equal documents have equal digests."""
    return blake2b(text.encode(), digest_size=16).digest()


def is_validation(digest: bytes, share: float) -> bool:
    """Return True if the document is in the validation split. Its content decides, so it never changes splits."""
    return int.from_bytes(digest[:8], "little") < share * 2**64


def splits(texts: Sequence[str], test: float, validation: float) -> np.ndarray:
    """Return the name of each text's split, (N,), decided by its digest as in `is_validation`.

    Texts that pretraining holds out are the first to go into the test split.
    """
    place = np.array([int.from_bytes(content_digest(text)[:8], "little") / 2**64 for text in texts])
    return np.array(SPLITS)[np.where(place < test, 2, np.where(place < test + validation, 1, 0))]


def split_groups(texts: Sequence[str], group: np.ndarray, test: float, validation: float) -> np.ndarray:
    """Return the name of each text's split, (N,), decided by the content of the first text of its group.

    `group` (N,) holds the index of that text; `test` and `validation` are the shares of the two splits.
    """

    def place(i: int) -> str:
        mark = blake2b(texts[group[i]].encode(), digest_size=8)
        share = int.from_bytes(mark.digest(), "little") / 2**64
        if share < test:
            return "test"
        return "validation" if share < test + validation else "train"

    return np.array([place(i) for i in range(len(texts))])


def split_by_time(times: pd.Series, group: np.ndarray, test: float, validation: float) -> np.ndarray:
    """Return the name of each text's split, (N,); "" for a text that has a near-duplicate in a later split.

    The newest share `test` of the texts is the test split, and the newest share `validation` of the others is the
    validation split. Texts with equal times stay together, in the later split.
    """
    moments = times.astype("int64").to_numpy()
    place = np.zeros(len(moments), dtype=int)
    older = np.ones(len(moments), dtype=bool)
    for split, share in ((2, test), (1, validation)):
        if older.any():
            ordered = np.sort(moments[older])
            place[older & (moments >= ordered[-min(len(ordered), int(np.ceil(share * len(moments))))])] = split
            older = place == 0
    latest = np.zeros(len(moments), dtype=int)
    np.maximum.at(latest, group, place)
    return np.where(place < latest[group], "", np.array(SPLITS)[place])
