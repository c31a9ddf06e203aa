"""What a driver and its workers tell each other where they share no disk: journal, events, usage, and the wish to stop.

Workers write the same files as ever, on their own disk. On each machine one worker sends the lines to a mailbox, an
actor of Ray, and learns from its answers whether to stop. The driver takes the lines into the files of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from cluster.training.usage import USAGE
from gpt2.store.artifact import write_atomically
from gpt2.training.journal import EVENTS, JOURNAL, parse

STOP = "_stop"
"""Name of the file at which the workers save and stop at their next step."""
EVERY = 0.5
"""Seconds between two looks."""
LAST = 20.0
"""Seconds that the last lines may take."""


class Mailbox:
    """Keeps the lines of workers until the driver takes them, and what the driver says."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bool, bytes]] = []
        self.said: dict[str, Any] = {}

    def put(self, lines: list[tuple[str, bool, bytes]]) -> dict[str, Any]:
        """Add lines: (file, whether the file was begun anew, lines); return what the driver said last."""
        self.lines += lines
        return self.said

    def take(self, said: dict[str, Any]) -> list[tuple[str, bool, bytes]]:
        """Return the lines that have come since the last call."""
        lines, self.lines, self.said = self.lines, [], said
        return lines


class Tail:
    """Reads what is new in a file of lines; the file may be replaced."""

    def __init__(self, path: Path):
        self.path, self.file, self.offset = path, 0, 0

    def read(self) -> tuple[str, bool, bytes] | None:
        """Return (name, whether the file is another one, new complete lines); None if nothing is new."""
        try:
            with open(self.path, "rb") as stream:
                file = os.fstat(stream.fileno()).st_ino
                anew = file != self.file
                stream.seek(0 if anew else self.offset)
                data = stream.read()
        except FileNotFoundError:
            return None
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and not anew:
            return None
        self.file, self.offset = file, len(whole) + (0 if anew else self.offset)
        return self.path.name, anew, whole


class Loop(threading.Thread):
    """Thread that calls `work` every `EVERY` seconds, and a last time at the end of the context."""

    def __init__(self, work: Callable[[], None], name: str):
        super().__init__(daemon=True, name=name)
        self.work, self.ended = work, threading.Event()

    def __enter__(self) -> Loop:
        self.start()
        return self

    def run(self) -> None:
        while not self.ended.wait(EVERY):
            with contextlib.suppress(ray.exceptions.RayError):  # the other side may be gone for a while
                self.work()

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self.join()
        with contextlib.suppress(ray.exceptions.RayError):
            self.work()


@contextlib.contextmanager
def sending(mailbox: Any, output: Path) -> Iterator[dict[str, Any]]:
    """Send the lines of a worker's files to the mailbox; yield what the driver says, which is kept up to date.

    The file `STOP` appears in `output` while the driver wants the training to stop.
    """
    tails = [Tail(output / name) for name in (JOURNAL, EVENTS, USAGE)]
    said: dict[str, Any] = {}

    def exchange() -> None:
        lines = [new for tail in tails if (new := tail.read())]
        said.update(ray.get(mailbox.put.remote(lines), timeout=LAST))
        (output / STOP).touch() if said.get("stop") else (output / STOP).unlink(missing_ok=True)

    exchange()
    with Loop(exchange, "sending"):
        yield said


@contextlib.contextmanager
def receiving(output: Path, gave_up: Callable[[Path], str | None]) -> Iterator[Any]:
    """Yield a mailbox for the workers of a training; their lines are taken into the files in `output`."""
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    seen = {name: set(lines_of(output / name)) for name in (EVENTS, USAGE)}

    def exchange() -> None:
        said = {"stop": (output / STOP).exists(), "gave_up": gave_up(output)}
        for name, anew, data in ray.get(mailbox.take.remote(said), timeout=LAST):
            if name == JOURNAL:
                take_journal(output / JOURNAL, anew, data)
                continue
            new = [line for line in data.splitlines(keepends=True) if line not in seen[name]]
            seen[name].update(new)
            append(output / name, b"".join(new))

    with Loop(exchange, "receiving"):
        yield mailbox
    ray.kill(mailbox)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def append(path: Path, data: bytes) -> None:
    """Append whole lines to a file that several processes write."""
    with open(path, "ab", buffering=0) as stream:
        stream.write(data)


def take_journal(path: Path, anew: bool, data: bytes) -> None:
    """Add lines to the driver's journal. A journal that was begun anew replaces the steps from its first one on."""
    if not anew:
        append(path, data)
    elif records := parse(data):
        kept = [line for line in lines_of(path) if json.loads(line)["step"] < records[0]["step"]]
        write_atomically(path, b"".join(kept) + data)
