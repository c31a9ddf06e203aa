"""SIGTERM, as a preempted machine or a cancelled run sends it: trainings save and stop at their next step first."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from gpt2.endings import Preempted

_files: set[Path] = set()
"""What asks each training of this process to stop."""
_asked = threading.Event()


@contextlib.contextmanager
def politely() -> Iterator[None]:
    """In the main thread: a SIGTERM during a training first stops it; then, as at any other time, what it did before
    happens. A second one does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def handler(number: int, frame: FrameType | None) -> None:
        if _files and not _asked.is_set():
            _asked.set()
            for file in _files:
                file.touch()
            return
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if _asked.is_set():
            _asked.clear()
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def stopping(file: Path) -> Iterator[Callable[[], None]]:
    """Around a training that stops when `file` appears; the yielded call raises `Preempted`."""
    file.unlink(missing_ok=True)
    _files.add(file)
    if _asked.is_set():
        file.touch()

    def stopped() -> None:
        raise Preempted("stopped as asked; its state is in a checkpoint: run the same command to go on")

    try:
        yield stopped
    finally:
        _files.discard(file)
        file.unlink(missing_ok=True)
