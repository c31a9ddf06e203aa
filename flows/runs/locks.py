"""Concurrency locks: identical runs execute once, and one training runs at a time.

A claim is a file lock on the store's disk, shared by the command line, the Prefect UI and schedules. The system frees
it when the process that holds it ends, in whatever way.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import Any

from prefect.runtime import flow_run

from cluster.home import store
from flows.runs.stage import say

TRAINING = "training"


def holder_facts() -> dict[str, Any]:
    """Return the facts on this run that the holder of a claim writes, for runs that wait."""
    return {
        "run": flow_run.name or f"process {os.getpid()}",
        "url": flow_run.ui_url or "",
        "id": str(flow_run.id or ""),
    }


@contextlib.contextmanager
def claim(name: str) -> Iterator[dict[str, Any] | None]:
    """Try to lock `name` during the block; yield None if it worked, else the facts on its holder."""
    folder = store().root / ".locks"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"run-{name}", "a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            with contextlib.suppress(ValueError):
                yield json.loads(handle.read())
                return
            yield {"run": "another run", "url": "", "id": ""}  # the holder has not written its facts yet
            return
        handle.truncate(0)
        handle.write(json.dumps(holder_facts()))
        handle.flush()
        yield None


@contextlib.contextmanager
def turn(name: str = TRAINING) -> Iterator[None]:
    """Lock `name` during the block, waiting for its holder; log which run holds it."""
    announced = None
    while True:
        with claim(name) as holder:
            if holder is None:
                yield
                return
        if holder != announced:
            say(f"waiting for {holder['run']}: one training at a time {holder['url']}".rstrip())
            announced = holder
        time.sleep(1)
