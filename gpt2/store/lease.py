"""Leases in a store without locks: an object that its holder renews, and that others watch.

Each holder creates the object of the next number under `leases/NAME`, which only one of them can. Who sees it unchanged
for `EXPIRY` seconds, by their own clock, takes the holder for lost: clocks of machines need not agree.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

RENEWAL = 10.0
"""Seconds between two renewals."""
EXPIRY = 40.0
"""Seconds without a renewal after which a lease is free."""


class Objects(Protocol):
    """What a lease needs of a store (`gpt2.store.remote.Remote`)."""

    def read(self, name: str) -> bytes | None: ...
    def write(self, name: str, data: bytes) -> None: ...
    def create(self, name: str, data: bytes) -> bool: ...
    def names(self, folder: str) -> list[str]: ...
    def remove(self, name: str) -> None: ...


class Lease:
    """One attempt to hold a name. Of the processes of a machine only one may try at a time."""

    def __init__(self, objects: Objects, name: str, machine: str, facts: Mapping[str, Any]):
        """`facts` on the holder are told to those who wait."""
        self.objects, self.folder, self.machine, self.facts = objects, f"leases/{name}", machine, facts
        self.number = 0
        self.watched: tuple[int, bytes | None] = (0, None)
        self.since = 0.0
        self.ended = threading.Event()
        self.renewing = threading.Thread(target=self._renew, daemon=True, name=f"lease-{name}")

    def take(self) -> Mapping[str, Any] | None:
        """Take the lease if it is free; return None then, else the facts on its holder."""
        numbers = [int(name) for name in self.objects.names(self.folder)]
        last = max(numbers, default=0)
        if last and (holder := self._holder(last)) is not None:
            return holder
        if not self.objects.create(self._object(last + 1), self._state()):
            return {}  # another was faster; the next look tells who
        self.number = last + 1
        for old in (n for n in numbers if n < last):
            self.objects.remove(self._object(old))
        self.renewing.start()
        return None

    def release(self) -> None:
        """Free the lease, if it was taken."""
        if self.number:
            self.ended.set()
            self.renewing.join()
            with contextlib.suppress(Exception):  # the store is away: the lease expires
                self.objects.write(self._object(self.number), self._state(released=True))

    def _holder(self, number: int) -> Mapping[str, Any] | None:
        """Return the facts on the holder of that number; None if it is gone."""
        content = self.objects.read(self._object(number))
        if (number, content) != self.watched:
            self.watched, self.since = (number, content), time.monotonic()
        state = json.loads(content or "{}")
        gone = state.get("released") or state.get("machine") == self.machine
        return None if gone or time.monotonic() - self.since > EXPIRY else state.get("facts", {})

    def _object(self, number: int) -> str:
        return f"{self.folder}/{number:08d}"

    def _state(self, released: bool = False) -> bytes:
        state = {"machine": self.machine, "facts": self.facts, "released": released, "renewal": uuid.uuid4().hex}
        return json.dumps(state).encode()

    def _renew(self) -> None:
        while not self.ended.wait(RENEWAL):
            with contextlib.suppress(Exception):  # the store is away: tried again
                self.objects.write(self._object(self.number), self._state())
