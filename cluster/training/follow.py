"""What workers tell the driver of a training: journal, events, failures, usage; on its disk or through a mailbox.

Where they share no disk, workers write the same files as ever, on their own. On each machine one worker sends the lines
to a mailbox, an actor of Ray, and learns from its answers whether to stop. The driver takes the lines into its own
files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.train import UserCallback

from cluster.training.usage import USAGE
from gpt2.store.artifact import write_atomically
from gpt2.training.cost import describe_failure
from gpt2.training.journal import EVENTS, JOURNAL, Events, parse


def describe_event(event: dict[str, Any]) -> str | None:
    """Return a sentence on a training event for the log; None if nothing is unusual."""
    match event["event"]:
        case "begin" if event["step"]:
            again = max(0, event["reached"] - event["step"])
            return f"goes on from the checkpoint of step {event['step']}; {again} steps are repeated"
        case "failure":
            return f"{describe_failure(event)}; starting again from the last checkpoint"
        case "hang":
            return f"{describe_failure(event)}; its stacks are in {event['stacks']}"
        case "bad step":
            return f"step {event['step']} left out: gradient norm {event['norm']}, limit {event['limit']}"
        case "rollback":
            first, last = event["batches"][0], event["batches"][-1]
            return f"back to step {event['to']}; batches {first} to {last} are not read again"
        case "damaged checkpoint":
            return f"checkpoint refused: {event['reason']}; going back to the one before"
        case "not mirrored":
            return f"{event['path']} was not copied to {event['url']}: {event['reason']}; training goes on without"
        case "fetched":
            return f"{event['path']} fetched from {event['url']}"
        case "changed":
            changes = {k: v for k, v in event.items() if k not in ("event", "time", "step")}
            return "goes on with " + ", ".join(f"{k} {now} (was {was})" for k, (was, now) in changes.items())
        case "remark":
            return f"worker {event['rank']}: {event['level']}: {event['text']}"
        case "preempted":
            return f"stopped by request: saved at step {event['step']}"
    return None


def record_key(record: dict[str, Any]) -> tuple:
    return record["step"], "validation_loss" in record


def event_key(event: dict[str, Any]) -> tuple:
    return event["event"], event["time"]


class JournalFollower:
    """Thread that reads a file of JSON lines while workers write it, and calls `on_record` once per key.

    A restart that writes the same steps again repeats no key.
    """

    def __init__(
        self,
        path: Path,
        key: Callable[[dict[str, Any]], tuple] | None,
        on_record: Callable[[dict[str, Any]], None],
        every: float = 1.0,
    ):
        """`key` identifies a record; None passes on every line. `every`: seconds between two readings."""
        self.path, self.key, self.on_record, self.every = path, key, on_record, every
        self.seen: set[tuple] = set()
        self.file, self.offset = 0, 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> JournalFollower:
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.stop.set()
        self.thread.join()
        self._read()

    def _follow(self) -> None:
        while not self.stop.wait(self.every):
            self._read()

    def _read(self) -> None:
        for record in self._new():
            key = self.key(record) if self.key else None
            if key not in self.seen:
                if key:
                    self.seen.add(key)
                self.on_record(record)

    def _new(self) -> list[dict[str, Any]]:
        """Return the records written since the last call; all of them if the file was replaced."""
        try:
            stream = open(self.path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return []
        with stream:
            file = os.fstat(stream.fileno()).st_ino
            if file != self.file:
                self.file, self.offset = file, 0
            stream.seek(self.offset)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return parse(whole)


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


PER_MINUTE = 10
"""Lines that a worker forwards in a minute. Of further lines only the number is forwarded."""
LONGEST = 500
"""Most characters of a forwarded line."""


class WarningForwarder(logging.Handler):
    """Logging handler that forwards warnings and errors as training events, with the last line of their traceback.

    It forwards the same line at most once a minute.
    """

    def __init__(self, events: Events, rank: int):
        super().__init__(logging.WARNING)
        self.events, self.rank = events, rank
        self.begun, self.seen, self.dropped = time.monotonic(), set[str](), 0

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # a warning is no reason to fail
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            self._forward(record.levelname.lower(), " ".join(text.split())[:LONGEST])

    def _forward(self, level: str, text: str) -> None:
        if time.monotonic() - self.begun > 60:
            self.flush_dropped()
            self.begun, self.seen = time.monotonic(), set()
        if text in self.seen or len(self.seen) >= PER_MINUTE:
            self.dropped += 1
            return
        self.seen.add(text)
        self.events.tell("remark", rank=self.rank, level=level, text=text)

    def flush_dropped(self) -> None:
        """Forward the number of lines that were dropped."""
        if self.dropped:
            self.events.tell("remark", rank=self.rank, level="warning", text=f"{self.dropped} more such lines")
            self.dropped = 0


@contextlib.contextmanager
def forwarded_warnings(events: Events, rank: int) -> Iterator[None]:
    """Forward the warnings and errors of a worker's libraries to the driver's log, as training events with the rank."""
    forwarder = WarningForwarder(events, rank)
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.addHandler(forwarder)
    try:
        yield
    finally:
        root.removeHandler(forwarder)
        forwarder.flush_dropped()


def cause(error: BaseException) -> str:
    """Return the last line of the error of the first worker that failed, or else of `error`."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        rank, failure = sorted(failures.items())[0]
        return f"worker {rank}: {last_line(failure)}"
    return last_line(error)


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, where Python names its class."""
    lines = str(error).strip().splitlines()
    if any(line.startswith("The actor is dead") for line in lines):  # Ray lists possible causes over a whole screen
        return "its process died (killed, out of memory or crashed)"
    if lines and "WORKER_HEALTH_CHECK_TIMEOUT" in lines[-1]:
        return "it does not answer"
    return lines[-1] if lines else type(error).__name__


class TellFailures(UserCallback):
    """Callback of Ray Train's controller that records failures of workers as training events."""

    def __init__(self, folder: str):
        self.folder = folder

    def after_exception(self, run_context, worker_exceptions) -> None:
        causes = {str(rank): last_line(error) for rank, error in sorted(worker_exceptions.items())}
        Events(Path(self.folder)).tell("failure", workers=causes)
